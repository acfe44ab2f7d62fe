"""FastAPI in front of torch: the trained network as it comes out of the training room, eager.

Settings: threads (torch's), slots (requests worked on at once; null: FastAPI's 40), workers,
folded (the label branch computed once instead of at each request). Runs in an environment with
`tilesight[serve,train]`, which knows the network.
"""

from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import anyio.to_thread
import torch
import uvicorn
from common import OPTIONS, answer, pixels
from fastapi import Depends, FastAPI, Request

from training.config import read_config
from training.run import CONFIG
from training.tasks import signa


@asynccontextmanager
async def lifespan(app):
    torch.set_num_threads(OPTIONS["threads"])
    run = Path(OPTIONS["run"])
    _, network = signa.load(run, read_config(run / CONFIG))
    app.state.network = network.cpu().eval()
    if OPTIONS["folded"]:
        network.attention.fold()
    if OPTIONS["slots"]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = OPTIONS["slots"]
    yield


app = FastAPI(lifespan=lifespan)


async def body(request: Request) -> bytes:
    return await request.body()


@app.post("/labels")
def labels(tile: Annotated[bytes, Depends(body)]) -> dict:
    with torch.inference_mode():
        logits = app.state.network(torch.tensor(pixels(tile))[None])
        return answer(logits.sigmoid()[0].numpy())


if __name__ == "__main__":
    uvicorn.run(
        "fastapi_torch:app",
        port=OPTIONS["port"],
        workers=OPTIONS["workers"],
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
        timeout_worker_healthcheck=60,  # a worker that imports torch does not answer for a while
    )
