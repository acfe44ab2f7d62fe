"""A version of a model in one crew: the rows that wait for it and the sessions that run it."""

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

    def __str__(self) -> str:
        """As it stands in the log."""
        return f"{self.way}: {self.sessions} x {self.threads} threads x batch {self.batch}"


class Station:
    """Guarded by the lock of its crew."""

    __slots__ = ("free", "name", "plan", "ready", "undecoded")

    def __init__(self, name: str, plan: Plan, sessions: Sequence[Session]) -> None:
        """A station that nothing waits for, with a session for each run of the plan."""
        self.name = name
        self.plan = plan
        self.free = list(sessions)
        self.ready: deque[Row] = deque()
        self.undecoded = 0  # tiles that wait to be decoded for it
