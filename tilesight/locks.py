"""A lock between commands that change the same files."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tilesight.errors import BundleError

WAIT_S = 30.0
_PAUSE_S = 0.05


@contextmanager
def held(path: Path, wait_s: float = WAIT_S) -> Iterator[None]:
    """Holds the lock of the file, which is made where it is missing and stays.

    The system frees the lock of a process that ends, however it ends. Not reentrant.

    Raises:
        BundleError: another process has held the lock for `wait_s` seconds.
    """
    with path.open("a") as file:
        end = time.monotonic() + wait_s
        while not _taken(file.fileno()):
            if time.monotonic() > end:
                raise BundleError(
                    f"{path.parent}: another command has been changing it for {wait_s:g} seconds"
                )
            time.sleep(_PAUSE_S)
        yield


def _taken(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
