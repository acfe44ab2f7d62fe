"""Measuring a finished run on a part of its split."""

from pathlib import Path

from tilesight.errors import ConfigError
from training import run
from training.datasets.folders import set_folder
from training.tasks.base import Measurement

PARTS = ("train", "val", "test")


def evaluate(
    folder: Path, data: Path, part: str, weights: str | None = None, dataset: str | None = None
) -> Measurement:
    """The figures of a run folder's checkpoint on a part of its split, or of another data set's.

    The base weights are only for the floors that need a pretrained network's features.

    Raises:
        ConfigError: no such part, or another data set that the model is not made for.
        DataError: the data folder lacks images or annotations.
        RunError: the run folder is incomplete.
    """
    _check(part)
    config, _ = run.read_run(folder)
    data = set_folder(dataset or config.dataset, data)
    if dataset is not None and config.model != "signa":
        raise ConfigError(f"--dataset: {config.model} is measured on its own data set alone")
    match config.model:
        case "signa":
            from training.tasks import signa

            return signa.evaluate(folder, config, data, part, dataset)
        case "jtts":
            from training.tasks import jtts

            return jtts.evaluate(folder, config, data, part, weights)
        case "spatialnet-vit":
            from training.tasks import spatialnet_vit

            return spatialnet_vit.evaluate(folder, config, data, part)


def reported(folder: Path, data: Path, part: str, out: Path) -> Measurement:
    """The figures of a SIGNA run's test part, once its report is written to `out`.

    Raises:
        ConfigError: another part, or a run of a model that has no report.
        DataError: the data folder lacks images or annotations.
        RunError: the run folder is incomplete.
    """
    _check(part)
    config, _ = run.read_run(folder)
    data = set_folder(config.dataset, data)
    if part != "test":
        raise ConfigError(f"--report: of the test part, not of {part}")
    if config.model != "signa":
        raise ConfigError(f"--report: {config.model} has none yet, signa has")
    from training.tasks import signa_report

    return signa_report.write_report(folder, config, data, out)


def _check(part: str) -> None:
    if part not in PARTS:
        raise ConfigError(f"--split {part}: one of {', '.join(PARTS)} is needed")
