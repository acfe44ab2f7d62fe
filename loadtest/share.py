"""Who had the cores while a load ran: the gateway, the load itself, the rest of the machine."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from loadtest.memory import sample

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Share:
    """Cores, averaged over the time of the load."""

    cores: float
    server: float
    generator: float
    others: float  # neighbours of this machine, and what its host took away

    @property
    def left(self) -> float:
        """The cores that the server could have had."""
        return max(0.05, self.cores - self.generator - self.others)


class Shares:
    """Measures while the block runs; `share` afterwards. None without the server's process."""

    share: Share | None = None

    def __init__(self, pid: int | None) -> None:
        """`pid` of the server on this machine."""
        self._pid = pid

    def __enter__(self) -> Self:
        """Reads the clocks."""
        self._before = _clocks(self._pid)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Reads them again."""
        if self._pid is None or error is not None:
            return
        before, after = self._before, _clocks(self._pid)
        wall, busy, server, generator = (b - a for a, b in zip(before, after, strict=True))
        self.share = Share(
            cores=len(os.sched_getaffinity(0)),
            server=server / wall,
            generator=generator / wall,
            others=max(0.0, busy - server - generator) / wall,
        )


def _clocks(pid: int | None) -> tuple[float, float, float, float]:
    """Seconds: on the wall, of busy cores, of the server, of this process."""
    server = sample(pid).cpu_s if pid is not None else 0.0
    return time.perf_counter(), _busy_s(), server, time.process_time()


def _busy_s() -> float:
    """Of the cores that this process may use, what was stolen by the host too."""
    usable = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    ticks = 0
    for words in (line.split() for line in lines):
        if words and words[0] in usable:
            user, nice, system, _idle, _wait, irq, soft, steal = map(int, words[1:9])
            ticks += user + nice + system + irq + soft + steal
    return ticks / _TICKS
