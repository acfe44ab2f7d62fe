from pathlib import Path

import numpy as np
import pytest

from export.certificate import (
    Certificate,
    Decision,
    Difference,
    Form,
    Gates,
    Speed,
    Worst,
    decision,
    difference,
    disagreements,
    read_certificate,
)
from tilesight.errors import BundleError, ExportError

ROWS = ["forest00", "harbor07", "beach01"]


def form(differing: int = 0, maximum: float = 1e-5, limit: float | None = 1e-3) -> Form:
    return Form(
        file="model.onnx",
        bytes=1,
        differences={
            "scores": Difference(maximum=maximum, mean=0.0, limit=limit, worst="harbor07")
        },
        decisions={"labels": Decision(compared=51, differing=differing)},
        metrics={"f1_samples": 0.9},
        speed=[Speed(batch=1, ms_per_tile=2.5, spread=0.1)],
        verdict="served",
        reasons=["because"],
    )


def certificate(**fields: object) -> Certificate:
    known = {
        "model": "signa",
        "version": 1,
        "split": "ucm test",
        "split_sha256": "0" * 64,
        "tiles": 3,
        "software": {"torch": "2"},
        "machine": {"cpu": "one", "threads": 2},
        "task_metric": "f1_samples",
        "gates": Gates(),
        "float16_share": 0.0,
        "forms": {"onnx": form()},
        "worst": [
            Worst(
                form="onnx",
                output="scores",
                tile="harbor07",
                names=["trees"],
                expected=[0.5],
                found=[0.25],
            )
        ],
    }
    return Certificate(**(known | fields))


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
    (problem,) = disagreements(form(maximum=told.maximum))
    assert problem.startswith("scores differs by inf")


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ExportError, match=r"\(3, 1\).*\(3, 2\)"):
        difference(np.zeros((3, 2)), np.zeros((3, 1)), ROWS)


def test_decisions_are_counted() -> None:
    expected = np.array([[True, False], [True, True]])
    assert decision(expected, expected.copy()) == Decision(compared=4, differing=0)
    assert decision(expected, ~expected) == Decision(compared=4, differing=4)


def test_agreement_within_the_limit_passes() -> None:
    assert disagreements(form(maximum=1e-3)) == []


@pytest.mark.parametrize("maximum", [1.01e-3, float("inf"), float("nan")])
def test_too_large_a_difference_is_told_with_its_tile(maximum: float) -> None:
    (problem,) = disagreements(form(maximum=maximum))
    assert problem == f"scores differs by {maximum:.2e} (limit 1e-03, harbor07)"


def test_a_difference_without_a_limit_is_only_told() -> None:
    assert disagreements(form(maximum=0.9, limit=None)) == []


def test_one_other_decision_is_too_much() -> None:
    assert disagreements(form(differing=1)) == ["1 of 51 labels differ"]


@pytest.mark.parametrize("maximum", [0.25, float("inf"), float("nan")])
def test_a_certificate_reads_back_as_it_was_written(maximum: float, tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    written = certificate(forms={"onnx": form(maximum=maximum)})
    path.write_text(written.model_dump_json(indent=2))
    found = read_certificate(path)
    assert found.model_dump_json() == written.model_dump_json()
    read_maximum = found.forms["onnx"].differences["scores"].maximum
    assert np.array_equal(read_maximum, maximum, equal_nan=True)


@pytest.mark.parametrize("text", [None, "", "{}", '{"format_version": 1}', "\udcff"])
def test_what_is_no_certificate_is_refused_with_its_path(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    if text is not None:
        path.write_text(text, errors="surrogateescape")
    with pytest.raises(BundleError, match=r"certificate\.json: no certificate"):
        read_certificate(path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    path.write_text(certificate().model_dump_json().replace('n":2', 'n":3', 1))
    with pytest.raises(BundleError, match="format_version"):
        read_certificate(path)


@pytest.mark.parametrize("gate", list(Gates.model_fields))
def test_a_gate_can_be_opened_and_is_never_negative(gate: str) -> None:
    assert getattr(Gates(**{gate: 0.0}), gate) == 0
    for value in (-1e-9, float("nan")):
        with pytest.raises(ValueError, match=gate):
            Gates(**{gate: value})
