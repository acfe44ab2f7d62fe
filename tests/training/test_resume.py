import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.training.fitting import Interrupted, interrupted_at, raise_interrupted, train_on, tree
from tests.training.test_config import tiny_config
from tilesight.errors import ConfigError, DataError, RunError
from training.config import MODEL_NAMES, ModelName
from training.tasks import signa as signa_task

pytestmark = [
    pytest.mark.usefixtures("own_tokens"),
    # Lightning's own call of a torch name that is going away
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    # tiles are in memory, workers would only copy them
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # what a resumed run is for
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(
    model: ModelName, finished: Path, ucm_miniature: Path, tmp_path: Path
) -> None:
    config = tiny_config(model)
    with pytest.raises(Interrupted):
        train_on(ucm_miniature, config, tmp_path / "run", say=interrupted_at("epoch 2/2"))
    assert "checkpoint.safetensors" not in tree(tmp_path / "run")
    lines: list[str] = []
    measured = train_on(ucm_miniature, config, tmp_path / "run", resume=True, say=lines.append)
    assert [line.split()[1] for line in lines] == ["2/2"]

    unbroken = finished / model
    whole, resumed = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        for folder in (unbroken, tmp_path / "run")
    )
    assert resumed["epoch"] == whole["epoch"] == 1
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], tensor), name
    assert tree(tmp_path / "run") == tree(unbroken)
    for name in ("checkpoint.safetensors", "history.csv", "metrics.json"):
        assert (tmp_path / "run" / name).read_bytes() == (unbroken / name).read_bytes(), name
    assert measured.as_json() == json.loads((unbroken / "metrics.json").read_text())


def test_a_resumed_run_goes_on_after_the_newest_epoch_not_the_best(
    ucm_miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        signa_task.SignaTask,
        "validate",
        lambda task: {"f1_samples": 0.5 - 0.1 * task.current_epoch},
    )
    config = tiny_config("signa", epochs=3)
    with pytest.raises(Interrupted):
        train_on(ucm_miniature, config, tmp_path / "run", say=interrupted_at("epoch 3/3"))
    lines: list[str] = []
    train_on(ucm_miniature, config, tmp_path / "run", resume=True, say=lines.append)
    assert [line.split()[1] for line in lines] == ["3/3"]
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == 0


def test_the_history_of_a_run_resumed_twice_has_every_epoch(
    ucm_miniature: Path, tmp_path: Path
) -> None:
    config = tiny_config("signa", epochs=3)
    for epoch in (2, 3):
        with pytest.raises(Interrupted):
            train_on(
                ucm_miniature,
                config,
                tmp_path / "run",
                resume=epoch > 2,
                say=interrupted_at(f"epoch {epoch}/3"),
            )
    train_on(ucm_miniature, config, tmp_path / "run", resume=True)
    with (tmp_path / "run" / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert all(row["train_loss"] and row["val_f1_samples"] for row in rows)


def test_a_run_interrupted_while_it_is_measured_can_be_finished(
    ucm_miniature: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("training.fit.evaluate", raise_interrupted)
        train_on(ucm_miniature, tiny_config("signa"), out)
    train_on(ucm_miniature, tiny_config("signa"), out, resume=True)
    for name in ("checkpoint.safetensors", "history.csv", "metrics.json"):
        assert (out / name).read_bytes() == (finished / "signa" / name).read_bytes(), name


# What cannot be resumed


def test_without_a_checkpoint_there_is_nothing_to_resume(
    signa: Path, ucm_miniature: Path, tmp_path: Path
) -> None:
    (signa / "checkpoints" / "last.ckpt").unlink()
    for folder in (signa, tmp_path / "absent"):
        with pytest.raises(RunError, match=r"--resume: .* no checkpoint"):
            train_on(ucm_miniature, tiny_config("signa"), folder, resume=True)


def test_a_finished_run_is_not_resumed(signa: Path, ucm_miniature: Path) -> None:
    with pytest.raises(RunError, match=r"--resume: .* is finished"):
        train_on(ucm_miniature, tiny_config("signa"), signa, resume=True)


@pytest.fixture
def unfinished(signa: Path) -> Path:
    """A run as it is before its checkpoint is written."""
    for name in ("checkpoint.safetensors", "metrics.json"):
        (signa / name).unlink()
    return signa


def test_another_configuration_does_not_resume_a_run(unfinished: Path, ucm_miniature: Path) -> None:
    with pytest.raises(ConfigError, match=r"--resume: the configuration differs"):
        train_on(ucm_miniature, tiny_config("signa", epochs=3), unfinished, resume=True)


def test_other_annotations_do_not_resume_a_run(
    unfinished: Path, ucm_miniature: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(ucm_miniature, tmp_path / "data")
    with (data / "multilabels.tsv").open("a") as file:
        file.write("\n")
    with pytest.raises(DataError, match=r"--resume: data_sha256 differs"):
        train_on(data, tiny_config("signa"), unfinished, resume=True)
