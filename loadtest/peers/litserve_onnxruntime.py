"""LitServe in front of ONNX Runtime.

Settings: workers (inference processes), api_servers (HTTP processes), batch and delay_s (its
batching; 1 and 0: none), threads (of one run), fast_queue (ZeroMQ instead of pipes).
"""

from typing import Annotated

import litserve as ls
import numpy as np
from common import OPTIONS, answer, onnx_session, pixels, scores
from fastapi import Depends, Request


async def body(request: Request) -> bytes:
    return await request.body()


class Labels(ls.LitAPI):
    def setup(self, device):
        self.session = onnx_session(OPTIONS["threads"])

    def decode_request(self, request: Annotated[bytes, Depends(body)]):
        return pixels(request)

    def predict(self, tile):
        return scores(self.session, tile[None])[0]

    def encode_response(self, output) -> dict:
        return answer(output)


class BatchedLabels(Labels):
    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, tiles):
        return scores(self.session, tiles)

    def unbatch(self, output):
        return output


if __name__ == "__main__":
    kind = Labels if OPTIONS["batch"] == 1 else BatchedLabels
    api = kind(
        api_path="/labels", max_batch_size=OPTIONS["batch"], batch_timeout=OPTIONS["delay_s"]
    )
    server = ls.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=OPTIONS["workers"],
        fast_queue=OPTIONS["fast_queue"],
        timeout=60,
    )
    server.run(
        host="127.0.0.1",
        port=OPTIONS["port"],
        num_api_servers=OPTIONS["api_servers"],
        log_level="warning",
        generate_client_file=False,
        access_log=False,
        loop="uvloop",
        http="httptools",
    )
