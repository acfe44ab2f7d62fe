"""Fitting and measuring SpatialNet-ViT: answers, land use, captions and counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from tilesight.errors import ConfigError
from tilesight.manifest import AnswerHead, Strict
from tilesight.questions import question_ids, sentence, vocabulary_of
from training import augment, floors, metrics, run
from training.config import SpatialNetVitRun
from training.datasets.captions import read_captions
from training.datasets.questions import (
    Question,
    all_presence_questions,
    answer_list,
    answer_type,
    count_of,
    paraphrases,
    presence_questions,
    questions,
)
from training.datasets.ucm import SCENES, part_stems, read_labels, read_tiles, scene_of
from training.models.backbone import load_base_weights
from training.models.spatialnet_vit import HybridPatches, SpatialNetVit
from training.sentences import BOS, EOS, PAD, SPECIALS, sentence_ids
from training.tasks.base import Measurement, Task, batches

QUESTION_SPECIALS = ("<pad>", "<unk>")
DRAWS = 4
KIND_WEIGHTS = {"presence": 3.0, "theme": 1.0, "count": 1.5, "location": 1.5}
NO_ANSWER = -100  # what torch's cross-entropy passes over


class SpatialNetVitCard(Strict):
    """The words it reads, the answers it chooses from, the scenes and words it names."""

    vocabulary: list[str]
    answers: list[str]
    answer_types: list[str]
    scenes: list[str]
    caption_vocabulary: list[str]


@dataclass(frozen=True)
class SpatialNetVitPart:
    """One part of the split: tiles (N, H, W, 3), their questions and captions."""

    stems: list[str]
    tiles: NDArray[np.uint8]
    questions: list[Question]
    captions: dict[str, list[str]]

    def grouped(self, asked: Sequence[Question]) -> dict[str, list[Question]]:
        """The questions of each tile."""
        of_tile: dict[str, list[Question]] = {stem: [] for stem in self.stems}
        for question in asked:
            of_tile[question.stem].append(question)
        return of_tile


def read_part(data: Path, part: str, size: int, seed: int) -> SpatialNetVitPart:
    """The tiles, questions and captions of a part of the split."""
    stems = part_stems(data, "ucm", part)
    captions = read_captions(data)
    return SpatialNetVitPart(
        stems,
        read_tiles(data, stems, size),
        questions(data, stems, seed),
        {stem: captions[stem] for stem in stems},
    )


def part_questions(data: Path, part: SpatialNetVitPart, seed: int) -> list[Question]:
    """The part's questions with the presence questions drawn several times over.

    Each draw has other absent labels and other wordings; the first is the part's own.
    """
    table = read_labels(data)
    more = (presence_questions(table, part.stems, seed + draw) for draw in range(1, DRAWS))
    return [*part.questions, *(question for drawn in more for question in drawn)]


def reading_head(card: SpatialNetVitCard, config: SpatialNetVitRun) -> AnswerHead:
    """How questions are read: what the bundle's manifest says of them too."""
    return AnswerHead(
        encoder="spatialnet_vit_encoder",
        vocabulary=card.vocabulary,
        max_tokens=config.architecture.max_question,
        answers=card.answers,
        answer_types=card.answer_types,
    )


def build(card: SpatialNetVitCard, config: SpatialNetVitRun) -> SpatialNetVit:
    """The network for this card, its weights not yet loaded."""
    return SpatialNetVit(
        len(card.vocabulary),
        len(card.answers),
        len(card.scenes),
        len(card.caption_vocabulary),
        config.architecture,
    )


@dataclass(frozen=True)
class _Asked:
    """A training question as numbers."""

    ids: NDArray[np.int64]
    answer: int
    log_count: float  # NaN where the answer is no number
    kind: str


_Example = tuple[
    NDArray[np.float32],  # tile
    NDArray[np.int64],  # questions (Q, T)
    NDArray[np.int64],  # answers (Q,)
    NDArray[np.float32],  # log counts (Q,)
    int,  # scene
    NDArray[np.int64],  # caption (T,)
]


