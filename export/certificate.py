"""`certificate.json`: what was compared before a model version took its place."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tilesight.errors import ExportError
from tilesight.manifest import Strict

# The largest difference of an output between torch and the written file.
MAX_DIFFERENCE = 1e-3


class Difference(Strict):
    """How far an output of the file is from torch's, over all tiles."""

    maximum: float
    mean: float
    limit: float
    worst: str = Field(description="the tile (and question) with the largest difference")


class Decision(Strict):
    """What a user gets, compared for equality."""

    compared: int
    differing: int


class Certificate(Strict):
    """The written ONNX file against the torch network it was made from, on real tiles."""

    format_version: Literal[1] = 1
    split: str
    split_sha256: str
    tiles: int
    torch: str
    onnxruntime: str
    float16_share: float = Field(
        description="share of the weights that are stored as float16, each without loss"
    )
    bytes: int
    differences: dict[str, Difference]
    decisions: dict[str, Decision]
    metrics: dict[Literal["torch", "onnx"], dict[str, float]]

    def require_agreement(self, name: str) -> None:
        """Passes a file that does what torch does.

        Raises:
            ExportError: an output is too far off or a decision differs; each is named.
        """
        problems = [
            f"{output} differs by {found.maximum:.2e} (limit {found.limit:.0e}, {found.worst})"
            for output, found in self.differences.items()
            if not found.maximum <= found.limit
        ] + [
            f"{found.differing} of {found.compared} {what} differ"
            for what, found in self.decisions.items()
            if found.differing
        ]
        if problems:
            raise ExportError(f"{name}: ONNX against torch: {'; '.join(problems)}")


def difference(
    expected: NDArray[Any], found: NDArray[Any], rows: Sequence[str], limit: float = MAX_DIFFERENCE
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
