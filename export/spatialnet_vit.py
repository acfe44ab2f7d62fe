"""SpatialNet-ViT as two graphs, so that many questions share one encoding of a tile."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.certificate import Decision, Difference, decision, difference
from export.graphs import EncoderGraph, QuestionGraph
from export.onnx_file import Source
from export.part import Part, Plan, Shown, Which, evenly
from export.runner import Outputs, Runner
from tilesight.manifest import AnswerHead, EncodingHead
from training.config import SpatialNetVitRun
from training.models.spatialnet_vit import SpatialNetVit
from training.tasks import spatialnet_vit as task
from training.tasks.base import EVALUATION_BATCH

ENCODER = "spatialnet_vit_encoder"
HEAD = "spatialnet_vit_head"


class Trained:
    """What both graphs share: the network, its examples, its way of reading questions."""

    def __init__(self, run: Path, config: SpatialNetVitRun, data: Path) -> None:
        """Reads the weights of a run, and the tiles and questions of validation and test."""
        self.card, network = task.load(run, config)
        self.network: SpatialNetVit = network.cpu()
        self.head = task.reading_head(self.card, config)
        self._config, self._data = config, data
        self.parts = {which: self._read(which) for which in ("val", "test")}

    @cached_property
    def training(self) -> task.SpatialNetVitPart:
        """The examples that calibrate and time a form."""
        return self._read("train")

    def _read(self, which: str) -> task.SpatialNetVitPart:
        return task.read_part(self._data, which, self._config.image_size, self._config.seed)


class EncoderPart(Part):
    """Tiles -> memory and land use."""

    name = ENCODER
    title = "SpatialNet-ViT, tile encoder: what questions look at, and land use"
    reads_tile = True
    task_metric = "presence"

    def __init__(self, trained: Trained, reader: "HeadPart") -> None:
        """The encoder of the network, whose memory the reader reads."""
        self._trained, self._reader = trained, reader
        self.source = Source(
            EncoderGraph(trained.network),
            (torch.from_numpy(trained.parts["test"].tiles[:2]),),
            ("tiles",),
            ("memory", "land_use"),
        )
        self.head = EncodingHead(land_use=trained.card.scenes)

    @property
    def shown(self) -> Shown:
        """The probability of each scene."""
        return Shown("land_use", self._trained.card.scenes, self._trained.parts["test"].stems)

    def outputs(self, form: Runner, which: Which) -> Outputs:
        """Memory and land use of each tile."""
        tiles = self._trained.parts[which].tiles
        return form.run_in_batches(EVALUATION_BATCH, tiles=tiles)

    def compare(
        self, expected: Outputs, found: Outputs, limit: float | None
    ) -> tuple[dict[str, Difference], dict[str, Decision]]:
        """Memory, land use, and the likeliest scene."""
        stems = self._trained.parts["test"].stems
        likeliest = [outputs["land_use"].argmax(1) for outputs in (expected, found)]
        return (
            {
                name: difference(expected[name], found[name], stems, limit)
                for name in ("memory", "land_use")
            },
            {"land use": decision(likeliest[0], likeliest[1])},
        )

    def measure(self, outputs: Outputs, which: Which) -> dict[str, float]:
        """Land use, and the answers that torch's question head gives on this memory."""
        trained, part = self._trained, self._trained.parts[which]
        scores, _ = task.answer(
            trained.network, outputs["memory"], part.stems, part.questions, trained.head
        )
        land_use = task.land_use_accuracy(part.stems, outputs["land_use"])
        return {**task.measure_answers(part.questions, scores, trained.card), "land_use": land_use}

    def feeds(self, rows: int) -> dict[str, NDArray[Any]]:
        """Training tiles from all over the split."""
        return {"tiles": evenly(self._trained.training.tiles, rows)}

    def served_by(self, form: Runner) -> None:
        """From here on the question head reads this form's memory."""
        self._reader.read_from(self, form)


class HeadPart(Part):
    """Memory and a question -> answers and a count; memory is that of the served encoder."""

    name = HEAD
    title = "SpatialNet-ViT, question head: answers to questions about an encoded tile"
    reads_tile = False
    task_metric = "presence"
    head: AnswerHead

    def __init__(self, trained: Trained) -> None:
        """The question head of the network."""
        self._trained = trained
        self._memory: dict[str, NDArray[np.float32]] = {}
        self.head = trained.head
        part = trained.parts["test"]
        with torch.no_grad():
            memory = trained.network.encoder(torch.from_numpy(part.tiles[:2]))
        _, ids = task.question_rows(part.stems, part.questions[:2], trained.head)
        self.source = Source(
            QuestionGraph(trained.network),
            (memory, torch.from_numpy(ids)),
            ("memory", "question"),
            ("answers", "count"),
        )

    @property
    def shown(self) -> Shown:
        """The probability of each answer."""
        asked = self._trained.parts["test"].questions
        return Shown("answers", self._trained.card.answers, [one.stem for one in asked])

    def read_from(self, encoder: EncoderPart, form: Runner) -> None:
        """Takes the memory that this form of the encoder makes of each tile."""
        for which, part in (*self._trained.parts.items(), ("train", self._trained.training)):
            encoded = form.run_in_batches(EVALUATION_BATCH, tiles=part.tiles)
            self._memory[which] = encoded["memory"]

    def outputs(self, form: Runner, which: Which) -> Outputs:
        """Answers and counts, question by question."""
        part = self._trained.parts[which]
        rows, ids = task.question_rows(part.stems, part.questions, self.head)
        return ask(form, self._memory[which], rows, ids)

    def compare(
        self, expected: Outputs, found: Outputs, limit: float | None
    ) -> tuple[dict[str, Difference], dict[str, Decision]]:
        """Answers, counts, and the likeliest answer to each question."""
        names = [f"{one.stem}: {one.text}" for one in self._trained.parts["test"].questions]
        likeliest = [outputs["answers"].argmax(1) for outputs in (expected, found)]
        return (
            {
                name: difference(expected[name], found[name], names, limit)
                for name in ("answers", "count")
            },
            {"answers": decision(likeliest[0], likeliest[1])},
        )

    def measure(self, outputs: Outputs, which: Which) -> dict[str, float]:
        """The accuracy of the likeliest answers."""
        asked = self._trained.parts[which].questions
        return task.measure_answers(asked, outputs["answers"], self._trained.card)

    def feeds(self, rows: int) -> dict[str, NDArray[Any]]:
        """Questions about training tiles, from all over the split."""
        part = self._trained.training
        of_tile, ids = task.question_rows(part.stems, part.questions, self.head)
        chosen = evenly(np.arange(len(ids)), rows)
        return {"memory": self._memory["train"][of_tile[chosen]], "question": ids[chosen]}


def plan(run: Path, config: SpatialNetVitRun, data: Path) -> Plan:
    """The two graphs of a run: the encoder, then the head that reads it."""
    trained = Trained(run, config, data)
    head = HeadPart(trained)
    return Plan([EncoderPart(trained, head), head], len(trained.parts["test"].stems))


def ask(
    form: Runner, memory: NDArray[Any], rows: NDArray[np.int64], ids: NDArray[np.int64]
) -> Outputs:
    """The head's outputs; memory is repeated a batch at a time, as all at once would not fit."""
    parts = [
        form.run(memory=memory[rows[chunk]], question=ids[chunk])
        for chunk in (
            slice(start, start + EVALUATION_BATCH) for start in range(0, len(ids), EVALUATION_BATCH)
        )
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