class _TrainingTiles(Dataset[_Example]):
    def __init__(self, task: "SpatialNetVitTask") -> None:
        self.task = task

    def __len__(self) -> int:
        return len(self.task.train_part.stems)

    def __getitem__(self, index: int) -> _Example:
        task = self.task
        rng = augment.generator(task.config.seed, task.current_epoch, index)
        tile, moved = augment.turned(task.train_part.tiles[index], rng)
        # Where things are changes when a tile is turned; everything else stays.
        asked = [q for q in task.asked[index] if not (moved and q.kind == "location")]
        drawn = [
            asked[i]
            for i in rng.choice(len(asked), size=task.config.questions_per_tile, p=_chances(asked))
        ]
        captions = task.caption_ids[index]
        return (
            augment.brightened(tile, rng),
            np.stack([question.ids for question in drawn]),
            np.array([question.answer for question in drawn], dtype=np.int64),
            np.array([question.log_count for question in drawn], dtype=np.float32),
            task.scenes[index],
            captions[rng.integers(len(captions))],
        )


class SpatialNetVitTask(Task):
    """SpatialNet-ViT with UCM's training and validation tiles."""

    monitor = "val_overall"
    config: SpatialNetVitRun

    def __init__(self, config: SpatialNetVitRun, data: Path, weights: str | None) -> None:
        super().__init__()
        self.config = config
        size = config.image_size
        self.train_part = read_part(data, "train", size, config.seed)
        self.val_part = read_part(data, "val", size, config.seed)
        self._asked = part_questions(data, self.train_part, config.seed)
        self._card = self._make_card()
        self._prepare_examples()
        self.network: SpatialNetVit = build(self._card, config)
        if weights is not None:
            patches = self.network.encoder.patches
            if not isinstance(patches, HybridPatches):
                raise ConfigError("--weights: patches = linear has no pretrained part to fill")
            load_base_weights(patches.backbone, weights)

    def _make_card(self) -> SpatialNetVitCard:
        config, part = self.config, self.train_part
        asked = [text for question in self._asked for text in _phrasings(question)]
        answers = answer_list(part.questions, config.min_answer_count)
        said = (text for texts in part.captions.values() for text in texts)
        return SpatialNetVitCard(
            vocabulary=vocabulary_of(asked, QUESTION_SPECIALS, config.min_word_count),
            answers=answers,
            answer_types=[answer_type(answer) for answer in answers],
            scenes=list(SCENES.values()),
            caption_vocabulary=vocabulary_of(said, SPECIALS, 6),
        )

    def _prepare_examples(self) -> None:
        card, part = self._card, self.train_part
        head = reading_head(card, self.config)
        answer_ids = {answer: index for index, answer in enumerate(card.answers)}
        grouped = part.grouped(self._asked)
        self.asked = [
            [
                _Asked(
                    question_ids(text, head)[0],
                    answer_ids.get(question.answer, NO_ANSWER),
                    _log_count(question),
                    question.kind,
                )
                for question in grouped[stem]
                for text in _phrasings(question)
            ]
            for stem in part.stems
        ]
        names = list(SCENES)
        self.scenes = [names.index(scene_of(stem)) for stem in part.stems]
        length = self.config.architecture.max_caption
        self.caption_ids = [
            np.stack(
                [
                    sentence_ids(text, card.caption_vocabulary, length)
                    for text in part.captions[stem]
                ]
            )
            for stem in part.stems
        ]

    @property
    def card(self) -> SpatialNetVitCard:
        """Words, answers and scenes."""
        return self._card

    def training_set(self) -> _TrainingTiles:
        """Turned and brightened tiles, each with some questions and a caption."""
        return _TrainingTiles(self)

    def training_step(self, batch: tuple[Tensor, ...], _index: int) -> Tensor:
        """The weighted sum of the tasks' losses, equation 6."""
        tiles, asked, answers, log_counts, scenes, captions = batch
        network, weights = self.network, self.config.task_weights
        memory = network.encoder(tiles)
        answer_logits, counted = network.question(memory, asked.flatten(0, 1))
        before = torch.cat([torch.full_like(captions[:, :1], BOS), captions[:, :-1]], dim=1)
        words = network.caption(memory, before)
        known = ~log_counts.flatten().isnan()
        losses = {
            "answer": F.cross_entropy(answer_logits, answers.flatten(), ignore_index=NO_ANSWER),
            "land_use": F.cross_entropy(network.land_use(memory[:, 0]), scenes),
            "caption": F.cross_entropy(words.flatten(0, 1), captions.flatten(), ignore_index=PAD),
            # The sum over no question is zero, where the mean would be NaN.
            "count": F.mse_loss(
                counted.flatten()[known], log_counts.flatten()[known], reduction="sum"
            )
            / max(int(known.sum()), 1),
        }
        total = sum(
            (getattr(weights, name) * loss for name, loss in losses.items()),
            start=torch.zeros((), device=tiles.device),
        )
        self.log("train_loss", total, prog_bar=True, on_step=False, on_epoch=True)
        self.log_dict(
            {f"train_{name}": loss for name, loss in losses.items()}, on_step=False, on_epoch=True
        )
        return total

    def validate(self) -> dict[str, float]:
        """Answers, land use and captions on the validation split."""
        memory, land_use = encode(self.network, self.val_part.tiles)
        head = reading_head(self._card, self.config)
        scores, _ = answer(self.network, memory, self.val_part.stems, self.val_part.questions, head)
        values = measure_answers(self.val_part.questions, scores, self._card)
        return {**values, "land_use": land_use_accuracy(self.val_part.stems, land_use)}


