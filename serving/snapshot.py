"""The models of one moment: a request keeps the ones that it began with."""

from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from serving.repository import Served


class Snapshot:
    """The four models that belong together, and how many requests use them."""

    def __init__(self, served: Served) -> None:
        """Models that nobody uses yet."""
        self.served = served
        self._users = 0
        self._left: anyio.Event | None = None

    @contextmanager
    def used(self) -> Iterator[Served]:
        """A block in which these models stay loaded."""
        self._users += 1
        try:
            yield self.served
        finally:
            self._users -= 1
            if self._left and not self._users:
                self._left.set()

    async def drained(self) -> None:
        """Returns when the last user has left; for a snapshot that gets no new ones."""
        if self._users:
            self._left = anyio.Event()
            await self._left.wait()
