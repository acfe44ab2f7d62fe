"""Fitting and measuring SIGNA: which of the labels does a tile show?"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset

from tilesight.errors import ConfigError, DataError
from tilesight.manifest import Strict
from training import augment, floors, metrics, run, thresholds
from training.config import SignaRun
from training.datasets.multilabel import MultiLabelSet, bare_stem, open_set
from training.datasets.splits import read_split
from training.label_figures import all_figures, half
from training.label_vectors import VectorSource, read_vectors
from training.models.backbone import load_base_weights
from training.models.label_graph import LabelGraph, label_graph
from training.models.signa import Signa
from training.tasks.base import Measurement, Task, batches

log = logging.getLogger("tilesight.training")

_NAMED_AT_MOST = 5


class SignaCard(Strict):
    """The labels, their graph and vectors: SIGNA's knowledge besides its weights.

    `edge_weights` are P(j given i) of the training tiles. `vectors` says where the label vectors
    come from; it is empty where they are learned.
    """

    labels: list[str]
    edges: list[tuple[int, int]]
    edge_weights: list[float]
    vectors: list[VectorSource] = Field(default_factory=list)

    @property
    def graph(self) -> LabelGraph:
        """The edges as tensors."""
        edges = torch.tensor(self.edges, dtype=torch.int64).reshape(-1, 2).T.contiguous()
        return LabelGraph(edges, torch.tensor(self.edge_weights, dtype=torch.float32))


@dataclass(frozen=True)
class SignaPart:
    """One part of the split: tiles (N, H, W, 3) and their labels (N, C)."""

    stems: list[str]
    tiles: NDArray[np.uint8]
    truth: NDArray[np.float32]


def read_part(data: Path, part: str, size: int, dataset: str = "ucm") -> SignaPart:
    """The tiles and labels of a part of the split.

    Tiles that the data folder lacks are left out, and named in the log.

    Raises:
        DataError: there is not one tile of the part, or a tile or its labels cannot be read.
    """
    tagged = open_set(dataset, data)
    stems = _present(tagged, part)
    return SignaPart(stems, tagged.tiles(stems, size), tagged.matrix(stems))


def _present(tagged: MultiLabelSet, part: str) -> list[str]:
    listed = tagged.part_stems(part)
    stems = tagged.present(listed)
    if not stems:
        raise DataError(
            f"{tagged.data}: none of the {len(listed)} tiles of {tagged.name}'s {part} part "
            "in its images folder"
        )
    if len(stems) < len(listed):
        missing = sorted(set(listed) - set(stems))
        log.warning(
            "%s: %d of %d tiles of the %s part are missing: %s%s",
            tagged.name,
            len(missing),
            len(listed),
            part,
            ", ".join(missing[:_NAMED_AT_MOST]),
            ", ..." if len(missing) > _NAMED_AT_MOST else "",
        )
    return stems


def build(card: SignaCard, config: SignaRun) -> Signa:
    """The network for these labels, its weights not yet loaded."""
    return Signa(len(card.labels), card.graph, config.architecture)


class _TrainingTiles(Dataset[tuple[NDArray[np.float32], NDArray[np.float32]]]):
    def __init__(self, task: "SignaTask") -> None:
        self.task, self.part = task, task.train_part

    def __len__(self) -> int:
        return len(self.part.stems)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        rng = augment.generator(self.task.config.seed, self.task.current_epoch, index)
        how = self.task.config.augmentation
        tile, _ = augment.turned(self.part.tiles[index], rng)
        if how.coarsened:
            tile = augment.coarsened(tile, rng, how.coarsened, how.coarsest)
        return augment.brightened(tile, rng, how.brightness), self.part.truth[index]


class SignaTask(Task):
    """SIGNA, or a rival, with the training and validation tiles of a multi-label set."""

    monitor = "val_f1_samples"
    config: SignaRun

    def __init__(
        self, config: SignaRun, data: Path, weights: str | None, vectors: Path | None = None
    ) -> None:
        super().__init__()
        self.config = config
        labels = open_set(config.dataset, data).labels
        values, sources = _label_vectors(config, labels, vectors)
        self.train_part = read_part(data, "train", config.image_size, config.dataset)
        self.val_part = read_part(data, "val", config.image_size, config.dataset)
        graph = label_graph(
            torch.from_numpy(self.train_part.truth), config.architecture.label_threshold
        )
        self._card = SignaCard(
            labels=labels,
            edges=[(int(i), int(j)) for i, j in graph.edges.T],
            edge_weights=[float(weight) for weight in graph.weights],
            vectors=sources,
        )
        self.network: Signa = build(self._card, config)
        if weights is not None:
            load_base_weights(self.network.backbone, weights)
        if values is not None and self.network.vectors is not None:
            self.network.vectors.values.copy_(torch.from_numpy(values))
        self.loss = nn.BCEWithLogitsLoss()

    @property
    def card(self) -> SignaCard:
        """Labels and graph."""
        return self._card

    def training_set(self) -> _TrainingTiles:
        """Flipped, transposed and brightened tiles, some coarser if that is configured."""
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

    def calibrate(self, folder: Path) -> None:
        """Chooses the labels' thresholds, by the weights as they were rounded and kept."""
        card, network = load(folder, self.config)
        scores = predict(network, self.val_part.tiles)
        thresholds.write(folder, thresholds.choose(card.labels, self.val_part.truth, scores))


