from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.runner import Outputs, Runner, TorchRunner


class Sums(Runner):
    """Adds two inputs, and notes how many rows came together."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def run(self, **inputs: NDArray[Any]) -> Outputs:
        """Their sum, and whether it is odd."""
        self.rows.append(len(inputs["left"]))
        total = inputs["left"] + inputs["right"]
        return {"total": total, "odd": total % 2 == 1}


@pytest.mark.parametrize(("count", "size"), [(7, 3), (6, 3), (2, 32), (1, 1)])
def test_rows_are_answered_a_few_at_a_time_and_in_order(count: int, size: int) -> None:
    left, right = np.arange(count), np.arange(count) * 10
    runner = Sums()
    found = runner.run_in_batches(size, left=left, right=right)
    assert np.array_equal(found["total"], left + right)
    assert np.array_equal(found["odd"], (left + right) % 2 == 1)
    assert sum(runner.rows) == count
    assert max(runner.rows) <= size
    assert runner.rows[:-1] == [size] * (len(runner.rows) - 1)


class Network(nn.Module):
    """What answers otherwise while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.weight = nn.Parameter(torch.tensor(3.0))

    def forward(self, tiles: Tensor, beams: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles times a weight, and the beams."""
        return self.dropout(tiles.float() * self.weight), beams


def test_torch_is_asked_by_name_and_not_as_in_training() -> None:
    network = Network().train()
    runner = TorchRunner(network, ("tiles", "beams"), ("tripled", "same"))
    tiles = np.arange(6, dtype=np.uint8).reshape(3, 2)
    tiles.flags.writeable = False
    beams = np.array([[1], [2], [3]])
    found = runner.run(beams=beams, tiles=tiles)
    assert list(found) == ["tripled", "same"]
    assert np.array_equal(found["tripled"], tiles * np.float32(3))
    assert np.array_equal(found["same"], beams)
    assert not network.training


def test_a_module_that_answers_less_than_it_names_is_refused() -> None:
    runner = TorchRunner(Network(), ("tiles", "beams"), ("tripled", "same", "more"))
    with pytest.raises(ValueError, match="zip"):
        runner.run(tiles=np.zeros((1, 2)), beams=np.zeros((1, 1)))
