"""What a process and its children hold: memory, file descriptors, threads, CPU time; in samples.

Anonymous memory is what a leak of the heap grows. The resident set moves for other reasons too:
it counts pages of files, which come and go with what else runs on the machine.
"""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

MIB = 1 << 20
_FIELDS = {"Rss": "rss", "Anonymous": "anonymous", "Swap": "anonymous"}


@dataclass(frozen=True, slots=True)
class Sample:
    """All processes of a gateway at one moment; bytes, and seconds since the epoch."""

    at: float
    requests: int  # answered so far
    anonymous: int  # heaps and stacks, what was swapped out of them too
    rss: int
    fds: int
    threads: int
    processes: int
    cpu_s: float


def sample(pid: int, requests: int = 0) -> Sample:
    """The process and all its children, added up.

    Raises:
        psutil.NoSuchProcess: it has ended.
    """
    parent = psutil.Process(pid)
    found = [_of(one) for one in [parent, *parent.children(recursive=True)]]
    if found[0] is None:
        raise psutil.NoSuchProcess(pid)
    parts = [one for one in found if one is not None]
    sums = {name: sum(one[name] for one in parts) for name in parts[0]}
    return Sample(
        at=time.time(),
        requests=requests,
        anonymous=int(sums["anonymous"]),
        rss=int(sums["rss"]),
        fds=int(sums["fds"]),
        threads=int(sums["threads"]),
        processes=len(parts),
        cpu_s=sums["cpu_s"],
    )


def _of(process: psutil.Process) -> dict[str, float] | None:
    """One process; None if it has ended meanwhile."""
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        with process.oneshot():
            times = process.cpu_times()
            figures: dict[str, float] = {
                "anonymous": 0,
                "rss": 0,
                "fds": process.num_fds(),
                "threads": process.num_threads(),
                "cpu_s": times.user + times.system,
            }
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return None
    for line in lines[1:]:
        name, _, value = line.partition(":")
        if name in _FIELDS:
            figures[_FIELDS[name]] += int(value.split()[0]) * 1024
    return figures


class Watch:
    """Takes a sample every so often in a thread of its own, while the block runs.

    Each sample is appended to `file` as a line of JSON at once, so that a watch that is cut off
    loses nothing.
    """

    def __init__(
        self,
        pid: int,
        every_s: float = 1.0,
        requests: Callable[[], int] = lambda: 0,
        file: Path | None = None,
    ) -> None:
        """`requests` says how many were answered so far."""
        self.samples: list[Sample] = []
        self._pid, self._every_s, self._requests, self._file = pid, every_s, requests, file
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        """Takes the first sample."""
        self._take()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Takes no more."""
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(self._every_s):
            try:
                self._take()
            except psutil.NoSuchProcess:
                return  # the load sees that nothing answers any more

    def _take(self) -> None:
        found = sample(self._pid, self._requests())
        self.samples.append(found)
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(asdict(found)) + "\n")
