import numpy as np
import pytest

from export.certificate import Certificate, Decision, Difference, decision, difference
from tilesight.errors import ExportError

ROWS = ["forest00", "harbor07", "beach01"]


def certificate(differing: int = 0, maximum: float = 1e-5) -> Certificate:
    return Certificate(
        split="ucm test",
        split_sha256="0" * 64,
        tiles=3,
        torch="2",
        onnxruntime="1",
        float16_share=0.0,
        bytes=1,
        differences={"scores": Difference(maximum=maximum, mean=0.0, limit=1e-3, worst="harbor07")},
        decisions={"labels": Decision(compared=51, differing=differing)},
        metrics={"torch": {}, "onnx": {}},
    )


def test_the_worst_row_is_named() -> None:
    expected = np.zeros((3, 2, 2), dtype=np.float32)
    found = expected.copy()
    found[1, 0, 1] = -0.25
    found[2, 1, 1] = 0.125
    told = difference(expected, found, ROWS)
    assert (told.maximum, told.mean, told.worst) == (0.25, 0.375 / 12, "harbor07")


def test_infinities_have_to_stand_in_the_same_places() -> None:
    expected = np.array([[0.0, -np.inf], [1.0, -np.inf], [2.0, 3.0]], dtype=np.float32)
    assert difference(expected, expected.copy(), ROWS).maximum == 0
    found = expected.copy()
    found[2, 1] = -np.inf
    assert difference(expected, found, ROWS).maximum == np.inf
    for other in (np.inf, np.nan):
        found = expected.copy()
        found[0, 1] = other
        assert difference(expected, found, ROWS).maximum == np.inf


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_no_agreement(value: float) -> None:
    expected = np.zeros((3, 2), dtype=np.float32)
    found = expected.copy()
    found[0, 0] = value
    told = difference(expected, found, ROWS)
    with pytest.raises(ExportError, match="scores differs"):
        certificate(maximum=told.maximum).require_agreement("signa")


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ExportError, match=r"\(3, 1\).*\(3, 2\)"):
        difference(np.zeros((3, 2)), np.zeros((3, 1)), ROWS)


def test_decisions_are_counted() -> None:
    expected = np.array([[True, False], [True, True]])
    assert decision(expected, expected.copy()) == Decision(compared=4, differing=0)
    assert decision(expected, ~expected) == Decision(compared=4, differing=4)


def test_agreement_within_the_limit_passes() -> None:
    certificate(maximum=1e-3).require_agreement("signa")


@pytest.mark.parametrize("maximum", [1.01e-3, float("inf"), float("nan")])
def test_too_large_a_difference_is_told_with_its_tile(maximum: float) -> None:
    with pytest.raises(ExportError, match=r"signa: .*scores differs .*limit 1e-03, harbor07"):
        certificate(maximum=maximum).require_agreement("signa")


def test_one_other_decision_is_too_much() -> None:
    with pytest.raises(ExportError, match=r"1 of 51 labels differ"):
        certificate(differing=1).require_agreement("signa")
