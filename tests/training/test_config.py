from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tilesight.errors import ConfigError
from training.config import (
    MODEL_NAMES,
    FitConfig,
    JttsRun,
    ModelName,
    Run,
    RunConfig,
    SignaRun,
    SpatialNetVitRun,
    default_config_path,
    read_config,
    write_config,
)
from training.fit import adjusted

# Small enough to fit in seconds, and nothing the paper has is left out.
_FIT = {
    "epochs": 2,
    "batch_size": 2,
    "learning_rate": 1e-2,
    "backbone_learning_rate": 1e-3,
    "weight_decay": 1e-3,
}
_MODELS: dict[ModelName, dict[str, Any]] = {
    "signa": {"architecture": {"heads": 2, "label_vector_width": 8}},
    "jtts": {
        "min_word_count": 1,
        "architecture": {"hidden": 16, "embedding": 8, "max_length": 14, "max_beams": 4},
    },
    "spatialnet-vit": {
        "questions_per_tile": 2,
        "architecture": {
            "image_size": 64,
            "width": 16,
            "layers": 2,
            "heads": 2,
            "text_layers": 1,
        },
    },
}


def tiny_yaml(model: ModelName) -> dict[str, Any]:
    """A small configuration as a YAML file has it."""
    return deepcopy({"model": model, "image_size": 64, "fit": _FIT, **_MODELS[model]})


def tiny_config(model: ModelName, **changes: object) -> RunConfig:
    """A small configuration, with some of its values or its fit's values replaced."""
    kinds: dict[ModelName, type[Run]] = {
        "signa": SignaRun,
        "jtts": JttsRun,
        "spatialnet-vit": SpatialNetVitRun,
    }
    content = tiny_yaml(model)
    for name, value in changes.items():
        (content["fit"] if name in FitConfig.model_fields else content)[name] = value
    return kinds[model].model_validate(content)  # type: ignore[return-value]


def written(path: Path, content: object) -> Path:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_the_committed_configuration_is_of_its_model(model: ModelName) -> None:
    config = read_config(default_config_path(model))
    assert config.model == model
    assert config.image_size == 224


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_a_written_configuration_reads_back_with_its_defaults(
    model: ModelName, tmp_path: Path
) -> None:
    config = read_config(default_config_path(model))
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config
    spelled = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    assert spelled["fit"]["gradient_clip"] == 1.0  # in none of the committed files
    assert spelled["architecture"]["dropout"] == config.architecture.dropout


@pytest.mark.parametrize(
    ("model", "change", "named"),
    [
        ("signa", {"epoch": 3}, "epoch"),
        ("signa", {"fit": {**_FIT, "learning_rat": 1.0}}, "fit.learning_rat"),
        ("jtts", {"architecture": {"hiden": 8}}, "architecture.hiden"),
        ("spatialnet-vit", {"task_weights": {"answers": 1.0}}, "task_weights.answers"),
        ("signa", {"questions_per_tile": 3}, "questions_per_tile"),  # of another model
    ],
)
def test_an_unknown_key_is_named(
    model: ModelName, change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "config.yaml", tiny_yaml(model) | change)
    with pytest.raises(ConfigError, match=rf"{named}: Extra inputs") as caught:
        read_config(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("model", "change", "named"),
    [
        ("signa", {"seed": "42"}, "seed"),
        ("signa", {"seed": -1}, "seed"),
        ("signa", {"image_size": 100}, "image_size"),  # no multiple of 32
        ("signa", {"fit": {**_FIT, "epochs": 2.5}}, "fit.epochs"),
        ("signa", {"fit": {**_FIT, "warmup": 1.0}}, "fit.warmup"),
        ("signa", {"fit": {**_FIT, "precision": "16"}}, "fit.precision"),
        ("signa", {"fit": {"epochs": 1}}, "fit.batch_size"),
        ("signa", {"architecture": {"heads": 9}}, "architecture.heads"),
        ("signa", {"architecture": {"stage": "layer5"}}, "architecture.stage"),
        ("jtts", {"sentences_per_tile": 6}, "sentences_per_tile"),
        ("jtts", {"architecture": {"margin": 0}}, "architecture.margin"),
        ("spatialnet-vit", {"architecture": {"image_size": 60}}, "architecture.image_size"),
        ("spatialnet-vit", {"task_weights": {"count": -1}}, "task_weights.count"),
        ("signa", {"model": "resnet"}, "signa.*jtts.*spatialnet-vit"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_named(
    model: ModelName, change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "config.yaml", tiny_yaml(model) | change)
    with pytest.raises(ConfigError, match=named):
        read_config(path)


def test_every_problem_of_a_file_is_named_at_once(tmp_path: Path) -> None:
    path = written(tmp_path / "config.yaml", tiny_yaml("signa") | {"seed": -1, "sed": 1})
    with pytest.raises(ConfigError, match=r"seed: .*; .*sed: "):
        read_config(path)


def test_a_tile_size_the_transformer_was_not_built_for_is_refused(tmp_path: Path) -> None:
    content = tiny_yaml("spatialnet-vit") | {"image_size": 96}  # the architecture says 64
    with pytest.raises(ConfigError, match="image_size"):
        read_config(written(tmp_path / "config.yaml", content))


def test_a_width_that_the_heads_cannot_share_is_refused(tmp_path: Path) -> None:
    content = tiny_yaml("spatialnet-vit")
    content["architecture"] = {**content["architecture"], "heads": 3}  # of a width of 16
    with pytest.raises(ConfigError, match="heads"):
        read_config(written(tmp_path / "config.yaml", content))


def test_a_seed_that_numpy_cannot_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seed"):
        read_config(written(tmp_path / "config.yaml", tiny_yaml("signa") | {"seed": 2**32}))


@pytest.mark.parametrize("text", ["fit: [1, 2", "\tmodel: signa", "model: signa\nmodel"])
def test_a_file_that_is_not_yaml_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.yaml: not YAML"):
        read_config(path)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe model")
    with pytest.raises(ConfigError, match=r"config\.yaml: not YAML"):
        read_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("text", ["", "- model: signa", "signa", "fit: {epochs: 1}"])
def test_a_file_without_a_model_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.yaml: "):
        read_config(path)


@pytest.mark.parametrize("name", ["absent.yaml", "."])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration file"):
        read_config(tmp_path / name)


def test_what_the_command_line_says_replaces_the_files_values() -> None:
    config = tiny_config("signa")
    changed = adjusted(config, model="signa", seed=7, epochs=9, weights="IMAGENET1K_V1")
    assert (changed.seed, changed.fit.epochs) == (7, 9)
    assert changed.architecture.normalization == "imagenet"  # what torchvision trained on
    assert changed.fit.batch_size == config.fit.batch_size
    assert adjusted(config, model="signa", seed=None, epochs=None, weights="a.file") == config


def test_a_configuration_of_another_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"of jtts, signa was asked for"):
        adjusted(tiny_config("jtts"), model="signa", seed=None, epochs=None, weights=None)