def _chances(asked: Sequence[_Asked]) -> NDArray[np.float64]:
    """How likely each question is drawn: the kinds by `KIND_WEIGHTS`, alike within a kind.

    Drawn alike, one question in thirty would be about a number or a place, and "How many ...?"
    would learn to be answered with yes.
    """
    kinds = [question.kind for question in asked]
    weights = np.array([KIND_WEIGHTS[kind] / kinds.count(kind) for kind in kinds])
    return weights / weights.sum()


def _phrasings(question: Question) -> list[str]:
    return [question.text, *(other.text for other in paraphrases(question))]


def _log_count(question: Question) -> float:
    number = count_of(question.answer) if question.kind == "count" else None
    return float("nan") if number is None else float(np.log1p(number))


@torch.no_grad()
def encode(
    network: SpatialNetVit, tiles: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The memory (N, S, D) of each tile and its land-use probabilities (N, scenes)."""
    network.eval()
    device = network.land_use.weight.device
    memories, scenes = [], []
    for batch in batches(tiles):
        memory = network.encoder(batch.to(device))
        memories.append(memory.float().cpu().numpy())
        scenes.append(network.land_use(memory[:, 0]).float().softmax(dim=1).cpu().numpy())
    return np.concatenate(memories), np.concatenate(scenes)


@torch.no_grad()
def answer(
    network: SpatialNetVit,
    memory: NDArray[np.float32],
    stems: Sequence[str],
    asked: Sequence[Question],
    head: AnswerHead,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The probability of each answer (questions, answers), and the count (questions, 1)."""
    network.eval()
    device = network.land_use.weight.device
    rows, ids = question_rows(stems, asked, head)
    scores, counts = [], []
    for start in range(0, len(ids), 128):
        part = slice(start, start + 128)
        logits, log_count = network.question(
            torch.from_numpy(memory[rows[part]]).to(device),
            torch.from_numpy(ids[part]).to(device),
        )
        scores.append(logits.float().softmax(dim=1).cpu().numpy())
        counts.append(torch.expm1(log_count.float()).clamp(min=0).cpu().numpy())
    return np.concatenate(scores), np.concatenate(counts)


def question_rows(
    stems: Sequence[str], asked: Sequence[Question], head: AnswerHead
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which tile each question is about, (questions,), and its token ids (questions, T)."""
    place = {stem: index for index, stem in enumerate(stems)}
    return (
        np.array([place[question.stem] for question in asked]),
        np.stack([question_ids(question.text, head)[0] for question in asked]),
    )


def measure_answers(
    asked: Sequence[Question], scores: NDArray[np.float32], card: SpatialNetVitCard
) -> dict[str, float]:
    """Accuracies: overall, the mean over kinds, and each kind."""
    chosen = [card.answers[index] for index in scores.argmax(axis=1)]
    return metrics.answer_metrics(
        [question.kind for question in asked], [question.answer for question in asked], chosen
    )


def land_use_accuracy(stems: Sequence[str], scores: NDArray[np.float32]) -> float:
    """The share of tiles whose most probable scene is theirs."""
    names = list(SCENES)
    truth = np.array([names.index(scene_of(stem)) for stem in stems])
    return float((scores.argmax(axis=1) == truth).mean())


def load(folder: Path, config: SpatialNetVitRun) -> tuple[SpatialNetVitCard, SpatialNetVit]:
    """The card and the network of a run folder."""
    card = run.read_card(folder, SpatialNetVitCard)
    network = build(card, config)
    run.load_checkpoint(network, config.model, folder / run.CHECKPOINT)
    return card, network.eval().to(run.device())


def evaluate(folder: Path, config: SpatialNetVitRun, data: Path, part: str) -> Measurement:
    """The figures of a run's checkpoint on a part of the split."""
    card, network = load(folder, config)
    head = reading_head(card, config)
    examples = read_part(data, part, config.image_size, config.seed)
    train_stems = part_stems(data, "ucm", "train")
    train = questions(data, train_stems, config.seed)
    memory, land_use = encode(network, examples.tiles)
    scores, _ = answer(network, memory, examples.stems, examples.questions, head)
    every_train = all_presence_questions(read_labels(data), train_stems)
    every = all_presence_questions(read_labels(data), examples.stems)
    every_scores, _ = answer(network, memory, examples.stems, every, head)
    length = config.architecture.max_caption
    captions = _captions(network, memory, length, card)
    spoken = metrics.caption_metrics(
        examples.captions, dict(zip(examples.stems, captions, strict=True))
    )
    return Measurement(
        tiles=len(examples.stems),
        values={
            **measure_answers(examples.questions, scores, card),
            "presence_every_label": measure_answers(every, every_scores, card)["overall"],
            "land_use": land_use_accuracy(examples.stems, land_use),
            "caption_cider": spoken["cider"],
            "caption_bleu_4": spoken["bleu_4"],
        },
        floors=_floors(train, examples.questions, every_train, every),
        notes={
            "presence": "all present labels of a tile and as many absent ones; "
            "presence_every_label asks for all 17",
            "caption": "greedy, references of the same tiles",
            "tokenizer": metrics.tokenizer_name(),
        },
    )


def _floors(
    train: Sequence[Question],
    test: Sequence[Question],
    every_train: Sequence[Question],
    every: Sequence[Question],
) -> dict[str, dict[str, float]]:
    """The floors of all questions, those of every label's presence among them."""
    of_every = floors.answer_floors(every_train, every)
    return {
        name: {**values, "presence_every_label": of_every[name]["overall"]}
        for name, values in floors.answer_floors(train, test).items()
    }


@torch.no_grad()
def _captions(
    network: SpatialNetVit, memory: NDArray[np.float32], length: int, card: SpatialNetVitCard
) -> list[str]:
    device = network.land_use.weight.device
    tokens = np.concatenate(
        [
            network.caption.greedy(torch.from_numpy(memory[start : start + 64]).to(device), length)
            .cpu()
            .numpy()
            for start in range(0, len(memory), 64)
        ]
    )
    return [sentence(row.tolist(), card.caption_vocabulary, EOS) for row in tokens]
