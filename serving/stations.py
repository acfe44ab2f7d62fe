"""A version of a model in one crew: the rows that wait for it and the sessions that run it."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from serving.jobs import Row
from serving.sessions import Session


@dataclass(frozen=True)
class Plan:
    """How a model is run on this machine: in which way, and sessions x threads x batch."""

    way: str
    sessions: int
    threads: int
    batch: int
    lone: int = 1  # threads of a run that has the machine for itself, where that is faster
    apart: bool = True  # whether each session has cores of its own; else they share one device

    def share(self, waiting: int) -> int:
        """The rows of the next batch if so many wait.

        Sessions that have cores each take a part of what is left, so that all end together (guided
        self-scheduling); on one device the largest batch is the fastest.
        """
        parts = self.sessions if self.apart else 1
        return min(self.batch, math.ceil(waiting / parts))

    def __str__(self) -> str:
        """As it stands in the log."""
        several = f"{self.way}: {self.sessions} x {self.threads} threads x batch {self.batch}"
        return f"{several}, one alone with {self.lone}" if self.lone > self.threads else several


class Station:
    """Guarded by the lock of its crew."""

    __slots__ = ("free", "lone", "name", "plan", "ready", "undecoded")

    def __init__(
        self, name: str, plan: Plan, sessions: Sequence[Session], lone: Session | None = None
    ) -> None:
        """A station that nothing waits for.

        Args:
            name: the model's.
            plan: how it is run.
            sessions: one for each run of the plan.
            lone: of more threads, for a row that is alone on the machine.
        """
        self.name = name
        self.plan = plan
        self.free = list(sessions)
        self.lone = lone
        self.ready: deque[Row] = deque()
        self.undecoded = 0  # tiles that wait to be decoded for it

    @property
    def share(self) -> int:
        """The rows of the next batch, of those that are ready and those still to be decoded."""
        return self.plan.share(len(self.ready) + self.undecoded)
