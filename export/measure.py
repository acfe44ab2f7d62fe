"""The task's figures of a version in the repository, without the run that it came from."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.runner import Runner
from export.spatialnet_vit import ask
from tilesight.errors import BundleError
from tilesight.manifest import AnswerHead, CaptionHead, EncodingHead, LabelsHead, Manifest
from tilesight.questions import sentence
from training import metrics
from training.label_figures import all_figures
from training.tasks import jtts, signa, spatialnet_vit
from training.tasks.base import EVALUATION_BATCH


@dataclass(frozen=True)
class Encoder:
    """The tile encoder that a question head was made for."""

    manifest: Manifest
    form: Runner


def measure(
    manifest: Manifest, form: Runner, data: Path, encoder: Encoder | None = None
) -> dict[str, float]:
    """The figures that the version reaches on the test tiles of its split.

    Raises:
        BundleError: the manifest has no tile to read, or its encoder is not given.
        DataError: tiles or annotations are missing.
    """
    # A question head reads tiles through its encoder.
    eye = encoder or Encoder(manifest, form)
    if eye.manifest.input is None:
        raise BundleError(f"{manifest.name}@{manifest.version}: reads no tile, and has no encoder")
    size = eye.manifest.input.height
    match manifest.head:
        case LabelsHead() as head:
            return _labels(head, form, data, size, manifest.metrics.dataset)
        case CaptionHead() as head:
            return _captions(head, form, data, size)
        case EncodingHead():
            part = spatialnet_vit.read_part(data, "test", size, manifest.metrics.seed)
            scores = form.run_in_batches(EVALUATION_BATCH, tiles=part.tiles)["land_use"]
            return {"land_use": spatialnet_vit.land_use_accuracy(part.stems, scores)}
        case AnswerHead() as head:
            part = spatialnet_vit.read_part(data, "test", size, manifest.metrics.seed)
            memory = eye.form.run_in_batches(EVALUATION_BATCH, tiles=part.tiles)["memory"]
            return _answers(head, form, part, memory)


def _labels(
    head: LabelsHead, form: Runner, data: Path, size: int, dataset: str
) -> dict[str, float]:
    part = signa.read_part(data, "test", size, dataset)
    scores = form.run_in_batches(EVALUATION_BATCH, tiles=part.tiles)["scores"]
    return all_figures(part.truth, scores, np.array(head.thresholds))


def _captions(head: CaptionHead, form: Runner, data: Path, size: int) -> dict[str, float]:
    part = jtts.read_part(data, "test", size)
    beams = np.full((len(part.tiles), 1), head.default_beams, dtype=np.int64)
    tokens = form.run_in_batches(EVALUATION_BATCH, tiles=part.tiles, beams=beams)["tokens"]
    spoken = [sentence(row.tolist(), head.vocabulary, head.eos_id) for row in tokens[:, 0]]
    return jtts.measure(part, spoken).values


def _answers(
    head: AnswerHead,
    form: Runner,
    part: spatialnet_vit.SpatialNetVitPart,
    memory: NDArray[np.float32],
) -> dict[str, float]:
    rows, ids = spatialnet_vit.question_rows(part.stems, part.questions, head)
    chosen = ask(form, memory, rows, ids)["answers"].argmax(axis=1)
    return metrics.answer_metrics(
        [question.kind for question in part.questions],
        [question.answer for question in part.questions],
        [head.answers[index] for index in chosen],
    )
