"""One batch of one model in one session."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from serving.errors import not_a_number
from serving.jobs import Row, Values
from serving.sessions import Session, Stop
from serving.stations import Station

if TYPE_CHECKING:
    from serving.crew import Crew


class Run:
    """One batch in one session."""

    __slots__ = ("_crew", "_session", "_station", "rows", "stop", "threads")

    def __init__(
        self, crew: "Crew", station: Station, session: Session, rows: list[Row], threads: int
    ) -> None:
        self._crew = crew
        self._station = station
        self._session = session
        self.rows = rows
        self.threads = threads
        self.stop = _StopOfAll(len({id(row.job) for row in rows}))

    def run(self) -> None:
        """Runs the model; where a batch fails, each of its rows for itself."""
        started_s = time.monotonic()
        for row in self.rows:
            row.started_s = started_s
        try:
            values = self._values(self.rows)
        # ONNX Runtime raises its own classes, all of them straight from Exception.
        except Exception as error:
            self._apart(error)
        else:
            self._crew.metrics.batch(self._station.name, len(self.rows))
            self._crew.done(self.rows, values, time.monotonic())
        finally:
            self._crew.ended(self._station, self._session, self.threads)

    def _apart(self, error: Exception) -> None:
        """One row that the model cannot run must not take the others along."""
        if self.stop.asked or len(self.rows) == 1:
            self._crew.fail(self.rows, error)
            return
        for row in self.rows:
            try:
                values = self._values([row])
            except Exception as own:
                self._crew.fail([row], own)
            else:
                self._crew.done([row], values, time.monotonic())

    def _values(self, rows: Sequence[Row]) -> list[Values]:
        names = rows[0].job.names
        if any(row.job.names != names for row in rows):
            names = tuple(dict.fromkeys(name for row in rows for name in row.job.names))
        found = self._session.run(names, _joined(rows), self.stop)
        for name, values in zip(names, found, strict=True):
            # The whole batch fails at first; then it is run row by row, and only one remains.
            if values.dtype.kind == "f" and np.isnan(values).any():
                raise not_a_number(self._station.name, name)
        return [
            {name: values[index] for name, values in zip(names, found, strict=True)}
            for index in range(len(rows))
        ]


class _StopOfAll(Stop):
    """Ends a run when the last of the jobs in it is cancelled."""

    __slots__ = ("_jobs",)

    def __init__(self, jobs: int) -> None:
        super().__init__()
        self._jobs = jobs

    def __call__(self) -> None:
        """One of the jobs is cancelled."""
        self._jobs -= 1
        if self._jobs <= 0:
            super().__call__()


def _joined(rows: Sequence[Row]) -> Values:
    """The inputs of the rows as one batch."""
    if len(rows) == 1:
        return {name: values[np.newaxis] for name, values in rows[0].inputs.items()}
    return {name: np.stack([row.inputs[name] for row in rows]) for name in rows[0].inputs}
