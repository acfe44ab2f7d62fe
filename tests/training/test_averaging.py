"""The running mean of the weights: how it moves, and that a resumed run goes on with it."""

from pathlib import Path

import pytest
import torch

from tests.training.fitting import Interrupted, interrupted_at, train_on
from tests.training.test_config import tiny_config
from training.averaging import averaging

pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def test_the_mean_of_the_weights_forgets_by_its_decay_and_leaves_counters_alone() -> None:
    step = averaging(0.9)._kwargs["avg_fn"]
    mean, current = torch.tensor([1.0]), torch.tensor([2.0])
    assert step(mean, current, 1000).item() == pytest.approx(1.1)
    # Early on there is little to keep: (1 + 0) / (10 + 0) of it.
    assert step(mean, current, 0).item() == pytest.approx(1.9)
    edges = torch.tensor([7, 12, 16])
    assert step(edges, edges, 3).tolist() == [7, 12, 16]


def test_a_resumed_run_keeps_the_mean_of_an_unbroken_one(
    ucm_miniature: Path, tmp_path: Path
) -> None:
    config = tiny_config("signa", averaging=0.9)
    train_on(ucm_miniature, config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train_on(ucm_miniature, config, tmp_path / "run", say=interrupted_at("epoch 2/2"))
    train_on(ucm_miniature, config, tmp_path / "run", resume=True)
    whole, resumed = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("whole", "run")
    )
    last = whole["current_model_state"]
    for name, mean in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], mean), name
        assert torch.equal(resumed["current_model_state"][name], last[name]), name
    moved = [
        name for name, mean in whole["state_dict"].items() if not torch.equal(mean, last[name])
    ]
    assert "network.classifier.weight" in moved
    assert not [name for name in moved if name.endswith("num_batches_tracked")]
    for name in ("checkpoint.safetensors", "metrics.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
