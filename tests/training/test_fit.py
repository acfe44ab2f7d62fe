import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from tests.training.fitting import train_on, tree
from tests.training.test_config import tiny_config, tiny_yaml, written
from tilesight.cli import build, main
from tilesight.errors import ConfigError, DataError, RunError, WeightsError
from tilesight.files import sha256
from training import run
from training.config import MODEL_NAMES, ModelName, SignaRun, read_config
from training.datasets.splits import split_sha256
from training.evaluate import evaluate
from training.models.signa import Signa
from training.tasks import signa as signa_task

pytestmark = [
    pytest.mark.usefixtures("own_tokens"),
    # Lightning's own call of a torch name that is going away
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    # tiles are in memory, workers would only copy them
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]

FIGURE: dict[ModelName, str] = {
    "signa": "f1_samples",
    "jtts": "cider",
    "spatialnet-vit": "overall",
}


# What a finished run holds


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_a_run_folder_tells_how_its_checkpoint_came_to_be(
    model: ModelName, finished: Path, ucm_miniature: Path
) -> None:
    folder = finished / model
    assert tree(folder) == {
        "config.yaml",
        "run.json",
        "card.json",
        "history.csv",
        "curves.png",
        "checkpoint.safetensors",
        "metrics.json",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        *(["thresholds.json"] if model == "signa" else []),
    }
    assert read_config(folder / "config.yaml") == tiny_config(model)
    _, provenance = run.read_run(folder)
    split = {"jtts": "ucm_captions"}.get(model, "ucm")
    assert provenance["split_sha256"] == {
        part: split_sha256(split, part) for part in ("train", "val", "test")
    }
    for name, digest in provenance["data_sha256"].items():
        assert digest == sha256(ucm_miniature / name)
    assert provenance["packages"]["torch"] == torch.__version__.split("+")[0]
    assert provenance["weights"] is None


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_the_figures_of_a_run_are_those_of_its_checkpoint(
    model: ModelName, finished: Path, ucm_miniature: Path
) -> None:
    told = json.loads((finished / model / "metrics.json").read_text())
    assert FIGURE[model] in told["values"]
    assert told["floors"]
    measured = evaluate(finished / model, ucm_miniature, "test")
    assert json.loads(json.dumps(measured.as_json())) == told


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_the_history_has_a_row_and_the_picture_a_panel_of_each_epoch(
    model: ModelName, finished: Path
) -> None:
    with (finished / model / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row in rows:
        assert float(row["train_loss"]) > 0
        assert 0 <= float(row[f"val_{FIGURE[model]}"])
    with Image.open(finished / model / "curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 400
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 2  # not blank


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_a_checkpoint_holds_the_best_epochs_weights_rounded(
    model: ModelName, finished: Path
) -> None:
    folder = finished / model
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    stored = load_file(folder / "checkpoint.safetensors")
    assert {f"network.{name}" for name in stored} == set(best)
    for name, tensor in stored.items():
        whole = best[f"network.{name}"]
        assert torch.equal(tensor, whole.half() if whole.is_floating_point() else whole), name


def test_the_weights_learnt_something(finished: Path, ucm_miniature: Path) -> None:
    config, _ = run.read_run(finished / "signa")
    assert isinstance(config, SignaRun)
    part = signa_task.read_part(ucm_miniature, "train", config.image_size)
    card, fitted = signa_task.load(finished / "signa", config)
    truth = torch.from_numpy(part.truth)

    def loss(network: Signa) -> float:
        scores = torch.from_numpy(signa_task.predict(network, part.tiles))
        return float(torch.nn.functional.binary_cross_entropy(scores, truth))

    assert loss(fitted) < 0.75 * loss(signa_task.build(card, config))


def test_a_checkpoint_may_be_kept_as_it_was_fitted(ucm_miniature: Path, tmp_path: Path) -> None:
    config = tiny_config("signa", epochs=1, checkpoint_precision="float32")
    train_on(ucm_miniature, config, tmp_path / "run")
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    for name, tensor in load_file(tmp_path / "run" / "checkpoint.safetensors").items():
        assert torch.equal(tensor, best["state_dict"][f"network.{name}"]), name


def test_base_weights_are_named_and_hashed(ucm_miniature: Path, tmp_path: Path) -> None:
    (tmp_path / "base.safetensors").write_bytes(b"")
    told = run.provenance(tiny_config("signa"), ucm_miniature, str(tmp_path / "base.safetensors"))
    assert told["weights"] == "base.safetensors"
    assert told["weights_sha256"] == sha256(tmp_path / "base.safetensors")
    named = run.provenance(tiny_config("signa"), ucm_miniature, "IMAGENET1K_V1")
    assert (named["weights"], named["weights_sha256"]) == ("IMAGENET1K_V1", None)


# What cannot be fitted or measured


def test_a_folder_that_holds_a_run_is_not_written_to(signa: Path, ucm_miniature: Path) -> None:
    before = {name: sha256(signa / name) for name in tree(signa)}
    with pytest.raises(RunError, match=r"holds a run already; --resume"):
        train_on(ucm_miniature, tiny_config("signa"), signa)
    assert {name: sha256(signa / name) for name in tree(signa)} == before


def test_a_file_cannot_be_a_run_folder(ucm_miniature: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match=r"--out .*run"):
        train_on(ucm_miniature, tiny_config("signa"), tmp_path / "run")


def test_a_data_folder_that_is_none_is_named(
    finished: Path, ucm_miniature: Path, tmp_path: Path
) -> None:
    for folder in (tmp_path / "absent", ucm_miniature / "captions.json"):
        with pytest.raises(DataError, match=rf"--data .*{folder.name}: no such folder"):
            train_on(folder, tiny_config("signa"), tmp_path / "run")
        with pytest.raises(DataError, match=rf"--data .*{folder.name}: no such folder"):
            evaluate(finished / "signa", folder, "test")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_a_data_folder_without_images_is_named(
    model: ModelName, ucm_miniature: Path, tmp_path: Path
) -> None:
    data = tmp_path / "empty"
    shutil.copytree(ucm_miniature, data, ignore=shutil.ignore_patterns("images"))
    with pytest.raises(DataError, match=str(data)):
        train_on(data, tiny_config(model), tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()  # a second try may use the folder


def test_more_tiles_a_step_than_there_are_is_refused(ucm_miniature: Path, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match="batch_size"):
        train_on(ucm_miniature, tiny_config("signa", batch_size=500), tmp_path / "run")


def test_a_part_that_no_split_has_is_named(finished: Path, ucm_miniature: Path) -> None:
    with pytest.raises(ConfigError, match=r"--split trial: one of train, val, test"):
        evaluate(finished / "signa", ucm_miniature, "trial")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.yaml", None, r"config\.yaml is missing; not a run folder"),
        ("run.json", None, r"run\.json is missing; not a run folder"),
        ("run.json", "{", r"run\.json: not JSON"),
        ("card.json", None, r"card\.json: missing; did the training finish"),
        ("card.json", '{"labels": []}', r"card\.json: .*edges"),
        ("checkpoint.safetensors", None, r"checkpoint\.safetensors: no checkpoint"),
    ],
)
def test_a_run_folder_with_a_damaged_file_is_refused(
    name: str, content: str | None, said: str, signa: Path, ucm_miniature: Path
) -> None:
    (signa / name).unlink()
    if content is not None:
        (signa / name).write_text(content)
    with pytest.raises(RunError, match=said):
        evaluate(signa, ucm_miniature, "test")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, ucm_miniature: Path) -> None:
    with pytest.raises(RunError, match=r"absent: no such run folder"):
        evaluate(tmp_path / "absent", ucm_miniature, "test")


