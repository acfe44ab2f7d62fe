"""One graph of a trained model: what it is called, and how a form of it is held against torch."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from export.certificate import Decision, Difference
from export.onnx_file import Source
from export.runner import Outputs, Runner
from tilesight.manifest import AnswerHead, CaptionHead, EncodingHead, LabelsHead

Which = Literal["val", "test"]

# Tiles from which a quantiser learns the ranges of the activations.
_CALIBRATION, _CALIBRATION_BATCH = 64, 8


@dataclass(frozen=True)
class Shown:
    """The output that a report shows of the worst tile: what each value is of."""

    output: str
    names: Sequence[str]
    tiles: Sequence[str]  # the stem of each row


class Part(ABC):
    """A graph that becomes one model of the repository, and the tiles that prove its forms."""

    name: str
    title: str
    source: Source
    head: LabelsHead | CaptionHead | EncodingHead | AnswerHead
    reads_tile: bool
    # The figure whose loss decides on a form that computes otherwise than torch.
    task_metric: str

    @property
    @abstractmethod
    def shown(self) -> Shown:
        """What a report shows of the test tiles."""

    @abstractmethod
    def outputs(self, form: Runner, which: Which) -> Outputs:
        """All that the form answers on this part of the split."""

    @abstractmethod
    def compare(
        self, expected: Outputs, found: Outputs, limit: float | None
    ) -> tuple[dict[str, Difference], dict[str, Decision]]:
        """A form's test outputs against torch's: how far off, and what a user would notice."""

    @abstractmethod
    def measure(self, outputs: Outputs, which: Which) -> dict[str, float]:
        """The figures of these outputs."""

    @abstractmethod
    def feeds(self, rows: int) -> dict[str, NDArray[Any]]:
        """One batch of real inputs of this many rows, from training tiles."""

    def calibration(self) -> Iterator[dict[str, NDArray[Any]]]:
        """Batches of real inputs that show a quantiser the ranges of the activations."""
        inputs = self.feeds(_CALIBRATION)
        for start in range(0, _CALIBRATION, _CALIBRATION_BATCH):
            rows = slice(start, start + _CALIBRATION_BATCH)
            yield {name: values[rows] for name, values in inputs.items()}

    def served_by(self, form: Runner) -> None:  # noqa: B027 (most parts feed no other)
        """Told which form is served, before the parts that read its outputs are written."""


@dataclass(frozen=True)
class Plan:
    """The graphs of a run, each after the one that it reads."""

    parts: Sequence[Part]
    tiles: int


def evenly(values: NDArray[Any], rows: int) -> NDArray[Any]:
    """This many of the rows, from all over the array; some twice if there are fewer."""
    chosen = np.linspace(0, len(values) - 1, rows).round().astype(int)
    return values.take(chosen, axis=0)
