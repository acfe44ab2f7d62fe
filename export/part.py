"""One graph of a trained model, and how it is proved."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from export.certificate import Decision, Difference
from export.onnx_file import Source
from tilesight.manifest import AnswerHead, CaptionHead, EncodingHead, LabelsHead


@dataclass(frozen=True)
class Part:
    """A graph that becomes one model of the repository."""

    name: str
    title: str
    source: Source
    head: LabelsHead | CaptionHead | EncodingHead | AnswerHead
    reads_tile: bool


@dataclass(frozen=True)
class Proof:
    """The comparison of one written graph with torch."""

    differences: dict[str, Difference]
    decisions: dict[str, Decision]
    torch_metrics: dict[str, float]
    onnx_metrics: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """The graphs of a model, and the comparison of their written files on a data folder's tiles."""

    parts: list[Part]
    tiles: int
    prove: Callable[[dict[str, Path]], dict[str, Proof]]
