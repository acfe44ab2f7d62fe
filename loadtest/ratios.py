"""Ratios between figures of one round, and their spread over the rounds."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loadtest.cells import Cell

BARE = "bare"


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, with the least and the greatest."""

    median: float
    least: float
    greatest: float
    rounds: int

    def text(self, digits: int = 2) -> str:
        """As it stands in a table."""
        ends = f"{self.least:.{digits}f}-{self.greatest:.{digits}f}"
        return (
            f"{self.median:.{digits}f} ({ends})" if self.rounds > 1 else f"{self.median:.{digits}f}"
        )


def spread(values: Iterable[float]) -> Spread | None:
    """None where there are no values."""
    found = list(values)
    if not found:
        return None
    return Spread(statistics.median(found), min(found), max(found), len(found))


class Figures:
    """The cells of a comparison, looked up by whom, how and when."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        """Of any run, also of one that was broken off."""
        self._cells = {
            (cell["subject"], cell["kind"], float(cell["level"]), cell["repeat"]): cell
            for cell in cells
        }

    def subjects(self) -> list[str]:
        """Everybody who was measured, in the order of the first cell; the bare loop first."""
        found = dict.fromkeys(subject for subject, *_ in self._cells)
        return sorted(found, key=lambda subject: subject != BARE)

    def levels(self, subject: str, kind: str) -> list[float]:
        """The concurrencies, shares or threads of a subject."""
        return sorted({key[2] for key in self._cells if key[:2] == (subject, kind)})

    def rounds(self, subject: str, kind: str, level: float) -> dict[int, Cell]:
        """The cells of a level, by repeat."""
        return {
            key[3]: cell
            for key, cell in self._cells.items()
            if key[:3] == (subject, kind, float(level))
        }

    def figure(self, subject: str, kind: str, level: float, *path: str) -> Spread | None:
        """One figure of a level, such as `latency_ms`, `p99`."""
        values = []
        for cell in self.rounds(subject, kind, level).values():
            value: object = cell
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            if isinstance(value, int | float):
                values.append(float(value))
        return spread(values)

    def relative(self, subject: str, level: float) -> dict[int, float]:
        """Answers a second over those of the bare loop in the same round, by repeat."""
        limit = self.rounds(BARE, "closed", level)
        return {
            repeat: cell["goodput_rps"] / limit[repeat]["goodput_rps"]
            for repeat, cell in self.rounds(subject, "closed", level).items()
            if repeat in limit
        }

    def saturation(self, subject: str) -> float | None:
        """The concurrency at which it does best, beside the bare loop where there is one."""
        levels = self.levels(subject, "closed")
        if not levels:
            return None

        def height(level: float) -> float:
            beside = spread(self.relative(subject, level).values())
            if beside is not None:
                return beside.median
            if self.levels(BARE, "closed"):
                return 0.0  # at one connection there is no bare loop beside it
            alone = self.figure(subject, "closed", level, "goodput_rps")
            return alone.median if alone else 0.0

        return max(levels, key=height)

    def efficiency(self, subject: str) -> Spread | None:
        """Answers a second at saturation over the bare loop's."""
        level = self.saturation(subject)
        return None if level is None else spread(self.relative(subject, level).values())

    def times(self, subject: str, other: str) -> Spread | None:
        """How many times the answers a second of the other, both at their best, by repeat.

        Each beside the bare loop of its own round where there is one.
        """
        mine, theirs = self._best(subject), self._best(other)
        return spread(mine[one] / theirs[one] for one in mine if theirs.get(one))

    def _best(self, subject: str) -> dict[int, float]:
        level = self.saturation(subject)
        if level is None:
            return {}
        beside = self.relative(subject, level)
        cells = self.rounds(subject, "closed", level)
        return beside or {repeat: cell["goodput_rps"] for repeat, cell in cells.items()}

    def cpu(self, subject: str) -> Spread | None:
        """CPU milliseconds an answer at saturation."""
        level = self.saturation(subject)
        return None if level is None else self.figure(subject, "closed", level, "cpu_ms")

    def by_cpu(self, subject: str) -> Spread | None:
        """CPU of the bare loop over the subject's, an answer at saturation, by repeat.

        Steadier than answers a second where others use the cores too.
        """
        level = self.saturation(subject)
        if level is None:
            return None
        limit = self.rounds(BARE, "closed", level)
        return spread(
            limit[repeat]["cpu_ms"] / cell["cpu_ms"]
            for repeat, cell in self.rounds(subject, "closed", level).items()
            if repeat in limit and cell["answers"]
        )

    def added_p50(self, subject: str, threads: float) -> Spread | None:
        """What p50 at one connection is above the bare loop alone, milliseconds, by repeat."""
        alone = self.rounds(BARE, "one", threads)
        return spread(
            cell["latency_ms"]["p50"] - alone[repeat]["latency_ms"]["p50"]
            for repeat, cell in self.rounds(subject, "closed", 1).items()
            if repeat in alone and cell["latency_ms"]
        )

    def p99_over(self, subject: str, other: str, kind: str) -> Spread | None:
        """The p99 of one over that of the other, of all rounds that both were measured in."""
        found = []
        for level in self.levels(subject, kind):
            theirs = self.rounds(other, kind, level)
            for repeat, cell in self.rounds(subject, kind, level).items():
                both = (cell["latency_ms"], theirs.get(repeat, {}).get("latency_ms"))
                if both[0] and both[1]:
                    found.append(both[0]["p99"] / both[1]["p99"])
        return spread(found)

    def foreign(self) -> Spread | None:
        """Cores that others used or that were stolen while something was measured."""
        return spread(
            cell["foreign_cores"] + cell["stolen_cores"]
            for cell in self._cells.values()
            if "foreign_cores" in cell
        )
