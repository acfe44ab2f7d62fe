"""Fitting a model: from a configuration and a data folder to a finished run folder."""

import csv
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger

from tilesight.errors import ConfigError, DataError, RunError
from tilesight.files import write_text, written_whole
from training import run
from training.averaging import averaging
from training.config import RunConfig, write_config
from training.datasets.folders import set_folder
from training.evaluate import evaluate
from training.models.backbone import weight_names
from training.plots import draw_curves
from training.tasks.base import Measurement, Task

LOG = "log"
LAST = Path(run.CHECKPOINTS) / "last.ckpt"
BEST = Path(run.CHECKPOINTS) / "best.ckpt"


def make_task(
    config: RunConfig, data: Path, weights: str | None, vectors: Path | None = None
) -> Task:
    """The model's task with its data read and its base weights loaded."""
    match config.model:
        case "signa":
            from training.tasks.signa import SignaTask

            return SignaTask(config, data, weights, vectors)
        case "jtts":
            from training.tasks.jtts import JttsTask

            return JttsTask(config, data, weights)
        case "spatialnet-vit":
            from training.tasks.spatialnet_vit import SpatialNetVitTask

            return SpatialNetVitTask(config, data, weights)


def adjusted(
    config: RunConfig, *, model: str, seed: int | None, epochs: int | None, weights: str | None
) -> RunConfig:
    """The configuration with what the command line says in its place.

    Raises:
        ConfigError: the configuration is of another model.
    """
    if config.model != model:
        raise ConfigError(f"--config: a configuration of {config.model}, {model} was asked for")
    changes: dict[str, Any] = {}
    if seed is not None:
        changes["seed"] = seed
    if epochs is not None:
        changes["fit"] = config.fit.model_copy(update={"epochs": epochs})
    backbone = config.architecture.backbone if config.model == "signa" else "mobilenet_v2"
    if weights is not None and weights in weight_names(backbone):
        # torchvision's weights expect the ImageNet statistics.
        architecture = config.architecture.model_copy(update={"normalization": "imagenet"})
        changes["architecture"] = architecture
    return config.model_copy(update=changes)


class EpochReport(Callback):
    """Tells each epoch's figures in a line, for logs that show no progress bar."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def on_validation_epoch_end(self, trainer: L.Trainer, _module: L.LightningModule) -> None:
        """Says the validation figures."""
        if trainer.sanity_checking:
            return
        figures = " ".join(
            f"{name}={float(value):.4f}" for name, value in sorted(trainer.callback_metrics.items())
        )
        self.say(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs} {figures}")


def train(
    config: RunConfig,
    data: Path,
    weights: str | None,
    out: Path,
    *,
    vectors: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = lambda _line: None,
) -> Measurement:
    """Fits the model and returns its figures on the test split.

    Raises:
        DataError: the data folder lacks images or annotations.
        RunError: `out` holds another run, or nothing to resume.
        WeightsError: the base weights do not fit.
    """
    data = set_folder(config.dataset, data)
    if vectors is not None and config.model != "signa":
        raise ConfigError(f"--vectors {vectors}: {config.model} has no label vectors")
    made_of = run.provenance(config, data, weights, vectors)
    _check_folder(config, made_of, out, resume)
    # Of what Lightning tells besides, half is of devices that are not there, the rest of services.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    L.seed_everything(config.seed, verbose=False)
    task = make_task(config, data, weights, vectors)
    if len(task.training_set()) < config.fit.batch_size:
        raise ConfigError(f"fit.batch_size: {config.fit.batch_size}, more than there are tiles")
    if not resume:
        write_config(config, out / run.CONFIG)
        run.write_json(out / run.PROVENANCE, made_of)
        write_text(out / run.CARD, task.card.model_dump_json(indent=2) + "\n")

    best_of = ModelCheckpoint(
        dirpath=out / run.CHECKPOINTS,
        filename="best",
        monitor=task.monitor,
        mode="max",
        enable_version_counter=False,
    )
    each = ModelCheckpoint(
        dirpath=out / run.CHECKPOINTS, filename="last", enable_version_counter=False
    )
    callbacks: list[Callback] = [best_of, each, EpochReport(say)]
    if config.fit.averaging:
        callbacks.append(averaging(config.fit.averaging))
    if progress:
        callbacks.append(RichProgressBar())
    trainer = L.Trainer(
        default_root_dir=out,
        max_epochs=config.fit.epochs,
        precision=config.fit.precision,
        gradient_clip_val=config.fit.gradient_clip,
        callbacks=callbacks,
        logger=CSVLogger(out, name=LOG, version=f"{len(_logs(out)):03d}"),
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
    )
    trainer.fit(task, ckpt_path=str(out / LAST) if resume else None, weights_only=True)
    _write_history(out)

    best = torch.load(out / BEST, map_location="cpu", weights_only=True)
    task.load_state_dict(best["state_dict"])
    run.save_checkpoint(task.network, config, out / run.CHECKPOINT)
    task.calibrate(out)
    measurement = evaluate(out, data, "test", weights)
    run.write_json(out / run.METRICS, measurement.as_json())
    return measurement


def _check_folder(config: RunConfig, made_of: dict[str, Any], out: Path, resume: bool) -> None:
    """Checks that a new run has its folder to itself, or that the one to resume is the same run."""
    if not resume:
        if (out / run.CONFIG).exists():
            raise RunError(f"--out {out}: holds a run already; --resume goes on with it")
        if out.exists() and not out.is_dir():
            raise RunError(f"--out {out}: not a folder")
        return
    if not (out / LAST).is_file():
        raise RunError(f"--resume: {out} holds no checkpoint to go on from")
    if (out / run.METRICS).exists():
        raise RunError(f"--resume: {out} is finished")
    started, began_with = run.read_run(out)
    if started != config:
        raise ConfigError(f"--resume: the configuration differs from {out / run.CONFIG}")
    for name in ("split_sha256", "data_sha256"):
        if began_with[name] != made_of[name]:
            raise DataError(f"--resume: {name} differs from {out / run.PROVENANCE}")


def _logs(out: Path) -> list[Path]:
    """Lightning's logs: one of the first part, one of each time that the run went on."""
    return sorted((out / LOG).glob("*"))


def _write_history(out: Path) -> None:
    """One row an epoch, from the logs of all parts of the run."""
    rows: dict[int, dict[str, Any]] = {}
    for part in _logs(out):
        path = part / "metrics.csv"
        if not path.is_file():
            continue
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                row = rows.setdefault(int(line["epoch"]), {"epoch": int(line["epoch"]) + 1})
                row.update(
                    {name: value for name, value in line.items() if value and name != "epoch"}
                )
    if not rows:
        return  # written before the run was interrupted
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    with written_whole(out / run.HISTORY) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows[epoch] for epoch in sorted(rows))
    draw_curves(out / run.HISTORY, out / run.CURVES)
    shutil.rmtree(out / LOG)
