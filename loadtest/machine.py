"""What processes and the machine did meanwhile: CPU seconds, and who else used the cores."""

import os
import signal
import time
from dataclasses import dataclass

import psutil

_TICK = os.sysconf("SC_CLK_TCK")


class Tree:
    """A process and all that it started."""

    def __init__(self, pid: int) -> None:
        """The tree under the process."""
        self._root = psutil.Process(pid)

    def members(self) -> list[psutil.Process]:
        """All processes of the tree that live."""
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def cpu_s(self) -> float:
        """CPU seconds of the tree so far, of children that have ended too."""
        total = 0.0
        for member in self.members():
            try:
                total += sum(member.cpu_times()[:4])  # user, system, and both of ended children
            except psutil.NoSuchProcess:
                continue
        return total

    def rss_mib(self) -> float:
        """Resident memory of the tree; what its processes share counts for each."""
        total = 0
        for member in self.members():
            try:
                total += member.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return total / 2**20

    def pause(self) -> None:
        """Stops the tree where it stands: nothing of it runs while others are measured."""
        self._tell(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets the tree go on."""
        self._tell(signal.SIGCONT)

    def kill(self) -> None:
        """Ends what is left of the tree."""
        self._tell(signal.SIGKILL)

    def _tell(self, what: signal.Signals) -> None:
        for member in self.members():
            try:
                member.send_signal(what)
            except psutil.NoSuchProcess:
                continue


@dataclass(frozen=True, slots=True)
class Moment:
    """The machine's counters at one moment."""

    at: float
    busy_s: float  # of all cores
    stolen_s: float  # taken by the hypervisor

    @classmethod
    def now(cls) -> "Moment":
        """The counters of /proc/stat; zeros where there is none."""
        try:
            with open("/proc/stat", encoding="ascii") as file:
                ticks = [int(word) for word in file.readline().split()[1:9]]
        except OSError:
            return cls(time.perf_counter(), 0.0, 0.0)
        user, nice, system, _, _, hard, soft, stolen = ticks
        return cls(
            time.perf_counter(), (user + nice + system + hard + soft) / _TICK, stolen / _TICK
        )

    def since(self, before: "Moment", own_s: float) -> dict[str, float]:
        """Cores used by processes other than the measured ones, and cores stolen."""
        seconds = max(1e-9, self.at - before.at)
        return {
            "foreign_cores": max(0.0, self.busy_s - before.busy_s - own_s) / seconds,
            "stolen_cores": (self.stolen_s - before.stolen_s) / seconds,
        }
