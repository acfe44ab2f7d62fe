"""One load that was offered to a gateway, and what it made of it."""

from dataclasses import asdict, dataclass
from typing import Any

from loadtest.outcome import Summary
from loadtest.share import Share

REFUSALS = ("429", "503")


@dataclass(frozen=True)
class Stage:
    """One load: its factor (0: closed loop), figures, and who had the cores."""

    factor: float
    summary: Summary
    share: Share | None
    capacity: float = 0.0  # of the closed loop right before
    capacity_per_core: float = 0.0
    answer_ms: float = 0.0  # of CPU for an answer 200, in that loop
    without_retry_after: int = 0
    rss_mb: tuple[float, float, float] | None = None  # before, most, after

    @property
    def raw(self) -> float:
        """Answers 200 a second."""
        return self.summary.goodput_rps

    @property
    def per_core(self) -> float:
        """Answers 200 for each second of a core that was left to the gateway."""
        return self.raw / self.share.left if self.share else self.raw

    @property
    def due(self) -> float:
        """What could have been answered, as a part of the capacity."""
        return min(1.0, self.factor)

    @property
    def refused_rps(self) -> float:
        """Refusals a second."""
        return sum(self.summary.statuses.get(one, 0) for one in REFUSALS) / self.summary.seconds

    @property
    def refusal_ms(self) -> float | None:
        """CPU of the server for a refusal: what is left when its answers 200 are taken off."""
        if self.share is None or not self.answer_ms or not self.refused_rps:
            return None
        return (1e3 * self.share.server - self.raw * self.answer_ms) / self.refused_rps

    def ratio(self, per_core: bool) -> float:
        """Answered, of what could have been."""
        if self.factor < 1:  # nothing is short: what was offered has to be answered
            return self.raw / max(self.summary.offered_rps, 1e-9)
        if per_core:
            return self.per_core / max(self.capacity_per_core, 1e-9)
        return self.raw / max(self.capacity, 1e-9)


def as_json(one: Stage) -> dict[str, Any]:
    """The stage with what follows from it."""
    return {
        **asdict(one),
        "raw_of_peak": one.ratio(per_core=False),
        "per_core_of_peak": one.ratio(per_core=True),
    }
