"""The allocator's heaps, counted by glibc itself in a process of its own."""

import os
import platform
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the heaps of glibc are what is tested"
)

# Eight threads hold memory at once, so that each wants a heap; then glibc lists them.
_COUNTED = """
import ctypes, sys, threading
from serving import heap

print(heap.limit_arenas(int(sys.argv[1])), flush=True)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
together = threading.Barrier(8)

def hold():
    taken = libc.malloc(1000)
    together.wait()
    libc.free(taken)

threads = [threading.Thread(target=hold) for _ in range(8)]
[one.start() for one in threads]
[one.join() for one in threads]
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


def _heaps(limit: int, environment: dict[str, str]) -> tuple[str, int]:
    known = {key: value for key, value in os.environ.items() if key != "MALLOC_ARENA_MAX"}
    done = subprocess.run(
        [sys.executable, "-c", _COUNTED, str(limit)],
        env=known | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    limited = done.stdout.split(maxsplit=1)[0]
    return limited, len(re.findall(r"<heap nr=", done.stdout))


def test_threads_share_so_many_heaps() -> None:
    assert _heaps(2, {}) == ("True", 2)


def test_what_the_environment_says_is_kept() -> None:
    assert _heaps(2, {"MALLOC_ARENA_MAX": "5"}) == ("False", 5)