def test_a_checkpoint_of_another_model_is_refused(
    signa: Path, finished: Path, ucm_miniature: Path
) -> None:
    shutil.copy(finished / "jtts" / "checkpoint.safetensors", signa)
    with pytest.raises(RunError, match=r"a checkpoint of 'jtts', not of 'signa'"):
        evaluate(signa, ucm_miniature, "test")


def test_a_checkpoint_of_another_width_is_refused(signa: Path, ucm_miniature: Path) -> None:
    content = tiny_yaml("signa")
    content["architecture"]["heads"] = 3
    written(signa / "config.yaml", content)
    with pytest.raises(WeightsError, match=r"\d+ tensors differ .*attention"):
        evaluate(signa, ucm_miniature, "test")


def test_a_checkpoint_of_garbage_is_refused(signa: Path, ucm_miniature: Path) -> None:
    (signa / "checkpoint.safetensors").write_bytes(b"this is no checkpoint at all" * 9)
    with pytest.raises(WeightsError, match=r"checkpoint\.safetensors: not a safetensors file"):
        evaluate(signa, ucm_miniature, "test")


# The command line


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build(), [str(one) for one in arguments])


def test_the_commands_fit_a_model_and_measure_it_again(ucm_miniature: Path, tmp_path: Path) -> None:
    config = written(tmp_path / "tiny.yaml", tiny_yaml("signa"))
    out = tmp_path / "run"
    told = command("train", "signa", "--data", ucm_miniature, "--config", config, "--out", out,
                   "--epochs", 1, "--seed", 5)  # fmt: skip
    assert told.exit_code == 0, told.output
    assert "epoch 1/1" in told.output
    assert "signa, test split, seed 5" in told.output
    assert read_config(out / "config.yaml").seed == 5
    assert {"thresholds.json", "metrics.json", "checkpoint.safetensors"} < tree(out)

    told = command("evaluate", out, "--data", ucm_miniature, "--json")
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout) == json.loads((out / "metrics.json").read_text())

    told = command("evaluate", out, "--data", ucm_miniature, "--split", "val")
    assert told.exit_code == 0, told.output
    assert f"val part of ucm ({split_sha256('ucm', 'val')[:12]})" in told.output
    assert "f1_samples" in told.output


