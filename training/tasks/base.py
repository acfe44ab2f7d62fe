"""What the three training tasks share: optimiser groups, loaders of an epoch, measurements."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from tilesight.manifest import Strict
from training.config import FitConfig, RunConfig
from training.models.backbone import Backbone

EVALUATION_BATCH = 32


@dataclass(frozen=True)
class Measurement:
    """Figures of one split, the floors that show what they are worth, and notes on the protocol."""

    tiles: int
    values: dict[str, float]
    floors: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    tuned: dict[str, float] = field(default_factory=dict)  # with the run's own thresholds

    def as_json(self) -> dict[str, Any]:
        """The figures as JSON writes them."""
        return {
            "tiles": self.tiles,
            "values": self.values,
            **({"tuned": self.tuned} if self.tuned else {}),
            "floors": self.floors,
            "notes": self.notes,
        }


def batches(tiles: NDArray[np.uint8], size: int = EVALUATION_BATCH) -> Iterator[Tensor]:
    """The tiles (N, H, W, 3) in their order, `size` at a time."""
    for start in range(0, len(tiles), size):
        yield torch.from_numpy(tiles[start : start + size])


class EpochOrder(Sampler[int]):
    """The examples in a random order of the task's seed and current epoch.

    The epoch is read when an epoch begins: Lightning makes the loader before it restores the epoch
    of a run that is resumed.
    """

    def __init__(self, task: "Task", count: int) -> None:
        self.task, self.count = task, count

    def __len__(self) -> int:
        """How many examples an epoch has."""
        return self.count

    def __iter__(self) -> Iterator[int]:
        """The examples' places."""
        seed = self.task.config.seed * 1000 + self.task.current_epoch
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(seed))
        return iter(order.tolist())


class Task(L.LightningModule, ABC):
    """A network with its training data: what Lightning fits."""

    monitor: str
    network: nn.Module
    config: RunConfig

    @property
    @abstractmethod
    def card(self) -> Strict:
        """What besides the weights makes the network mean something (labels, words, answers)."""

    @abstractmethod
    def training_set(self) -> "Dataset[Any]":
        """The training examples, as the current epoch sees them whenever one is read."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Figures of the validation split."""

    def calibrate(self, folder: Path) -> None:
        """Chooses on the validation split what the finished weights leave open; nothing here."""

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches in an order that depends on seed and epoch alone."""
        examples = self.training_set()
        return DataLoader(
            examples,
            batch_size=self.config.fit.batch_size,
            sampler=EpochOrder(self, len(examples)),  # type: ignore[arg-type]
            # A loader draws a seed for its workers whenever it is opened, which is twice an epoch
            # and once in a resumed one: not from the generator that dropout uses.
            generator=torch.Generator(),
            drop_last=True,
        )

    def on_train_epoch_start(self) -> None:
        """Seeds dropout by the epoch, so that a resumed run goes on as an unbroken one."""
        torch.manual_seed(self.config.seed * 1000 + self.current_epoch)

    def val_dataloader(self) -> DataLoader[Any]:
        """One empty step: `validate` walks over the split itself."""
        return DataLoader([0])  # type: ignore[arg-type]

    def validation_step(self, _batch: Any, _index: int) -> None:  # noqa: ANN401 (Lightning's)
        """Logs the figures of the validation split."""
        self.log_dict({f"val_{name}": value for name, value in self.validate().items()})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with one cosine cycle over all steps."""
        fit = self.config.fit
        groups = parameter_groups(self.network, fit)
        optimizer = torch.optim.AdamW(groups, weight_decay=fit.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in groups],
            total_steps=int(self.trainer.estimated_stepping_batches),
            pct_start=fit.warmup,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def parameter_groups(network: nn.Module, fit: FitConfig) -> list[dict[str, Any]]:
    """The pretrained CNN's parameters with their own rate, and all others."""
    pretrained = {
        id(parameter)
        for module in network.modules()
        if isinstance(module, Backbone)
        for parameter in module.parameters()
    }
    slow = [p for p in network.parameters() if id(p) in pretrained]
    fast = [p for p in network.parameters() if id(p) not in pretrained]
    groups: list[dict[str, Any]] = [{"params": fast, "lr": fit.learning_rate}]
    if slow:
        groups.append({"params": slow, "lr": fit.backbone_learning_rate})
    return groups
