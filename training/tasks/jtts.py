"""Fitting and measuring JTTS: a sentence about a tile."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from tilesight.manifest import Strict
from tilesight.questions import sentence, vocabulary_of
from training import augment, floors, metrics, run
from training.config import JttsRun
from training.datasets.captions import attribute_matrix, read_attributes, read_captions
from training.datasets.ucm import part_stems, read_tiles
from training.losses import dynamic_contrast_loss
from training.models.backbone import Backbone, Normalize, load_base_weights
from training.models.jtts import BeamSearch, Jtts
from training.sentences import EOS, PAD, SPECIALS, sentence_ids
from training.tasks.base import Measurement, Task, batches

DEFAULT_BEAMS = 3


class JttsCard(Strict):
    """The words and attributes that JTTS speaks of."""

    vocabulary: list[str]
    attributes: list[str]


@dataclass(frozen=True)
class JttsPart:
    """One part of the captions' split: tiles (N, H, W, 3) and each tile's sentences."""

    stems: list[str]
    tiles: NDArray[np.uint8]
    captions: dict[str, list[str]]


def read_part(data: Path, part: str, size: int) -> JttsPart:
    """The tiles and sentences of a part of UCM-Captions' own split."""
    stems = part_stems(data, "ucm_captions", part)
    captions = read_captions(data)
    return JttsPart(stems, read_tiles(data, stems, size), {stem: captions[stem] for stem in stems})


def build(card: JttsCard, config: JttsRun) -> Jtts:
    """The network for these words and attributes, its weights not yet loaded."""
    return Jtts(len(card.vocabulary), len(card.attributes), config.architecture)


_Example = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]


class _TrainingTiles(Dataset[_Example]):
    def __init__(self, task: "JttsTask") -> None:
        self.task = task

    def __len__(self) -> int:
        return len(self.task.train_part.stems)

    def __getitem__(self, index: int) -> _Example:
        task = self.task
        rng = augment.generator(task.config.seed, task.current_epoch, index)
        # Captions tell vertical from horizontal, so tiles are flipped and never transposed.
        tile, _ = augment.turned(task.train_part.tiles[index], rng, transpose=False)
        spoken = task.sentences[index]
        drawn = rng.choice(len(spoken), size=task.config.sentences_per_tile, replace=False)
        return augment.brightened(tile, rng), spoken[drawn], task.train_attributes[index]


class JttsTask(Task):
    """JTTS with the captions' training and validation tiles."""

    monitor = "val_cider"
    config: JttsRun

    def __init__(self, config: JttsRun, data: Path, weights: str | None) -> None:
        super().__init__()
        self.config = config
        self.train_part = read_part(data, "train", config.image_size)
        self.val_part = read_part(data, "val", config.image_size)
        spoken = [self.train_part.captions[stem] for stem in self.train_part.stems]
        self._card = JttsCard(
            vocabulary=vocabulary_of(
                (text for texts in spoken for text in texts), SPECIALS, config.min_word_count
            ),
            attributes=read_attributes(),
        )
        length = config.architecture.max_length
        self.sentences = [
            np.stack([sentence_ids(text, self._card.vocabulary, length) for text in texts])
            for texts in spoken
        ]
        self.train_attributes = attribute_matrix(
            self.train_part.captions, self.train_part.stems, self._card.attributes
        )
        self.network: Jtts = build(self._card, config)
        if weights is not None:
            load_base_weights(self.network.backbone, weights)

    @property
    def card(self) -> JttsCard:
        """Words and attributes."""
        return self._card

    def training_set(self) -> _TrainingTiles:
        """Flipped and brightened tiles, each with some of its sentences."""
        return _TrainingTiles(self)

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], _index: int) -> Tensor:
        """L_cap + L_bce + L_d, equations 31-34."""
        tiles, sentences, attributes = batch
        longest = int((sentences != PAD).sum(dim=2).max())
        sentences = sentences[:, :, :longest]
        words, attribute_logits = self.network(tiles, sentences)
        spoken = F.cross_entropy(
            words.flatten(0, 2), sentences.flatten(), ignore_index=PAD, label_smoothing=0.1
        )
        tagged = F.binary_cross_entropy_with_logits(attribute_logits, attributes)
        contrast = dynamic_contrast_loss(
            attribute_logits.sigmoid(), attributes, self.config.architecture.margin
        )
        loss = spoken + tagged + contrast
        self.log_dict(
            {"train_loss": loss, "train_words": spoken, "train_attributes": tagged},
            on_step=False,
            on_epoch=True,
        )
        return loss

    def validate(self) -> dict[str, float]:
        """CIDEr and BLEU-4 of greedy sentences on the validation split."""
        tokens = predict(self.network, self.val_part.tiles, beams=1)
        spoken = sentences_of(tokens, self._card)
        values = metrics.caption_metrics(
            self.val_part.captions,
            dict(zip(self.val_part.stems, spoken, strict=True)),
            meteor=False,
        )
        return {name: values[name] for name in ("cider", "bleu_4", "rouge_l")}


