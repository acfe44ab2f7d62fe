"""A body that is still arriving: up to a bound in memory, the rest in a file without a name."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import IO, Self, TypeVar

import anyio.to_thread

from serving.errors import StorageError

RETRY_S = 30

ResultT = TypeVar("ResultT")


class Spool:
    """What has arrived; however slow its sender, it holds `most` bytes of memory and one read."""

    def __init__(self, most: int) -> None:
        """An empty spool; beyond `most` bytes the disk is used."""
        self._most = most
        self._held: list[bytes] = []
        self._size = 0
        self._file: IO[bytes] | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        """The spool; leaving the block forgets all of it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Gives the disk back; what it held has no name and is gone."""
        self._open.close()

    async def write(self, data: bytes) -> None:
        """Adds to the end.

        Raises:
            StorageError: the disk does not take it.
        """
        self._held.append(data)
        self._size += len(data)
        if self._size > self._most:
            held, self._held, self._size = self._held, [], 0
            await _stored(self._write, held)

    async def whole(self) -> bytes:
        """All that was written, read by a worker thread where it lies on the disk.

        Raises:
            StorageError: the disk does not give it back.
        """
        if self._file is None:
            return b"".join(self._held)
        return await _stored(self._read, self._held)

    def _write(self, parts: Sequence[bytes]) -> None:
        if self._file is None:
            self._file = self._open.enter_context(tempfile.TemporaryFile())
        self._file.writelines(parts)

    def _read(self, last: Sequence[bytes]) -> bytes:
        assert self._file is not None
        self._file.seek(0)
        return b"".join([self._file.read(), *last])


async def _stored(work: Callable[[Sequence[bytes]], ResultT], parts: Sequence[bytes]) -> ResultT:
    try:
        return await anyio.to_thread.run_sync(work, parts)
    except OSError as error:
        raise no_storage() from error


def no_storage() -> StorageError:
    """The failure of a disk, whose reason is for the log and not for the client."""
    return StorageError("there is no room for large bodies at the moment", retry_after=RETRY_S)
