"""Measuring a finished run on a part of its split."""

from pathlib import Path

from tilesight.errors import ConfigError, DataError
from training import run
from training.tasks.base import Measurement

PARTS = ("train", "val", "test")


def evaluate(folder: Path, data: Path, part: str, weights: str | None = None) -> Measurement:
    """The figures of a run folder's checkpoint on a part of its split.

    The base weights are only for the floors that need a pretrained network's features.

    Raises:
        ConfigError: no such part.
        DataError: the data folder lacks images or annotations.
        RunError: the run folder is incomplete.
    """
    if part not in PARTS:
        raise ConfigError(f"--split {part}: one of {', '.join(PARTS)} is needed")
    if not data.is_dir():
        raise DataError(f"--data {data}: no such folder")
    config, _ = run.read_run(folder)
    match config.model:
        case "signa":
            from training.tasks import signa

            return signa.evaluate(folder, config, data, part)
        case "jtts":
            from training.tasks import jtts

            return jtts.evaluate(folder, config, data, part, weights)
        case "spatialnet-vit":
            from training.tasks import spatialnet_vit

            return spatialnet_vit.evaluate(folder, config, data, part)
