"""SpatialNet-ViT as two graphs, so that many questions share one encoding of a tile."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.certificate import decision, difference
from export.graphs import EncoderGraph, QuestionGraph
from export.onnx_file import Session, Source
from export.part import Part, Plan, Proof
from tilesight.manifest import EncodingHead
from training.config import SpatialNetVitRun
from training.tasks import spatialnet_vit as task
from training.tasks.base import EVALUATION_BATCH

ENCODER = "spatialnet_vit_encoder"
HEAD = "spatialnet_vit_head"


def plan(run: Path, config: SpatialNetVitRun, data: Path) -> Plan:
    """The two graphs of a run, proved on the test tiles and all their questions."""
    card, network = task.load(run, config)
    network = network.cpu()
    head = task.reading_head(card, config)
    examples = task.read_part(data, "test", config.image_size, config.seed)
    asked = examples.questions
    memory, land_use = task.encode(network, examples.tiles)
    answers, counts = task.answer(network, memory, examples.stems, asked, head)
    rows, ids = task.question_rows(examples.stems, asked, head)
    parts = [
        Part(
            name=ENCODER,
            title="SpatialNet-ViT, tile encoder: what questions look at, and land use",
            source=Source(
                EncoderGraph(network),
                (torch.from_numpy(examples.tiles[:2]),),
                ("tiles",),
                ("memory", "land_use"),
            ),
            head=EncodingHead(land_use=card.scenes),
            reads_tile=True,
        ),
        Part(
            name=HEAD,
            title="SpatialNet-ViT, question head: answers to questions about an encoded tile",
            source=Source(
                QuestionGraph(network),
                (torch.from_numpy(memory[:2]), torch.from_numpy(ids[:2])),
                ("memory", "question"),
                ("answers", "count"),
            ),
            head=head,
            reads_tile=False,
        ),
    ]

    def prove(files: dict[str, Path]) -> dict[str, Proof]:
        encoded = Session(files[ENCODER]).run_in_batches(EVALUATION_BATCH, tiles=examples.tiles)
        # The head is fed by the written encoder, as it is in service.
        found = ask(Session(files[HEAD]), encoded["memory"], rows, ids)
        names = [f"{question.stem}: {question.text}" for question in asked]

        def land_use_of(scores: NDArray[Any]) -> dict[str, float]:
            return {"land_use": task.land_use_accuracy(examples.stems, scores)}

        return {
            ENCODER: Proof(
                differences={
                    "memory": difference(memory, encoded["memory"], examples.stems),
                    "land_use": difference(land_use, encoded["land_use"], examples.stems),
                },
                decisions={"land use": decision(land_use.argmax(1), encoded["land_use"].argmax(1))},
                torch_metrics=land_use_of(land_use),
                onnx_metrics=land_use_of(encoded["land_use"]),
            ),
            HEAD: Proof(
                differences={
                    "answers": difference(answers, found["answers"], names),
                    "count": difference(counts, found["count"], names),
                },
                decisions={"answers": decision(answers.argmax(1), found["answers"].argmax(1))},
                torch_metrics=task.measure_answers(asked, answers, card),
                onnx_metrics=task.measure_answers(asked, found["answers"], card),
            ),
        }

    return Plan(parts, len(examples.stems), prove)


def ask(
    session: Session, memory: NDArray[Any], rows: NDArray[np.int64], ids: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """The head's outputs; memory is repeated a batch at a time, as all at once would not fit."""
    parts = [
        session.run(memory=memory[rows[start : start + 64]], question=ids[start : start + 64])
        for start in range(0, len(ids), 64)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
