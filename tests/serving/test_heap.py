"""The allocator's heaps, counted by glibc itself in a process of its own."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.command import send, serving
from tests.serving.gateway import tile
from tilesight.cores import usable_cores

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the heaps of glibc are what is tested"
)

_HEAP = 64 * 1024 * 1024  # HEAP_MAX_SIZE of glibc on 64 bits

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


def _thread_heaps(process: int) -> int:
    """The heaps besides the first: glibc keeps 64 MiB of addresses for each, most of them shut."""
    found, before = 0, (0, 0, "")
    for line in Path(f"/proc/{process}/maps").read_text().splitlines():
        addresses, rights, *_ = line.split()
        begin, end = (int(one, 16) for one in addresses.split("-"))
        whole = before[0] % _HEAP == 0 and before[1] == begin and end - before[0] == _HEAP
        found += whole and before[2] == "rw-p" and rights == "---p"
        before = begin, end, rights
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_gateway_has_no_more_heaps_than_cores(repository: Path, tmp_path: Path) -> None:
    # More threads than cores, each of which would have a heap of its own.
    with serving(repository, tmp_path, TILESIGHT_SESSIONS="8", TILESIGHT_THREADS="1") as gateway:
        for _ in range(8):
            assert send(gateway.address, "POST", "/labels", tile("red"))[0] == 200
        assert _thread_heaps(gateway.process.pid) < max(usable_cores(), 2)
