"""FastAPI's thread pool in front of ONNX Runtime: a run for each request, no batching.

Settings: threads (of one run), slots (requests worked on at once; null: FastAPI's 40), workers.
"""

from contextlib import asynccontextmanager
from typing import Annotated

import anyio.to_thread
import uvicorn
from common import OPTIONS, answer, onnx_session, pixels, scores
from fastapi import Depends, FastAPI, Request


@asynccontextmanager
async def lifespan(app):
    app.state.session = onnx_session(OPTIONS["threads"])
    if OPTIONS["slots"]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = OPTIONS["slots"]
    yield


app = FastAPI(lifespan=lifespan)


async def body(request: Request) -> bytes:
    return await request.body()


@app.post("/labels")
def labels(tile: Annotated[bytes, Depends(body)]) -> dict:
    return answer(scores(app.state.session, pixels(tile)[None])[0])


if __name__ == "__main__":
    uvicorn.run(
        "fastapi_onnxruntime:app",
        port=OPTIONS["port"],
        workers=OPTIONS["workers"],
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
    )
