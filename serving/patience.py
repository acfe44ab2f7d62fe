"""How long a request is worked on: until its deadline, and while its client is there."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import anyio
from starlette.requests import ClientDisconnect, Request

from serving.errors import DeadlineError

AnswerT = TypeVar("AnswerT")


async def in_time(request: Request, seconds: float, work: Awaitable[AnswerT]) -> AnswerT:
    """What the work returns; it is cancelled at the deadline, and when the client has left.

    The body has to be read before: what comes after it is the client's leaving.

    Raises:
        DeadlineError: the work took longer than the given seconds.
        ClientDisconnect: nobody waits for the answer any more.
    """
    with anyio.move_on_after(seconds) as scope:
        watch = asyncio.create_task(_leaving(request, scope))
        try:
            return await work
        finally:
            watch.cancel()
    if watch.done() and not watch.cancelled():
        raise ClientDisconnect
    raise DeadlineError(f"the answer was not ready after {seconds:g} s", limit=seconds)


async def _leaving(request: Request, scope: anyio.CancelScope) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
