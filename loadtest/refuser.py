"""The least that a refusal costs here: a server that reads requests and answers 503, nothing else.

`loadtest.overload` measures it beside the gateway. Same event loop, same HTTP parser; no checks, no
limits, no app. It is ready at once, at the port of `TILESIGHT_PORT`.
"""

import asyncio
import os
import signal
from typing import cast

import httptools
import uvloop

_BODY = b'{"status":503}'
_HEAD = b"HTTP/1.1 %s\r\nretry-after: 1\r\ncontent-length: %d\r\n\r\n%s"
REFUSAL = _HEAD % (b"503 Service Unavailable", len(_BODY), _BODY)
_READY = _HEAD % (b"200 OK", 0, b"")


class Refuser(asyncio.Protocol):
    """A connection on which every POST is refused."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins to read."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by class
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        """Reads on."""
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Answers, once the body is read."""
        post = self._parser.get_method() == b"POST"
        self._transport.write(REFUSAL if post else _READY)


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    port = int(os.environ["TILESIGHT_PORT"])
    server = await loop.create_server(Refuser, "127.0.0.1", port, backlog=2048)
    await over.wait()
    server.close()


if __name__ == "__main__":
    uvloop.run(_serve())
