"""The score from which on each label of a run is called present: chosen on the validation tiles.

A threshold of its own for each label fits the tiles it is chosen on, a rare label's above all. So
the run keeps both the tuned thresholds and the answer to whether they are worth it: the F1 that
they reach on validation tiles they were not chosen on, beside that of 0.5 for every label. The
simpler rule stays unless the other is better by more than the standard error of the difference
(Breiman et al., Classification and Regression Trees, 1984, the 1 SE rule).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import sem
from sklearn.metrics import f1_score
from sklearn.model_selection import KFold

from tilesight.errors import RunError
from tilesight.files import write_text
from tilesight.manifest import Probability, Strict
from training import run
from training.label_figures import half, tuned_thresholds

_FOLDS = 5
# As far as a score of an exported form may be from torch's.
_MARGIN = 1e-3

Rule = Literal["half", "tuned"]


class Thresholds(Strict):
    """What was chosen and why; `rule` says which of the two an export takes."""

    rule: Rule
    held_out_f1: dict[Rule, Probability] = Field(
        description="mean F1 of validation tiles that the thresholds were not chosen on"
    )
    standard_error: float = Field(ge=0, description="of the difference of the two, over the tiles")
    tuned: dict[str, Probability] = Field(description="label -> the threshold of its best F1")

    def served(self, labels: Sequence[str]) -> NDArray[np.float64]:
        """(C,) the thresholds of the rule, in the order of the labels."""
        if self.rule == "half":
            return half(len(labels))
        return self.of(labels)

    def of(self, labels: Sequence[str]) -> NDArray[np.float64]:
        """(C,) the tuned thresholds, in the order of the labels."""
        return np.array([self.tuned[label] for label in labels])

    @property
    def reason(self) -> str:
        """The choice in a sentence."""
        told = ", ".join(f"{name} {value:.4f}" for name, value in self.held_out_f1.items())
        error = f"{self.standard_error:.4f}"
        return f"{self.rule} (F1 of held-out validation tiles: {told}; standard error {error})"


def choose(labels: Sequence[str], truth: NDArray[Any], scores: NDArray[Any]) -> Thresholds:
    """The thresholds of the validation tiles: truth (N, C), scores (N, C).

    The tiles are cut into five at random, always the same way; each fifth is judged by thresholds
    tuned on the others. The tuned ones are taken where they are better there by more than one
    standard error. They keep away from the scores of the validation tiles, so that an export in
    another form decides alike.

    Raises:
        DataError: the shapes differ, or a score is not between 0 and 1.
    """
    tuned = tuned_thresholds(truth, scores, _MARGIN)
    held_out: Mapping[Rule, NDArray[Any]] = {
        "half": scores >= half(len(labels)),
        "tuned": _held_out(truth, scores),
    }
    of_tiles: dict[Rule, NDArray[Any]] = {
        rule: np.array(
            [f1_score(*pair, zero_division=0) for pair in zip(truth, present, strict=True)]
        )
        for rule, present in held_out.items()
    }
    gain = of_tiles["tuned"] - of_tiles["half"]
    error = float(sem(gain)) if len(gain) > 1 else 0.0
    return Thresholds(
        rule="tuned" if gain.mean() > error else "half",
        held_out_f1={rule: float(values.mean()) for rule, values in of_tiles.items()},
        standard_error=error,
        tuned=dict(zip(labels, tuned.tolist(), strict=True)),
    )


def _held_out(truth: NDArray[Any], scores: NDArray[Any]) -> NDArray[np.bool_]:
    """(N, C) which labels are present by thresholds that the tile had no part in."""
    present = scores >= half(scores.shape[1])
    if len(truth) < 2:
        return present
    folds = KFold(min(_FOLDS, len(truth)), shuffle=True, random_state=0)
    for others, own in folds.split(truth):
        present[own] = scores[own] >= tuned_thresholds(truth[others], scores[others], _MARGIN)
    return present


def write(folder: Path, thresholds: Thresholds) -> None:
    """Keeps them in the run folder."""
    write_text(folder / run.THRESHOLDS, thresholds.model_dump_json(indent=2) + "\n")


def read(folder: Path, labels: Sequence[str]) -> Thresholds:
    """Those of a run folder.

    Raises:
        RunError: missing, damaged, or of other labels.
    """
    thresholds = run.read_document(folder / run.THRESHOLDS, Thresholds)
    if set(thresholds.tuned) != set(labels):
        raise RunError(f"{folder / run.THRESHOLDS}: tuned: of other labels than {run.CARD}")
    return thresholds
