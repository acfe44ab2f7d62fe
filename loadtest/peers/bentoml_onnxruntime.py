"""BentoML in front of ONNX Runtime.

Settings: batch and delay_ms (its adaptive batching, in a service of its own behind the one that
takes the tiles; batch 0: none, one service), workers (processes that run the model), slots
(threads of one process), threads (of one run).
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import bentoml
import numpy as np
from bentoml.validators import ContentType
from common import OPTIONS, answer, onnx_session, pixels, scores

_QUIET = {"access": {"enabled": False}}
_TRAFFIC = {"timeout": 60}


@bentoml.service(
    workers=OPTIONS["workers"], threads=OPTIONS["slots"], logging=_QUIET, traffic=_TRAFFIC
)
class Alone:
    def __init__(self) -> None:
        self.session = onnx_session(OPTIONS["threads"])

    @bentoml.api(route="/labels")
    def labels(self, image: Annotated[Path, ContentType("image/jpeg")], /) -> dict:
        return answer(scores(self.session, pixels(image.read_bytes())[None])[0])


@bentoml.service(
    workers=OPTIONS["workers"], threads=OPTIONS["slots"], logging=_QUIET, traffic=_TRAFFIC
)
class Model:
    def __init__(self) -> None:
        self.session = onnx_session(OPTIONS["threads"])

    @bentoml.api(
        batchable=True,
        max_batch_size=max(2, OPTIONS["batch"]),
        max_latency_ms=OPTIONS["delay_ms"],
    )
    def predict(self, tiles: list[bytes]) -> list[dict]:
        found = scores(self.session, np.stack([pixels(tile) for tile in tiles]))
        return [answer(row) for row in found]


@bentoml.service(workers=1, logging=_QUIET, traffic=_TRAFFIC)
class Front:
    model = bentoml.depends(Model)

    @bentoml.api(route="/labels")
    async def labels(self, image: Annotated[Path, ContentType("image/jpeg")], /) -> dict:
        return (await self.model.to_async.predict([image.read_bytes()]))[0]


if __name__ == "__main__":
    service = "Front" if OPTIONS["batch"] else "Alone"
    os.chdir(Path(__file__).parent)
    target = f"bentoml_onnxruntime:{service}"
    where = ["--host", "127.0.0.1", "--port", str(OPTIONS["port"])]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", "serve", target, *where])
