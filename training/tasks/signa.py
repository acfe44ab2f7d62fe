"""Fitting and measuring SIGNA: which of the labels does a tile show?"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from tilesight.manifest import Strict
from training import augment, floors, metrics, run
from training.config import SignaRun
from training.datasets.ucm import part_stems, read_labels, read_tiles, scene_of
from training.models.backbone import load_base_weights
from training.models.signa import Signa, label_graph
from training.tasks.base import Measurement, Task, batches


class SignaCard(Strict):
    """The labels, and the edges of their graph: SIGNA's knowledge besides its weights."""

    labels: list[str]
    edges: list[tuple[int, int]]


@dataclass(frozen=True)
class SignaPart:
    """One part of the split: tiles (N, H, W, 3) and their labels (N, C)."""

    stems: list[str]
    tiles: NDArray[np.uint8]
    truth: NDArray[np.float32]


def read_part(data: Path, part: str, size: int) -> SignaPart:
    """The tiles and labels of a part of the split."""
    stems = part_stems(data, "ucm", part)
    return SignaPart(stems, read_tiles(data, stems, size), read_labels(data).matrix(stems))


def build(card: SignaCard, config: SignaRun) -> Signa:
    """The network for these labels, its weights not yet loaded."""
    edges = torch.tensor(card.edges, dtype=torch.int64).reshape(-1, 2).T.contiguous()
    return Signa(len(card.labels), edges, config.architecture)


class _TrainingTiles(Dataset[tuple[NDArray[np.float32], NDArray[np.float32]]]):
    def __init__(self, task: "SignaTask") -> None:
        self.task, self.part = task, task.train_part

    def __len__(self) -> int:
        return len(self.part.stems)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        rng = augment.generator(self.task.config.seed, self.task.current_epoch, index)
        tile, _ = augment.turned(self.part.tiles[index], rng)
        return augment.brightened(tile, rng), self.part.truth[index]


class SignaTask(Task):
    """SIGNA with UCM's training and validation tiles."""

    monitor = "val_f1_samples"
    config: SignaRun

    def __init__(self, config: SignaRun, data: Path, weights: str | None) -> None:
        super().__init__()
        self.config = config
        self.train_part = read_part(data, "train", config.image_size)
        self.val_part = read_part(data, "val", config.image_size)
        edges = label_graph(
            torch.from_numpy(self.train_part.truth), config.architecture.label_threshold
        )
        self._card = SignaCard(
            labels=read_labels(data).labels, edges=[(int(i), int(j)) for i, j in edges.T]
        )
        self.network: Signa = build(self._card, config)
        if weights is not None:
            load_base_weights(self.network.backbone, weights)
        self.loss = nn.BCEWithLogitsLoss()

    @property
    def card(self) -> SignaCard:
        """Labels and graph."""
        return self._card

    def training_set(self) -> _TrainingTiles:
        """Flipped, transposed and brightened tiles."""
        return _TrainingTiles(self)

    def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
        """Binary cross-entropy, the mean over tiles and labels."""
        tiles, truth = batch
        loss: Tensor = self.loss(self.network(tiles), truth)
        self.log("train_loss", loss, prog_bar=True, on_step=False, on_epoch=True)
        return loss

    def validate(self) -> dict[str, float]:
        """Figures of the validation split at threshold 0.5."""
        scores = predict(self.network, self.val_part.tiles)
        values = figures(self.val_part, scores)
        return {name: values[name] for name in ("f1_samples", "f1_micro", "f1_macro", "map")}


@torch.no_grad()
def predict(network: Signa, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The probability of each label, (N, C)."""
    network.eval()
    device = network.classifier.weight.device
    return np.concatenate(
        [network(batch.to(device)).sigmoid().cpu().numpy() for batch in batches(tiles)]
    )


def load(folder: Path, config: SignaRun) -> tuple[SignaCard, Signa]:
    """The card and the network of a run folder."""
    card = run.read_card(folder, SignaCard)
    network = build(card, config)
    run.load_checkpoint(network, config.model, folder / run.CHECKPOINT)
    return card, network.eval().to(run.device())


def evaluate(folder: Path, config: SignaRun, data: Path, part: str) -> Measurement:
    """The figures of a run's checkpoint on a part of the split."""
    _, network = load(folder, config)
    examples = read_part(data, part, config.image_size)
    return measure(examples, predict(network, examples.tiles), data)


def figures(part: SignaPart, scores: NDArray[np.float32]) -> dict[str, float]:
    """The label metrics of the scores at threshold 0.5."""
    half = np.full(scores.shape[1], 0.5, dtype=np.float32)
    return metrics.label_metrics(part.truth, scores, half)


def measure(part: SignaPart, scores: NDArray[np.float32], data: Path) -> Measurement:
    """The figures of the scores at threshold 0.5, with what label statistics alone would reach."""
    train = part_stems(data, "ucm", "train")
    train_truth = read_labels(data).matrix(train)
    return Measurement(
        tiles=len(part.stems),
        values=figures(part, scores),
        floors=floors.label_floors(
            train_truth,
            part.truth,
            [scene_of(stem) for stem in train],
            [scene_of(stem) for stem in part.stems],
        ),
        notes={"threshold": "0.5 for every label"},
    )
