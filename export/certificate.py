"""`certificate.json`: what was compared before a model version took its place."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, ValidationError

from tilesight.errors import BundleError, ExportError
from tilesight.manifest import Strict

# The largest difference of an output between torch and a form of the same arithmetic.
MAX_DIFFERENCE = 1e-3

FormName = Literal[
    "torch",
    "onnx",
    "int8",
    "torchscript",
    "triton",
    "batch1",
    "openvino-bf16",
    "openvino-int8",
    "openvino-int8-bf16",
]
Verdict = Literal["reference", "served", "kept", "refused", "not run"]


class _Record(Strict):
    # An infinite difference has to read back as what it is.
    model_config = ConfigDict(ser_json_inf_nan="constants")


class Difference(_Record):
    """How far an output is from torch's, over all tiles."""

    maximum: float
    mean: float
    limit: float | None = Field(description="absent where the task metric decides instead")
    worst: str = Field(description="the tile (and question) with the largest difference")


class Decision(_Record):
    """What a user gets, compared for equality."""

    compared: int
    differing: int


class Speed(_Record):
    """Milliseconds a tile at one batch size: the median, and half the quartiles' distance."""

    batch: int
    ms_per_tile: float
    spread: float


class Form(_Record):
    """One written form of the model, held against torch."""

    file: str | None = Field(description="its name in the version folder; absent if not kept")
    bytes: int
    differences: dict[str, Difference] = Field(default={})
    decisions: dict[str, Decision] = Field(default={})
    metrics: dict[str, float] = Field(default={})
    speed: list[Speed] = Field(default=[])
    verdict: Verdict
    reasons: list[str] = Field(default=[])


class Gates(_Record):
    """The limits that decide what is written and what is served."""

    max_difference: float = Field(
        default=MAX_DIFFERENCE, ge=0, description="of float32 forms: any output from torch's"
    )
    max_metric_loss: float = Field(
        default=0.5,
        ge=0,
        description="of int8 and bfloat16: points (hundredths) of the task metric",
    )
    min_speedup: float = Field(
        default=2.0, ge=0, description="of int8: its best throughput over the float32 graph's"
    )
    min_batch1_speedup: float = Field(
        default=1.05, ge=0, description="of a graph for one tile alone: over the served one's"
    )


class Worst(_Record):
    """The tile on which a form is furthest from torch."""

    form: str
    output: str
    tile: str
    names: list[str] = Field(description="what each value is of")
    expected: list[float]
    found: list[float]


class Certificate(_Record):
    """All forms of one model version against the torch network they were made from."""

    format_version: Literal[2] = 2
    model: str
    version: int
    split: str
    split_sha256: str
    tiles: int
    software: dict[str, str]
    machine: dict[str, str | int]
    task_metric: str
    gates: Gates
    float16_share: float = Field(description="share of the ONNX weights that are stored as float16")
    forms: dict[FormName, Form]
    worst: list[Worst]


def read_certificate(path: Path) -> Certificate:
    """The certificate in the file.

    Raises:
        BundleError: it is missing, or not a certificate that this version reads.
    """
    try:
        return Certificate.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise BundleError(f"{path}: no certificate: {error}") from error


def disagreements(form: Form) -> list[str]:
    """What differs where nothing may: outputs beyond their limit, decisions not the same."""
    return [
        f"{output} differs by {found.maximum:.2e} (limit {found.limit:.0e}, {found.worst})"
        for output, found in form.differences.items()
        if found.limit is not None and not found.maximum <= found.limit
    ] + [
        f"{found.differing} of {found.compared} {what} differ"
        for what, found in form.decisions.items()
        if found.differing
    ]


def difference(
    expected: NDArray[Any],
    found: NDArray[Any],
    rows: Sequence[str],
    limit: float | None = MAX_DIFFERENCE,
) -> Difference:
    """The difference of two outputs (N, ...); `rows` names each of the N.

    Infinite values have to stand in the same places.
    """
    if expected.shape != found.shape:
        raise ExportError(f"shape {found.shape}, torch has {expected.shape}")
    finite = np.isfinite(expected)
    same = np.array_equal(expected[~finite], found[~finite])
    if not same or not np.isfinite(found[finite]).all():
        return Difference(maximum=float("inf"), mean=float("inf"), limit=limit, worst=rows[0])
    gaps = np.zeros(expected.shape)
    gaps[finite] = np.abs(expected[finite] - found[finite])
    of_row = gaps.reshape(len(gaps), -1).max(axis=1)
    return Difference(
        maximum=float(of_row.max()),
        mean=float(gaps.mean()),
        limit=limit,
        worst=rows[int(of_row.argmax())],
    )


def decision(expected: NDArray[Any], found: NDArray[Any]) -> Decision:
    """How many of the decisions (in any shape) are not the same."""
    return Decision(compared=expected.size, differing=int((expected != found).sum()))