def test_a_failing_command_says_why_and_exits_with_two(
    finished: Path, ucm_miniature: Path, tmp_path: Path
) -> None:
    typo = written(tmp_path / "typo.yaml", tiny_yaml("signa") | {"epoch": 3})
    jtts = written(tmp_path / "jtts.yaml", tiny_yaml("jtts"))
    out, data = ["--out", tmp_path / "run"], ["--data", ucm_miniature]
    done = finished / "signa"
    for arguments, said in (
        (["train", "signa", *out, "--data", tmp_path / "absent"], "no such folder"),
        (["train", "signa", *out, *data, "--config", typo], "epoch: Extra inputs"),
        (["train", "signa", *out, *data, "--config", jtts], "a configuration of jtts"),
        (["train", "signa", *out, *data, "--weights", "none.safetensors"], "no such file"),
        (["train", "signa", *out, *data, "--seed", "-1"], "seed"),
        (["train", "signa", "--out", done, *data], "holds a run already"),
        (["train", "resnet", *out, *data], "resnet"),
        (["evaluate", tmp_path / "absent", *data], "no such run folder"),
        (["evaluate", done, *data, "--split", "trial"], "--split trial"),
    ):
        told = command(*arguments)
        assert told.exit_code == 2, told.output
        assert said in told.stderr
        assert "Traceback" not in told.output


def test_main_exits_with_the_status_of_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(tmp_path / "absent"), "--data", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["tilesight", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "tilesight evaluate: " in capsys.readouterr().err


def test_a_weight_beyond_float16_is_named_and_not_rounded_to_infinity() -> None:
    state = {"small": torch.ones(2), "variance": torch.tensor([1e5])}
    with pytest.raises(WeightsError, match=r"variance: .*65504.*checkpoint_precision"):
        run.rounded(state, "float16")
    assert run.rounded(state, "float32")["variance"] == 1e5


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_a_data_folder_without_annotations_is_named_and_leaves_nothing(
    model: ModelName, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    first = run.annotations_of(tiny_config(model))[0]
    with pytest.raises(DataError, match=rf"{first}: no such file"):
        train_on(tmp_path / "data", tiny_config(model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_training_tells_of_its_epochs_alone(ucm_miniature: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny_yaml("signa")), encoding="utf-8")
    words = ["train", "signa", "--config", str(tmp_path / "config.yaml"), "--epochs", "1"]
    words += ["--data", str(ucm_miniature), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tilesight.cli", *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    told = [line for line in done.stdout.splitlines() if line.strip()]
    assert told[0].startswith("epoch 1/1 ")
    assert "GPU" not in done.stdout + done.stderr
    assert "Tip" not in done.stdout + done.stderr
