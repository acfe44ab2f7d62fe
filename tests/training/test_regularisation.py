"""What keeps a small set from being learnt by heart: crops, mixed batches, averaged weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.test_config import tiny_config
from tests.training.test_fit import Interrupted, interrupted_at, train_on
from training import augment
from training.averaging import averaging
from training.tasks.signa import mixing

pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def test_a_crop_is_a_part_of_the_tile_in_its_size() -> None:
    # The value of each pixel is its column: how much of the side is left can be read off.
    tile = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 3, (64, 64, 3)).copy()
    spans = []
    for seed in range(50):
        crop = augment.zoomed(tile, np.random.default_rng(seed), 0.5)
        assert crop.shape == tile.shape
        assert crop.dtype == np.uint8
        spans.append((int(crop.max()) - int(crop.min())) / 3 / 63)
    assert min(spans) == pytest.approx(0.5, abs=0.05)
    assert max(spans) == pytest.approx(1.0, abs=0.05)
    assert np.array_equal(augment.zoomed(tile, np.random.default_rng(0), 0.0), tile)


def test_half_of_the_batches_are_mixed_and_the_labels_as_the_tiles() -> None:
    torch.manual_seed(0)
    mix = mixing(0.4)
    truth = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    tiles = (truth * 200).repeat_interleave(8, dim=1).reshape(4, 2, 8, 1).expand(4, 2, 8, 3)
    mixed = 0
    for _ in range(200):
        found, labels = mix(tiles.clone(), truth.clone())
        assert torch.allclose(found.mean(dim=(2, 3)), labels * 200, atol=1e-3)
        mixed += not torch.equal(labels, truth)
    assert 70 < mixed < 130
    untouched = mixing(0.0)(tiles, truth)
    assert untouched[0] is tiles
    assert untouched[1] is truth


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
    config = tiny_config("signa", averaging=0.9, augmentation={"mixup": 0.4, "zoom": 0.3})
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
    moved = [name for name, mean in whole["state_dict"].items() if not torch.equal(mean, last[name])]
    assert "network.classifier.weight" in moved
    assert not [name for name in moved if name.endswith("num_batches_tracked")]
    for name in ("checkpoint.safetensors", "metrics.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