def _label_vectors(
    config: SignaRun, labels: list[str], path: Path | None
) -> tuple[NDArray[np.float32] | None, list[VectorSource]]:
    """The vectors of the file, where the configuration wants some."""
    architecture = config.architecture
    if architecture.learned_vectors:
        if path is not None:
            raise ConfigError(f"--vectors {path}: architecture.label_vectors is learned, not file")
        return None, []
    if path is None:
        raise ConfigError("architecture.label_vectors is file: --vectors FILE is needed")
    return read_vectors(path, labels, architecture.label_vector_width)


@torch.no_grad()
def predict(network: Signa, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The probability of each label, (N, C)."""
    network.eval()
    device = next(network.parameters()).device
    return np.concatenate(
        [network(batch.to(device)).sigmoid().cpu().numpy() for batch in batches(tiles)]
    )


def load(folder: Path, config: SignaRun) -> tuple[SignaCard, Signa]:
    """The card and the network of a run folder."""
    card = run.read_card(folder, SignaCard)
    network = build(card, config)
    run.load_checkpoint(network, config.model, folder / run.CHECKPOINT)
    return card, network.eval().to(run.device())


def evaluate(
    folder: Path, config: SignaRun, data: Path, part: str, dataset: str | None = None
) -> Measurement:
    """The figures of a run's checkpoint on a part of its split, or of another set's.

    Raises:
        ConfigError: the other set has other labels.
        DataError: tiles or annotations are missing, or tiles of the part were trained on.
    """
    card, network = load(folder, config)
    tagged = open_set(dataset or config.dataset, data)
    if tagged.labels != card.labels:
        raise ConfigError(f"--dataset {tagged.name}: its labels are not those of the run")
    if tagged.name != config.dataset:
        _check_unseen(tagged, part, config.dataset)
    examples = read_part(data, part, config.image_size, tagged.name)
    return measure(
        examples, predict(network, examples.tiles), tagged, thresholds.read(folder, card.labels)
    )


def _check_unseen(tagged: MultiLabelSet, part: str, trained_on: str) -> None:
    """Raises a DataError where tiles of the part were trained on, or chose the epoch."""
    used = {bare_stem(stem) for known in ("train", "val") for stem in read_split(trained_on, known)}
    listed = tagged.part_stems(part)
    seen = sum(bare_stem(stem) in used for stem in listed)
    if seen:
        raise DataError(
            f"--dataset {tagged.name}: {seen} of the {len(listed)} tiles of its {part} part are "
            f"training or validation tiles of {trained_on}"
        )


def figures(part: SignaPart, scores: NDArray[np.float32]) -> dict[str, float]:
    """The label metrics of the scores at threshold 0.5."""
    return metrics.label_metrics(part.truth, scores, half(scores.shape[1]))


def measure(
    part: SignaPart,
    scores: NDArray[np.float32],
    tagged: MultiLabelSet,
    chosen: thresholds.Thresholds,
) -> Measurement:
    """All figures at threshold 0.5 and at the tuned ones, and what label statistics alone reach."""
    train = _present(tagged, "train")
    return Measurement(
        tiles=len(part.stems),
        values=all_figures(part.truth, scores, half(scores.shape[1])),
        tuned=all_figures(part.truth, scores, chosen.of(tagged.labels)),
        floors=floors.label_floors(
            tagged.matrix(train),
            part.truth,
            scenes_of(tagged, train),
            scenes_of(tagged, part.stems),
        ),
        notes={
            "threshold": "0.5 for every label; tuned: one a label, chosen on the validation tiles",
            "exported thresholds": chosen.reason,
        },
    )


def scenes_of(tagged: MultiLabelSet, stems: list[str]) -> list[str] | None:
    """The scene of each tile; None where the set has none."""
    scenes = [tagged.scene_of(stem) for stem in stems]
    return [scene for scene in scenes if scene is not None] or None
