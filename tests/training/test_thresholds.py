import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tilesight.errors import RunError
from training import thresholds
from training.label_figures import tuned_thresholds

LABELS = ["trees", "water", "sand"]


def scored(
    boundary: float, noise: float, tiles: int = 60
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Labels that begin at the boundary, seen through noise."""
    generator = np.random.default_rng(5)
    scores = generator.random((tiles, 3))
    truth = scores + generator.normal(0, noise, scores.shape) >= boundary
    return truth.astype(np.int64), scores


def test_where_labels_begin_lower_the_tuned_thresholds_are_taken() -> None:
    truth, scores = scored(boundary=0.3, noise=0.02)
    chosen = thresholds.choose(LABELS, truth, scores)
    assert chosen.rule == "tuned"
    assert chosen.held_out_f1["tuned"] > chosen.held_out_f1["half"] + 0.05
    assert chosen.served(LABELS).tolist() == tuned_thresholds(truth, scores).tolist()
    assert chosen.served(LABELS) == pytest.approx([0.3] * 3, abs=0.06)


def test_where_tuning_only_learns_noise_a_half_is_kept() -> None:
    truth, scores = scored(boundary=0.5, noise=0.5, tiles=20)
    chosen = thresholds.choose(LABELS, truth, scores)
    # On the tiles they were chosen on they look better; on others they are not.
    assert chosen.rule == "half"
    assert chosen.served(LABELS).tolist() == [0.5] * 3
    assert chosen.of(LABELS).tolist() != [0.5] * 3


def test_a_gain_within_its_standard_error_is_none() -> None:
    truth, scores = scored(boundary=0.46, noise=0.05)
    chosen = thresholds.choose(LABELS, truth, scores)
    gain = chosen.held_out_f1["tuned"] - chosen.held_out_f1["half"]
    assert 0 < gain <= chosen.standard_error
    assert chosen.rule == "half"


def test_one_tile_is_too_few_to_hold_any_out() -> None:
    chosen = thresholds.choose(LABELS, np.array([[1, 0, 1]]), np.array([[0.4, 0.1, 0.9]]))
    assert chosen.rule == "half"
    assert chosen.held_out_f1["half"] == chosen.held_out_f1["tuned"]
    assert chosen.standard_error == 0


def test_thresholds_follow_their_labels_through_the_file(tmp_path: Path) -> None:
    chosen = thresholds.choose(LABELS, *scored(boundary=0.3, noise=0.02))
    thresholds.write(tmp_path, chosen)
    assert thresholds.read(tmp_path, LABELS) == chosen
    turned = LABELS[::-1]
    assert chosen.served(turned).tolist() == chosen.served(LABELS).tolist()[::-1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rule": "best"}, "rule"),
        ({"tuned": {"trees": 0.5}}, "of other labels"),
        ({"tuned": {"trees": 1.5, "water": 0.5, "sand": 0.5}}, "less than or equal to 1"),
    ],
)
def test_a_damaged_file_is_an_error(change: dict[str, object], told: str, tmp_path: Path) -> None:
    thresholds.write(tmp_path, thresholds.choose(LABELS, *scored(0.3, 0.02)))
    path = tmp_path / "thresholds.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RunError, match=told):
        thresholds.read(tmp_path, LABELS)


def test_a_run_without_the_file_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"thresholds\.json: missing; did the training finish"):
        thresholds.read(tmp_path, LABELS)
