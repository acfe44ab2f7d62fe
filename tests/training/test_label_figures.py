import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score, fbeta_score, precision_score
from sklearn.metrics import recall_score as sklearn_recall

from tilesight.errors import DataError
from training import label_figures, metrics

LABELS = ["trees", "water", "cars", "sand"]
TRUTH = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
PREDICTED = np.array([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]])


def some_scores(seed: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    generator = np.random.default_rng(seed)
    truth = generator.random((60, 7)) < np.linspace(0.1, 0.7, 7)
    truth[:, 3] = False
    return truth, np.round(generator.random((60, 7)) * 0.6 + truth * 0.3, 2)


# Label-based figures


def test_class_figures_follow_a_hand_count() -> None:
    values = label_figures.class_figures(TRUTH, PREDICTED)
    # Classes: P 1, 1, 1/2 and R 1, 1/2, 1; the fourth has no positive tile.
    assert values["precision_macro"] == pytest.approx(5 / 6)
    assert values["recall_macro"] == pytest.approx(5 / 6)
    assert values["f1_class_means"] == values["f2_class_means"] == pytest.approx(5 / 6)
    assert values["f2_macro"] == pytest.approx((1 + 5 / 9 + 5 / 6) / 3)
    # Pooled: three found, four there, four said.
    assert values["precision_micro"] == values["recall_micro"] == pytest.approx(3 / 4)
    assert values["f1_micro"] == values["f2_micro"] == pytest.approx(3 / 4)
    assert values["classes_skipped"] == 1


def test_class_figures_agree_with_scikit_learn() -> None:
    truth, scores = some_scores(1)
    predicted = scores >= 0.5
    values = label_figures.class_figures(truth, predicted)
    kept = [0, 1, 2, 4, 5, 6]
    precision = precision_score(truth, predicted, average="macro", labels=kept, zero_division=0)
    recall = sklearn_recall(truth, predicted, average="macro", labels=kept, zero_division=0)
    assert values["precision_macro"] == pytest.approx(precision)
    assert values["recall_macro"] == pytest.approx(recall)
    assert values["f1_class_means"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert values["f2_class_means"] == pytest.approx(
        5 * precision * recall / (4 * precision + recall)
    )
    assert values["f2_macro"] == pytest.approx(
        fbeta_score(truth, predicted, beta=2, average="macro", labels=kept, zero_division=0)
    )
    assert values["precision_micro"] == pytest.approx(
        precision_score(truth, predicted, average="micro")
    )
    assert values["recall_micro"] == pytest.approx(
        sklearn_recall(truth, predicted, average="micro")
    )
    assert values["f2_micro"] == pytest.approx(
        fbeta_score(truth, predicted, beta=2, average="micro")
    )
    assert values["classes_skipped"] == 1


def test_all_figures_keep_those_of_label_metrics() -> None:
    truth, scores = some_scores(2)
    thresholds = np.linspace(0.2, 0.8, 7)
    before = metrics.label_metrics(truth, scores, thresholds)
    after = label_figures.all_figures(truth, scores, thresholds)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {
        "precision_macro",
        "recall_macro",
        "f1_class_means",
        "f2_class_means",
        "f2_macro",
        "precision_micro",
        "recall_micro",
        "f2_micro",
    }


def test_a_false_positive_of_a_class_without_positives_counts_in_the_pool_alone() -> None:
    more = PREDICTED.copy()
    more[:, 3] = 1
    before = label_figures.class_figures(TRUTH, PREDICTED)
    after = label_figures.class_figures(TRUTH, more)
    assert after["precision_micro"] == pytest.approx(3 / 7)
    macro = ("precision_macro", "recall_macro", "f1_class_means", "f2_class_means", "f2_macro")
    assert [after[name] for name in macro] == [before[name] for name in macro]


@pytest.mark.parametrize(
    ("truth", "predicted", "told"),
    [
        (TRUTH, PREDICTED[:2], r"\(2, 4\)"),
        (TRUTH[:, :1], PREDICTED[:, :1], r"\(3, 1\)"),
        (TRUTH[:0], PREDICTED[:0], r"\(0, 4\)"),
        (np.zeros_like(TRUTH), PREDICTED, "no class"),
    ],
)
def test_arrays_that_say_nothing_are_an_error(
    truth: NDArray[np.int64], predicted: NDArray[np.int64], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        label_figures.class_figures(truth, predicted)


# The table of the classes


def test_the_table_has_scikit_learns_figures_of_each_class() -> None:
    truth, scores = some_scores(3)
    labels = [f"label {index}" for index in range(7)]
    thresholds = np.linspace(0.2, 0.8, 7)
    rows = label_figures.class_table(labels, truth, scores, thresholds)
    assert [row.label for row in rows] == labels
    for index in (0, 1, 2, 4, 5, 6):
        row, real, found = rows[index], truth[:, index], scores[:, index] >= thresholds[index]
        assert row.support == real.sum()
        assert row.predicted == found.sum()
        assert row.precision == pytest.approx(precision_score(real, found, zero_division=0))
        assert row.recall == pytest.approx(sklearn_recall(real, found))
        assert row.f1 == pytest.approx(f1_score(real, found))
        assert row.average_precision == pytest.approx(
            average_precision_score(real, scores[:, index])
        )
        assert row.threshold == thresholds[index]
    f1 = [row.f1 for row in rows if row.f1 is not None]
    values = label_figures.all_figures(truth, scores, thresholds)
    assert np.mean(f1) == pytest.approx(values["f1_macro"])


def test_a_class_without_positives_has_counts_alone() -> None:
    truth, scores = some_scores(3)
    row = label_figures.class_table([str(i) for i in range(7)], truth, scores, np.full(7, 0.3))[3]
    assert (row.support, row.predicted) == (0, int((scores[:, 3] >= 0.3).sum()))
    assert row.predicted > 0
    assert row.precision is row.recall is row.f1 is row.average_precision is None


def test_a_table_of_other_labels_is_an_error() -> None:
    truth, scores = some_scores(3)
    with pytest.raises(DataError, match="2 labels, 7 thresholds"):
        label_figures.class_table(["a", "b"], truth, scores, np.full(7, 0.5))


# Thresholds


def test_a_threshold_lies_midway_between_the_scores_it_parts() -> None:
    truth = np.array([[1, 1], [1, 0], [0, 0], [0, 0]])
    scores = np.array([[0.3, 0.9], [0.2, 0.7], [0.1, 0.6], [0.05, 0.1]])
    assert label_figures.tuned_thresholds(truth, scores) == pytest.approx([0.15, 0.8])


def test_of_equally_good_thresholds_the_one_nearest_to_half_is_taken() -> None:
    truth = np.array([[1, 1], [0, 1], [0, 0], [1, 0]])
    scores = np.array([[0.9, 0.9], [0.8, 0.7], [0.7, 0.3], [0.6, 0.1]])
    # First class: cuts at 0.85 (F1 2/3) and at 0.3, below all (F1 2 * 2 / 6 = 2/3).
    assert label_figures.tuned_thresholds(truth, scores) == pytest.approx([0.3, 0.5])
    lower = label_figures.tuned_thresholds(truth, scores - [0.25, 0])
    assert lower[0] == pytest.approx(0.6)


def test_equal_scores_are_not_parted_and_a_class_without_positives_keeps_half() -> None:
    truth = np.array([[1, 0], [0, 0], [0, 0]])
    scores = np.array([[0.4, 0.9], [0.4, 0.9], [0.2, 0.9]])
    assert label_figures.tuned_thresholds(truth, scores) == pytest.approx([0.3, 0.5])


def test_neighbouring_floats_are_still_parted() -> None:
    low = 0.25
    high = np.nextafter(low, 1)
    for lower, upper in [(low, high), (high, np.nextafter(high, 1)), (0.0, np.nextafter(0.0, 1))]:
        truth = np.array([[1, 1], [0, 1]])
        scores = np.array([[upper, 0.9], [lower, 0.9]])
        threshold = label_figures.tuned_thresholds(truth, scores)[0]
        assert lower < threshold <= upper


def test_with_a_margin_a_threshold_keeps_away_from_the_scores_or_stays_at_half() -> None:
    truth = np.array([[1, 1], [1, 1], [0, 0], [0, 0]])
    # The first class can be cut well at 0.3001 alone, the second at 0.2 with room.
    scores = np.array([[0.4, 0.4], [0.3002, 0.3], [0.3, 0.1], [0.2, 0.05]])
    tuned = label_figures.tuned_thresholds
    assert tuned(truth, scores) == pytest.approx([0.3001, 0.2])
    # The next best one is below the third tile, with F1 4/5.
    assert tuned(truth, scores, 1e-3) == pytest.approx([0.25, 0.2])
    assert tuned(truth, scores, 0.2).tolist() == [0.5, 0.5]


def test_scores_that_are_no_probabilities_are_an_error() -> None:
    truth = np.array([[1, 1], [0, 1]])
    for wrong in (1.5, -0.1, np.nan):
        with pytest.raises(DataError, match="between 0 and 1"):
            label_figures.tuned_thresholds(truth, np.array([[0.5, 0.5], [0.5, wrong]]))


SHAPES = st.tuples(st.integers(1, 12), st.integers(2, 4))
# A few values, so that equal scores are frequent, and any others.
PROBABILITIES = st.sampled_from([0.0, 0.25, 0.5, 0.5000001, 0.75, 1.0]) | st.floats(0, 1)


@st.composite
def judged(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    shape = draw(SHAPES)
    return (
        draw(arrays(np.int64, shape, elements=st.integers(0, 1))),
        draw(arrays(np.float64, shape, elements=PROBABILITIES)),
    )


def best_f1(truth: NDArray[np.int64], scores: NDArray[np.float64]) -> float:
    """The best of every way to cut the scores in two, one after the other."""
    return max(
        f1_score(truth, scores >= cut, zero_division=0.0) for cut in (*np.unique(scores), np.inf)
    )


@given(judged())
def test_tuned_thresholds_reach_the_best_f1_of_every_class(
    example: tuple[NDArray[np.int64], NDArray[np.float64]],
) -> None:
    truth, scores = example
    thresholds = label_figures.tuned_thresholds(truth, scores)
    assert thresholds.shape == truth.shape[1:]
    for index, threshold in enumerate(thresholds):
        real, of_class = truth[:, index], scores[:, index]
        reached = f1_score(real, of_class >= threshold, zero_division=0.0)
        assert reached >= f1_score(real, of_class >= 0.5, zero_division=0.0)
        if real.any():
            assert reached == pytest.approx(best_f1(real, of_class))
        else:
            assert threshold == 0.5


# Confused pairs


def test_pairs_are_counted_on_the_same_tile() -> None:
    truth = np.array([[1, 0, 0, 0], [1, 0, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0]])
    predicted = np.array([[0, 1, 0, 0], [0, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0]])
    pairs = label_figures.confused_pairs(truth, predicted, LABELS, 5)
    # Tiles 0 and 1 miss trees; 0 and 1 add water, 1 and 2 add cars: only tile 1 has both errors.
    assert [(p.missed, p.added, p.tiles) for p in pairs] == [
        ("trees", "water", (0, 1)),
        ("trees", "cars", (1,)),
    ]
    assert [p.expected for p in pairs] == [2 * 2 / 4, 2 * 2 / 4]
    assert label_figures.confused_pairs(truth, predicted, LABELS, 1) == pairs[:1]


def test_equally_frequent_pairs_stand_in_the_order_of_the_labels() -> None:
    truth = np.array([[0, 0, 1, 1]])
    pairs = label_figures.confused_pairs(truth, 1 - truth, LABELS, 9)
    assert [(p.missed, p.added) for p in pairs] == [
        ("cars", "trees"),
        ("cars", "water"),
        ("sand", "trees"),
        ("sand", "water"),
    ]


def test_right_predictions_confuse_nothing() -> None:
    assert label_figures.confused_pairs(TRUTH, TRUTH, LABELS, 5) == []
    with pytest.raises(DataError, match="3 labels"):
        label_figures.confused_pairs(TRUTH, TRUTH, LABELS[:3], 5)


# Co-occurrence


def test_conditional_shares_are_of_the_rows_label() -> None:
    truth = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0]])
    assert label_figures.conditional_shares(truth) == pytest.approx(
        np.array([[1, 2 / 3, 0], [1, 1, 0], [0, 0, 0]])
    )
