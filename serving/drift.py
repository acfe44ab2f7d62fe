"""How the scores of each label are distributed: the first thing that changes when tiles do."""

import hashlib
import json
import mmap
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.sharing import Shared

_BINS = 10
# One bin more for what is exactly 1; it is added to the last when it is told.
_SLOTS = _BINS + 1
_SIDES = 2  # absent, present
# So many tiles are counted together.
_FOLDED = 64
_CELLS = _SLOTS * _SIDES
_BOUNDS = [f"{(index + 1) / _BINS:g}" for index in range(_BINS - 1)]


class Scores:
    """The counts of one model's labels: cells of (label, bin, present), then a sum for each label.

    Plain arrays, and not an instrument for each label: a tile with 17 labels costs 5 microseconds.
    """

    def __init__(self, labels: Sequence[str], cells: NDArray[np.float64]) -> None:
        """Counts into the (23 L) cells, which may already hold some."""
        self.labels = labels
        self._counts = cells[: len(labels) * _CELLS]
        self._sums = cells[len(labels) * _CELLS :]
        self._first = np.arange(len(labels)) * _CELLS
        self._told: ArrayLike = np.inf
        self._thresholds: NDArray[np.float64] = np.array(np.inf)
        self._lock = threading.Lock()
        self._waiting: list[NDArray[Any]] = []

    def wait(self, scores: NDArray[Any], thresholds: ArrayLike) -> None:
        """Notes (L,) scores; many at once are counted for little more than one."""
        if thresholds is not self._told:
            self.fold()
            self._told, self._thresholds = thresholds, np.asarray(thresholds, np.float64)
        with self._lock:
            self._waiting.append(scores)
        if len(self._waiting) >= _FOLDED:
            self.fold()

    def fold(self) -> None:
        """Counts what was noted."""
        # A scrape folds in a thread of its own.
        with self._lock:
            waiting, self._waiting = self._waiting, []
        if waiting:
            self.add(np.stack(waiting), self._told)

    def add(self, scores: NDArray[Any], thresholds: ArrayLike) -> None:
        """Counts (N, L) scores; those that reach the (L,) thresholds are present."""
        if thresholds is not self._told:
            self._told, self._thresholds = thresholds, np.asarray(thresholds, np.float64)
        cells = (scores * _BINS).astype(np.intp)
        cells *= _SIDES
        cells += scores >= self._thresholds
        cells += self._first
        counts = np.bincount(cells.ravel(), minlength=len(self._counts))
        sums = scores.sum(axis=0)
        with self._lock:
            self._counts += counts
            self._sums += sums


class Drift(Collector):
    """The distributions of all models, of all workers where there are several."""

    def __init__(self, shared: Shared | None = None) -> None:
        """Counts in memory, or in files of the shared folder."""
        self._shared = shared
        self._models: dict[str, Scores] = {}
        self._kept: dict[str, NDArray[np.float64]] = {}
        self._lock = threading.Lock()

    def add(
        self, model: str, labels: Sequence[str], scores: NDArray[Any], thresholds: ArrayLike
    ) -> None:
        """Counts (N, L) or (L,) scores of the labels."""
        known = self._models.get(model)
        if known is None or known.labels is not labels:
            known = self._open(model, labels)
        if scores.ndim == 1:
            known.wait(scores, thresholds)
        else:
            known.add(scores, thresholds)

    def fold(self) -> None:
        """Counts what was noted, so that the other workers find it."""
        for known in list(self._models.values()):
            known.fold()

    def collect(self) -> Iterator[Metric]:
        """A histogram and a counter for each label that was ever scored."""
        self.fold()
        scores = HistogramMetricFamily(
            "tilesight_label_score",
            "Scores of the answered tiles, by label.",
            labels=["model", "label"],
        )
        present = CounterMetricFamily(
            "tilesight_label_present",
            "Answered tiles on which the label reached its threshold.",
            labels=["model", "label"],
        )
        for model, labels, cells in self._found():
            table = cells[: len(labels) * _CELLS].reshape(len(labels), _SLOTS, _SIDES)
            sums = cells[len(labels) * _CELLS :]
            for label, bins, total in zip(labels, table, sums, strict=True):
                reached = bins.sum(axis=1).cumsum().tolist()
                buckets = [*zip(_BOUNDS, reached[:-2], strict=True)]
                buckets += [("1.0", reached[-1]), ("+Inf", reached[-1])]
                scores.add_metric([model, label], buckets, float(total))
                present.add_metric([model, label], float(bins[:, 1].sum()))
        yield from (scores, present)

    def _open(self, model: str, labels: Sequence[str]) -> Scores:
        """The counts of the model; promoted versions with the same labels go on with them."""
        with self._lock:
            key = json.dumps([model, list(labels)])
            if key not in self._kept:
                size = _size(labels)
                self._kept[key] = self._cells(key, size) if self._shared else np.zeros(size)
            if before := self._models.get(model):
                before.fold()
            self._models[model] = Scores(labels, self._kept[key])
            return self._models[model]

    def _cells(self, key: str, size: int) -> NDArray[np.float64]:
        """The counts in this worker's file, which its successor finds again."""
        assert self._shared
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        with (self._shared.folder / f"{name}.{self._shared.slot}.cells").open("a+b") as file:
            file.truncate(size * np.dtype(np.float64).itemsize)
            cells = np.frombuffer(mmap.mmap(file.fileno(), 0), np.float64)
        # The cells first: whoever finds the key finds what it is the key of.
        passing = self._shared.folder / f"{name}.{self._shared.slot}.passing"
        passing.write_text(key, encoding="utf-8")
        passing.rename(self._shared.folder / f"{name}.labels")
        return cells

    def _found(self) -> Iterable[tuple[str, list[str], NDArray[np.float64]]]:
        """Model, labels and a copy of the counts, summed over the workers."""
        if self._shared is None:
            with self._lock:
                kept = dict(self._kept)
        else:
            kept = _read(self._shared.folder)
        for key, cells in sorted(kept.items()):
            model, labels = json.loads(key)
            yield model, labels, cells.copy()


def _read(folder: Path) -> dict[str, NDArray[np.float64]]:
    found = {}
    for path in folder.glob("*.labels"):
        key = path.read_text(encoding="utf-8")
        total = np.zeros(_size(json.loads(key)[1]))
        for cells in folder.glob(f"{path.stem}.*.cells"):
            counted = np.fromfile(cells, np.float64)
            # Another size: a worker has opened the file a moment ago, and counted nothing yet.
            if counted.shape == total.shape:
                total += counted
        found[key] = total
    return found


def _size(labels: Sequence[str]) -> int:
    return len(labels) * (_CELLS + 1)
