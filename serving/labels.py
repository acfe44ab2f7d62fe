"""What is on the tile: every label with its score, best first."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from serving import answers
from serving.engine import Engine
from serving.jobs import Ask
from serving.parameters import require_at_most
from serving.repository import Bundle
from serving.timing import Postprocessing
from tilesight.manifest import LabelsHead


class LabelsOptions(BaseModel):
    """What a caller can ask of the labels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: float | None = Field(
        default=None, ge=0, le=1, description="in place of each label's own threshold"
    )
    top_k: int | None = Field(default=None, ge=1, description="only the best labels; default all")
    explain: bool = Field(
        default=False, description="adds to each present label where on the tile it was seen"
    )


async def label(
    engine: Engine, images: Sequence[bytes], options: LabelsOptions, ask: Ask
) -> list[answers.LabelsAnswer]:
    """The labels of each tile, in the given order.

    Raises:
        RequestValidationError: more labels are asked for than the model has.
    """
    with engine.models.using() as served:
        return await _label(engine, served.labels, images, options, ask)


async def _label(
    engine: Engine,
    bundle: Bundle[LabelsHead],
    images: Sequence[bytes],
    options: LabelsOptions,
    ask: Ask,
) -> list[answers.LabelsAnswer]:
    require_at_most("top_k", options.top_k, len(bundle.head.labels))
    outputs = ("scores", "evidence") if options.explain else ("scores",)
    tiles = await engine.look(bundle, images, outputs, ask)
    ask.timing.model = model = engine.models.info(bundle)
    with Postprocessing(ask.timing):
        for tile in tiles:
            engine.metrics.scores(
                bundle.name, bundle.head.labels, tile.values["scores"], bundle.head.thresholds
            )
        return [
            answers.LabelsAnswer(
                model=model,
                tile=tile.info,
                labels=_labels(
                    bundle.head, options, tile.values["scores"], tile.values.get("evidence")
                ),
                warnings=list(tile.warnings),
            )
            for tile in tiles
        ]


def _labels(
    head: LabelsHead,
    options: LabelsOptions,
    scores: NDArray[Any],
    evidence: NDArray[Any] | None,
) -> list[answers.Label]:
    """The labels of one tile from its (L,) scores and (L, rows, columns) evidence."""
    thresholds = head.thresholds
    if options.threshold is not None:
        thresholds = [options.threshold] * len(thresholds)
    # float32 sums of a sigmoid can pass 1 by a rounding.
    values = scores.clip(0, 1).tolist()
    labels = []
    for index in sorted(range(len(values)), key=values.__getitem__, reverse=True)[: options.top_k]:
        score = values[index]
        present = score >= thresholds[index]
        seen = evidence[index].tolist() if present and evidence is not None else None
        labels.append(answers.Label(head.labels[index], score, present, seen))
    return labels
