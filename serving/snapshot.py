"""The models of one moment: a request keeps the ones that it began with."""

import anyio

from serving.repository import Served


class Snapshot:
    """The four models that belong together, and how many requests use them."""

    def __init__(self, served: Served) -> None:
        """Models that nobody uses yet."""
        self.served = served
        self._users = 0
        self._left: anyio.Event | None = None

    def used(self) -> "_Use":
        """A block that uses the models."""
        return _Use(self)

    def enter(self) -> None:
        """One user more."""
        self._users += 1

    def leave(self) -> None:
        """One user less; told to whoever waits for the last."""
        self._users -= 1
        if self._left and not self._users:
            self._left.set()

    async def drained(self) -> None:
        """Returns when the last user has left; for a snapshot that gets no new ones."""
        if self._users:
            self._left = anyio.Event()
            await self._left.wait()


class _Use:
    """The block; a class, because a generator costs each request several times as much."""

    __slots__ = ("_snapshot",)

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def __enter__(self) -> Served:
        self._snapshot.enter()
        return self._snapshot.served

    def __exit__(self, *error: object) -> None:
        self._snapshot.leave()
