"""A small real HTTP server for the tests of the load generator: each answer as the test says."""

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"

Answer = bytes | list[bytes] | None
"""Bytes to send, at once or piece by piece; None hangs up."""


class Answering:
    """What the server saw, and what it answers: `answer(number)` after `delay(number)` seconds."""

    def __init__(
        self,
        answer: Callable[[int], Answer] = lambda number: OK,
        delay: Callable[[int], float] = lambda number: 0.0,
    ) -> None:
        self._answer, self._delay = answer, delay
        self.requests: list[bytes] = []
        self.open = self.most_open = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        assert length is not None
        body = await reader.readexactly(int(length[1]))
        number = len(self.requests)
        self.requests.append(head + body)
        await asyncio.sleep(self._delay(number))
        answer = self._answer(number)
        if answer is None:
            return False
        for piece in [answer] if isinstance(answer, bytes) else answer:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        return answer is not CLOSING


@contextmanager
def answering(server: Answering) -> Iterator[Answering]:
    """The server, listening in a thread of its own at `server.url`."""
    started, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def run() -> None:
        listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/labels"
        started.set()
        await stop.wait()
        listener.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        assert started.wait(10)
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
