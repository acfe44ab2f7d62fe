"""How long a request is worked on: until its deadline, and while its client is there."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from serving.errors import DeadlineError

AnswerT = TypeVar("AnswerT")

# Most answers are there before; only for those that take longer a task looks after the client.
_SOON_S = 0.05


async def in_time(request: Request, seconds: float, work: Awaitable[AnswerT]) -> AnswerT:
    """What the work returns; it is cancelled at the deadline, and when the client has left.

    The body has to be read before: what comes after it is the client's leaving.

    Raises:
        DeadlineError: the work took longer than the given seconds.
        ClientDisconnect: nobody waits for the answer any more.
    """
    loop, worker = asyncio.get_running_loop(), asyncio.current_task()
    assert worker is not None
    watches: list[asyncio.Task[None]] = []
    later = loop.call_later(
        _SOON_S, lambda: watches.append(loop.create_task(_leaving(request, worker)))
    )
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise DeadlineError(
            f"the answer was not ready after {seconds:g} s", limit=seconds
        ) from None
    except asyncio.CancelledError:
        if watches and watches[0].done() and not watches[0].cancelled():
            worker.uncancel()
            raise ClientDisconnect from None
        raise
    finally:
        later.cancel()
        for watch in watches:
            watch.cancel()


async def _leaving(request: Request, worker: "asyncio.Task[object]") -> None:
    """Cancels the worker when the client leaves."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    worker.cancel()
