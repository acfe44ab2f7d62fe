"""More figures of multi-label taggers: pure functions on arrays, beside `metrics.label_metrics`.

Everywhere: `truth` (N, C) and `predicted` (N, C) are zeros and ones of N tiles and C >= 2 labels,
`scores` (N, C) are probabilities between 0 and 1, and a label is predicted where its score
reaches its threshold. The macro rule is that of `label_metrics`: a class without a positive tile
in `truth` has no recall, is left out of every mean over the classes, and is counted.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from tilesight.errors import DataError
from training.metrics import f_beta, label_metrics

HALF = 0.5


@dataclass(frozen=True)
class ClassRow:
    """The figures of one class; all but the counts are None where it has no positive tile."""

    label: str
    support: int  # positive tiles
    predicted: int  # tiles where the label is predicted
    precision: float | None
    recall: float | None
    f1: float | None
    average_precision: float | None
    threshold: float

    def as_json(self) -> dict[str, Any]:
        """The row as JSON writes it."""
        return asdict(self)


@dataclass(frozen=True)
class ConfusedPair:
    """Two labels of which tiles miss the one and wrongly have the other."""

    missed: str
    added: str
    tiles: tuple[int, ...]  # rows of the arrays, in their order
    expected: float  # tiles by chance, if both errors fell on tiles independently

    def as_json(self) -> dict[str, Any]:
        """The pair as JSON writes it."""
        return asdict(self) | {"tiles": list(self.tiles)}


def half(classes: int) -> NDArray[np.float64]:
    """The threshold 0.5 for each class: (C,)."""
    return np.full(classes, HALF)


def class_figures(truth: NDArray[Any], predicted: NDArray[Any]) -> dict[str, float]:
    """The label-based figures of predicted labels: means over the classes, and pooled counts.

    With P, R of one class over all tiles (0 where a denominator is 0) and
    F_b = (1 + b^2) P R / (b^2 P + R):

    - `precision_macro`, `recall_macro`: means of P and of R over the classes.
    - `f1_class_means`, `f2_class_means`: F_b of these two means (SIGNA, Eq. 8 and 9; CF1 of
      ML-GCN, Chen et al., CVPR 2019). Not `f1_macro`, which is the mean of the classes' F_1.
    - `f2_macro`: the mean of the classes' F_2.
    - `precision_micro`, `recall_micro`, `f1_micro`, `f2_micro`: P, R and F_b of the counts pooled
      over all classes and tiles (OP, OR, OF1 of ML-GCN). No class is skipped here: a false
      positive of a class without a positive tile counts.
    - `classes_skipped`: classes without a positive tile, left out of the means over the classes.

    Raises:
        DataError: the shapes differ or no class has a positive tile.
    """
    truth, predicted = _same_shape(truth, predicted)
    classes = _with_positives(truth)
    of_class = {
        beta: precision_recall_fscore_support(truth, predicted, beta=beta, zero_division=0)
        for beta in (1, 2)
    }
    pooled = {
        beta: precision_recall_fscore_support(
            truth, predicted, beta=beta, average="micro", zero_division=0
        )
        for beta in (1, 2)
    }
    precision, recall = (float(of_class[1][index][classes].mean()) for index in (0, 1))
    return {
        "precision_macro": precision,
        "recall_macro": recall,
        "f1_class_means": f_beta(precision, recall, 1),
        "f2_class_means": f_beta(precision, recall, 2),
        "f2_macro": float(of_class[2][2][classes].mean()),
        "precision_micro": float(pooled[1][0]),
        "recall_micro": float(pooled[1][1]),
        "f1_micro": float(pooled[1][2]),
        "f2_micro": float(pooled[2][2]),
        "classes_skipped": float(truth.shape[1] - classes.size),
    }


def all_figures(
    truth: NDArray[Any], scores: NDArray[Any], thresholds: NDArray[Any]
) -> dict[str, float]:
    """The figures of `label_metrics` and of `class_figures` for scores and (C,) thresholds.

    Raises:
        DataError: as both of them do.
    """
    values = label_metrics(truth, scores, thresholds)
    return values | class_figures(truth, scores >= thresholds)


def class_table(
    labels: Sequence[str],
    truth: NDArray[Any],
    scores: NDArray[Any],
    thresholds: NDArray[Any],
) -> list[ClassRow]:
    """A row for each label, in their order: counts, P, R, F_1, average precision, threshold.

    P and F_1 are 0 where the label is never predicted. The average precision is that of
    scikit-learn (sum of P over the steps of R, no interpolation).

    Raises:
        DataError: the shapes or the number of labels or thresholds differ.
    """
    truth, scores = _same_shape(truth, scores)
    if not len(labels) == truth.shape[1] == len(thresholds):
        raise DataError(
            f"class table: {len(labels)} labels, {len(thresholds)} thresholds, truth {truth.shape}"
        )
    predicted = (scores >= thresholds).astype(np.int64)
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, predicted, average=None, labels=range(len(labels)), zero_division=0
    )

    def row(index: int) -> ClassRow:
        known = support[index] > 0
        return ClassRow(
            label=labels[index],
            support=int(support[index]),
            predicted=int(predicted[:, index].sum()),
            precision=float(precision[index]) if known else None,
            recall=float(recall[index]) if known else None,
            f1=float(f1[index]) if known else None,
            average_precision=(
                float(average_precision_score(truth[:, index], scores[:, index])) if known else None
            ),
            threshold=float(thresholds[index]),
        )

    return [row(index) for index in range(len(labels))]


def tuned_thresholds(
    truth: NDArray[Any], scores: NDArray[Any], margin: float = 0.0
) -> NDArray[np.float64]:
    """For each class the threshold with the best F_1 of these (validation) scores: (C,).

    It lies midway between two neighbouring scores of the class, or between 0 and the lowest one.
    Of several with the same F_1 it is the one nearest 0.5, of two as near the lower; a class
    without a positive tile keeps 0.5. On the data it was chosen on, no class has a lower F_1 than
    at 0.5. Keep it in float64: rounded to float32 it may fall on a score.

    With a margin, thresholds that are less than it from a score are not taken, and 0.5 is kept
    where none that is left is better: a network in another form answers a little otherwise.

    Raises:
        DataError: the shapes differ, or a score is not between 0 and 1.
    """
    truth, scores = _same_shape(truth, scores)
    scores = scores.astype(np.float64)
    check_scores(scores)
    columns = range(truth.shape[1])
    return np.array([_best_threshold(truth[:, c], scores[:, c], margin) for c in columns])


def check_scores(scores: NDArray[Any]) -> None:
    """Raises a DataError where a score is not a probability, which 0.5 would mean nothing to."""
    # A comparison that NaN fails, too.
    if not ((scores >= 0) & (scores <= 1)).all():
        raise DataError(f"scores: not all between 0 and 1, {scores.min()} to {scores.max()}")


def _best_threshold(truth: NDArray[np.int64], scores: NDArray[np.float64], margin: float) -> float:
    support = int(truth.sum())
    if support == 0:
        return HALF
    order = np.argsort(-scores, kind="stable")
    descending = scores[order]
    # Equal scores fall on the same side of any threshold: a cut follows the last of them.
    cuts = np.flatnonzero(np.append(descending[1:] < descending[:-1], True))
    above, below = descending[cuts], np.append(descending[cuts[:-1] + 1], 0.0)
    middle = (above + below) / 2
    # Between two neighbouring floats there is no middle; a label is present at its threshold.
    thresholds = np.where(middle > below, middle, above)
    found = truth[order].cumsum()[cuts]
    # One division of whole numbers, so that equal F_1 are equal floats.
    f1 = 2 * found / (support + cuts + 1)
    if margin:
        # Nothing is below the last threshold.
        room = np.minimum(above - thresholds, np.append((thresholds - below)[:-1], np.inf))
        present = scores >= HALF
        better = f1 > 2 * truth[present].sum() / (support + present.sum())
        kept = (room >= margin) & better
        if not kept.any():
            return HALF
        thresholds, f1 = thresholds[kept], f1[kept]
    # By falling F_1, then by the distance from 0.5, then by the threshold.
    return float(thresholds[np.lexsort((thresholds, np.abs(thresholds - HALF), -f1))[0]])


def confused_pairs(
    truth: NDArray[Any], predicted: NDArray[Any], labels: Sequence[str], count: int
) -> list[ConfusedPair]:
    """The pairs of a missed and a wrongly added label that most tiles have, the most first.

    Pairs of equally many tiles stand in the order of the labels; those of no tile are left out,
    so there may be fewer than `count`. `expected` = (tiles that miss the one) x (tiles that add
    the other) / N.

    Raises:
        DataError: the shapes or the number of labels differ.
    """
    truth, predicted = _same_shape(truth, predicted)
    if len(labels) != truth.shape[1]:
        raise DataError(f"confused pairs: {len(labels)} labels, truth {truth.shape}")
    missed = (truth == 1) & (predicted == 0)
    added = (truth == 0) & (predicted == 1)
    together = missed.astype(np.int64).T @ added.astype(np.int64)  # (C, C)
    chance = np.outer(missed.sum(axis=0), added.sum(axis=0)) / max(len(truth), 1)
    ranked = np.argsort(-together, axis=None, kind="stable")[:count]
    pairs = zip(*np.unravel_index(ranked, together.shape), strict=True)
    return [
        ConfusedPair(
            labels[i],
            labels[j],
            tuple(int(row) for row in np.flatnonzero(missed[:, i] & added[:, j])),
            float(chance[i, j]),
        )
        for i, j in pairs
        if together[i, j] > 0
    ]


def conditional_shares(truth: NDArray[Any]) -> NDArray[np.float64]:
    """P(j given i), (C, C): the share of the tiles with label i that have label j (SIGNA, Eq. 1).

    The diagonal is 1, and the row of a label without a tile is 0.
    """
    counts = truth.astype(np.float64)
    together = counts.T @ counts  # (C, C)
    return together / np.maximum(together.diagonal(), 1)[:, None]


def graph_edges(shares: NDArray[np.float64], threshold: float) -> list[tuple[int, int]]:
    """The edges i -> j, i != j, of the label graph: P(j given i) >= threshold (SIGNA, Eq. 2).

    The same as those of `models.label_graph`, for arrays.
    """
    reached = shares >= threshold
    np.fill_diagonal(reached, False)
    return [(int(i), int(j)) for i, j in np.argwhere(reached)]


def _same_shape(truth: NDArray[Any], other: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    # scikit-learn reads a single column as one class's values, not as a table of labels.
    if truth.shape != other.shape or truth.ndim != 2 or truth.shape[1] < 2 or len(truth) == 0:
        raise DataError(f"labels: truth {truth.shape}, scores or predictions {other.shape}")
    if other.dtype == np.bool_:
        other = other.astype(np.int64)
    return truth.astype(np.int64), other


def _with_positives(truth: NDArray[np.int64]) -> NDArray[np.int64]:
    classes = np.flatnonzero(truth.any(axis=0))
    if classes.size == 0:
        raise DataError("labels: no class has a positive tile")
    return classes
