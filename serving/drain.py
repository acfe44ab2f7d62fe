"""The way out: what a gateway that was told to stop still answers, and what no more."""

import asyncio
import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import NotReadyError
from serving.problems import respond

_RETRY_S = 1
_LOOK_S = 0.02
# Whoever decides about this process still wants to know of it.
_ALWAYS = frozenset({"/healthz", "/readyz", "/metrics"})


class Drain:
    """How far the process is on its way out, and how many requests it still has to answer."""

    def __init__(self) -> None:
        """Not on the way."""
        self.leaving = False
        self.refusing = False
        self.active = 0

    def require_staying(self) -> None:
        """Returns until the process is told to stop.

        Raises:
            NotReadyError: it was.
        """
        if self.leaving:
            raise NotReadyError("the gateway is stopping", retry_after=_RETRY_S)

    async def finish(self, wait_s: float, drain_s: float) -> float:
        """Returns when what was begun is answered: the seconds that are left of `drain_s`.

        Args:
            wait_s: how long everything is still answered, while whoever sends requests learns
                from /readyz that it should not.
            drain_s: how long the begun requests get after that, while others are refused.
        """
        await asyncio.sleep(wait_s)
        self.refusing = True
        end = time.monotonic() + drain_s
        while self.active and time.monotonic() < end:
            await asyncio.sleep(_LOOK_S)
        return max(0.0, end - time.monotonic())


class Draining:
    """Middleware that counts the requests that were begun, and refuses those that come too late."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        """The app that is drained."""
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers 503."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        drain = self._drain
        drain.active += 1
        try:
            if not drain.leaving:
                await self._app(scope, receive, send)
            elif drain.refusing and scope["path"] not in _ALWAYS:
                error = NotReadyError("the gateway is stopping", retry_after=_RETRY_S)
                await respond(scope, error)(scope, receive, _closing(send))
            else:
                await self._app(scope, receive, _closing(send))
        finally:
            drain.active -= 1


def _closing(send: Send) -> Send:
    """A `send` whose answer is the connection's last, so that its client goes elsewhere."""

    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["Connection"] = "close"
        await send(message)

    return closing