@torch.no_grad()
def predict(network: Jtts, tiles: NDArray[np.uint8], beams: int) -> NDArray[np.int64]:
    """The best sentence of each tile, (N, T) token ids."""
    network.eval()
    device = network.attribute_vectors.device
    search = BeamSearch(network)
    return np.concatenate(
        [
            search(batch.to(device), torch.full((len(batch), 1), beams, device=device))[0][:, 0]
            .cpu()
            .numpy()
            for batch in batches(tiles)
        ]
    )


def sentences_of(tokens: NDArray[np.int64], card: JttsCard) -> list[str]:
    """The sentences that the tokens spell."""
    return [sentence(row.tolist(), card.vocabulary, EOS) for row in tokens]


def load(folder: Path, config: JttsRun) -> tuple[JttsCard, Jtts]:
    """The card and the network of a run folder."""
    card = run.read_card(folder, JttsCard)
    network = build(card, config)
    run.load_checkpoint(network, config.model, folder / run.CHECKPOINT)
    return card, network.eval().to(run.device())


def measure(
    part: JttsPart, spoken: Sequence[str], train_captions: list[str] | None = None
) -> Measurement:
    """The figures of the sentences against each tile's references."""
    values = metrics.caption_metrics(
        part.captions, dict(zip(part.stems, spoken, strict=True)), train_captions
    )
    return Measurement(len(part.stems), values, notes={"tokenizer": metrics.tokenizer_name()})


def evaluate(
    folder: Path, config: JttsRun, data: Path, part: str, weights: str | None = None
) -> Measurement:
    """The figures of a run's checkpoint: beam search, and greedy beside it.

    The nearest-neighbour floor needs the base weights; without them it is left out.
    """
    card, network = load(folder, config)
    examples = read_part(data, part, config.image_size)
    train = read_part(data, "train", config.image_size)
    said = [text for texts in train.captions.values() for text in texts]
    best = sentences_of(predict(network, examples.tiles, DEFAULT_BEAMS), card)
    greedy = sentences_of(predict(network, examples.tiles, 1), card)
    measured = measure(examples, best, said)
    greedy_cider = measure(examples, greedy).values["cider"]
    features = None
    if weights is not None:
        vectors = [
            _frozen_features(tiles, weights, config) for tiles in (train.tiles, examples.tiles)
        ]
        stems = [*train.stems, *examples.stems]
        features = dict(zip(stems, np.concatenate(vectors), strict=True))
    return Measurement(
        tiles=measured.tiles,
        values={**measured.values, "cider_greedy": greedy_cider},
        floors=floors.caption_floors(train.captions, examples.captions, features),
        notes={**measured.notes, "decoding": f"beam search of width {DEFAULT_BEAMS}"},
    )


@torch.no_grad()
def _frozen_features(
    tiles: NDArray[np.uint8], weights: str, config: JttsRun
) -> NDArray[np.float32]:
    """(N, 1280) pooled features of the untouched base weights."""
    backbone = Backbone("layer4").eval()
    load_base_weights(backbone, weights)
    normalize = Normalize(config.architecture.normalization)
    return np.concatenate(
        [backbone(normalize(batch)).mean(dim=(2, 3)).numpy() for batch in batches(tiles)]
    )
