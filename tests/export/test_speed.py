import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from export import speed
from export.certificate import FormName, Speed
from export.runner import Outputs, Runner
from tilesight.cores import usable_cores

Call = tuple[str, int]


class Noted(Runner):
    """Takes a while for each row, and notes that it was called."""

    def __init__(self, name: str, calls: list[Call], seconds: float = 0.0) -> None:
        self._name, self._calls, self._seconds = name, calls, seconds

    def run(self, **inputs: NDArray[Any]) -> Outputs:
        """The input as it is."""
        rows = len(inputs["x"])
        self._calls.append((self._name, rows))
        time.sleep(self._seconds * rows)
        return dict(inputs)


def feeds(rows: int) -> dict[str, NDArray[Any]]:
    return {"x": np.zeros((rows, 1))}


@pytest.fixture
def all_batches(monkeypatch: pytest.MonkeyPatch) -> tuple[int, ...]:
    """The batch sizes of an export; other tests of this folder measure at fewer."""
    batches = (1, 2, 4, 8, 16, 32)
    monkeypatch.setattr(speed, "BATCHES", batches)
    return batches


def curves_of(**seconds: float) -> tuple[dict[FormName, list[Speed]], list[Call]]:
    calls: list[Call] = []
    runners = {name: Noted(name, calls, duration) for name, duration in seconds.items()}
    return speed.batch_curves(runners, feeds), calls


def test_every_form_is_measured_at_every_batch(all_batches: tuple[int, ...]) -> None:
    curves, calls = curves_of(torch=0, onnx=0, int8=0)
    assert list(curves) == ["torch", "onnx", "int8"]
    for curve in curves.values():
        assert [one.batch for one in curve] == list(all_batches)
    assert {rows for _, rows in calls} == set(all_batches)


def test_the_forms_take_turns_after_each_has_warmed_up(all_batches: tuple[int, ...]) -> None:
    _, calls = curves_of(torch=0, onnx=0)
    for batch in all_batches:
        names = [name for name, rows in calls if rows == batch]
        warm_up, measured = names[: 2 * speed._WARM_UP], names[2 * speed._WARM_UP :]
        assert sorted(warm_up) == ["onnx"] * speed._WARM_UP + ["torch"] * speed._WARM_UP
        assert len(measured) >= 6
        assert measured == ["torch", "onnx"] * (len(measured) // 2)


def test_times_are_of_one_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "BATCHES", (1, 4))
    curves, _ = curves_of(onnx=0.008, int8=0.001)
    for fast, slow in zip(curves["int8"], curves["onnx"], strict=True):
        assert 1.0 <= fast.ms_per_tile < slow.ms_per_tile
        assert slow.ms_per_tile >= 8.0
        assert fast.spread >= 0


def test_one_interruption_changes_neither_median_nor_spread() -> None:
    for slowest in (5.0, 100.0):
        told = speed._speed(4, [3.0, 1.0, slowest, 2.0, 4.0])
        assert told == Speed(batch=4, ms_per_tile=3.0, spread=1.0)


def test_a_speedup_is_of_pairs_that_take_turns() -> None:
    calls: list[Call] = []
    before, after = Noted("before", calls, 0.01), Noted("after", calls, 0.001)
    assert 1.5 < speed.speedup(before, after, feeds(1)) < 11
    assert [name for name, _ in calls] == ["before", "after"] * (len(calls) // 2)
    assert len(calls) >= 20


def test_the_best_is_at_the_batch_that_suits_the_form() -> None:
    curve = [Speed(batch=batch, ms_per_tile=ms, spread=0) for batch, ms in ((1, 5.0), (8, 2.0))]
    assert speed.best(curve) == 2.0


def test_a_certificate_names_the_processor_and_its_cores() -> None:
    told = speed.machine()
    assert told["threads"] == usable_cores()
    assert told["cpu"]
