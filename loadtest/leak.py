"""The gateway with a leak: every request leaves two kilobytes behind.

It is the control of `loadtest.soak`: a check that does not call this a leak finds none. It takes
its settings from the environment like `tilesight serve`; `--bytes` leaks more or less.
"""

import argparse
import os
from collections.abc import Callable
from unittest.mock import patch

from starlette.types import ASGIApp, Receive, Scope, Send

from serving.app import create_app
from serving.server import run
from serving.settings import Settings

BYTES = 2048


class Leak:
    """Middleware that keeps something of each request for ever."""

    def __init__(self, app: ASGIApp, size: int) -> None:
        """The app behind it, and how many bytes stay."""
        self._app, self._size = app, size
        self._kept: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if scope["type"] == "http":
            # Zeros might be one page of the kernel's, whatever their number.
            self._kept.append(os.urandom(self._size))
        await self._app(scope, receive, send)


def leaking(create_app: Callable[..., ASGIApp], size: int) -> Callable[..., ASGIApp]:
    """A maker of the same app, with the leak around it."""

    def create(*arguments: object, **options: object) -> ASGIApp:
        return Leak(create_app(*arguments, **options), size)

    return create


def main() -> None:
    """Serves until it is told to stop."""
    parser = argparse.ArgumentParser("python -m loadtest.leak", description=__doc__.split("\n")[0])
    parser.add_argument("--bytes", type=int, default=BYTES, help="a request [%(default)s]")
    given = parser.parse_args()
    with patch("serving.server.create_app", leaking(create_app, given.bytes)):
        run(Settings.from_environment())


if __name__ == "__main__":
    main()
