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
    limits = _Limits(loop, worker, request, seconds)
    try:
        return await work
    except asyncio.CancelledError:
        if limits.reason is None or worker.uncancel() > limits.before:
            raise
        raise limits.reason from None
    finally:
        limits.end()


class _Limits:
    """What ends the work: a deadline, and a client that leaves."""

    __slots__ = ("_loop", "_request", "_seconds", "_timer", "_watch", "_worker", "before", "reason")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        worker: "asyncio.Task[object]",
        request: Request,
        seconds: float,
    ) -> None:
        self.reason: Exception | None = None
        self.before = worker.cancelling()
        self._loop = loop
        self._worker = worker
        self._request = request
        self._seconds = seconds
        self._watch: asyncio.Task[None] | None = None
        if seconds > _SOON_S:
            self._timer = loop.call_later(_SOON_S, self._look)
        else:
            self._timer = loop.call_later(seconds, self._late)

    def end(self) -> None:
        """The work is done."""
        self._timer.cancel()
        if self._watch:
            self._watch.cancel()

    def _look(self) -> None:
        self._timer = self._loop.call_later(self._seconds - _SOON_S, self._late)
        self._watch = self._loop.create_task(self._leaving())

    def _late(self) -> None:
        self._stop(
            DeadlineError(
                f"the answer was not ready after {self._seconds:g} s", limit=self._seconds
            )
        )

    async def _leaving(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._stop(ClientDisconnect())

    def _stop(self, reason: Exception) -> None:
        if self.reason is None:
            self.reason = reason
            self._worker.cancel()
