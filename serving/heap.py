"""glibc's allocator: how many heaps it keeps for threads, and when it gives memory back."""

import ctypes
import os

_M_ARENA_MAX = -8  # malloc.h
_SETTING = "MALLOC_ARENA_MAX"


def limit_arenas(count: int) -> bool:
    """Threads share so many heaps, if the environment does not say how many; elsewhere nothing.

    glibc gives each thread a heap of its own, up to eight a core, and none is handed back: what
    one thread frees another cannot use, so memory goes on growing by the peaks of every thread.
    Not more threads than cores allocate at once.

    Returns:
        Whether the limit is set.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or _SETTING in os.environ:
        return False
    return bool(mallopt(_M_ARENA_MAX, count) == 1)


def give_back() -> None:
    """What was freed goes back to the system; glibc keeps it for itself, model after model."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
