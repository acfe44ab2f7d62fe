"""What is on the tile: every label with its score, best first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from serving import answers
from serving.engine import Engine, PreparedTile, stack
from serving.parameters import require_at_most
from serving.repository import Bundle
from tilesight.manifest import LabelsHead


@dataclass(frozen=True)
class LabelsOptions:
    """What a caller can ask of the labels."""

    threshold: float | None = None
    top_k: int | None = None
    explain: bool = False


async def label(
    engine: Engine, images: Sequence[bytes], options: LabelsOptions
) -> list[answers.LabelsAnswer]:
    """The labels of each tile, in the given order.

    Raises:
        RequestValidationError: more labels are asked for than the model has.
    """
    with engine.models.using() as served:
        return await _label(engine, served.labels, images, options)


async def _label(
    engine: Engine, bundle: Bundle[LabelsHead], images: Sequence[bytes], options: LabelsOptions
) -> list[answers.LabelsAnswer]:
    require_at_most("top_k", options.top_k, len(bundle.head.labels))
    tiles = await engine.prepare(bundle, images)
    outputs = ["scores", "evidence"] if options.explain else ["scores"]
    found = await engine.models.infer(bundle, {bundle.tile.name: stack(tiles)}, outputs)
    model = engine.models.info(bundle)
    with engine.timed("postprocess", bundle):
        return [
            _answer(
                model,
                tile,
                _labels(
                    bundle.head,
                    options,
                    found["scores"][row],
                    found["evidence"][row] if options.explain else None,
                ),
            )
            for row, tile in enumerate(tiles)
        ]


def _answer(
    model: answers.Model, tile: PreparedTile, labels: list[answers.Label]
) -> answers.LabelsAnswer:
    return answers.LabelsAnswer(
        model=model, tile=tile.info, labels=labels, warnings=list(tile.warnings)
    )


def _labels(
    head: LabelsHead,
    options: LabelsOptions,
    scores: NDArray[Any],
    evidence: NDArray[Any] | None,
) -> list[answers.Label]:
    """The labels of one tile from its (L,) scores and (L, rows, columns) evidence."""
    ranked = (-scores).argsort(kind="stable")[: options.top_k]
    labels = []
    for index in ranked:
        threshold = head.thresholds[index] if options.threshold is None else options.threshold
        score = answers.probability(scores[index])
        present = score >= threshold
        labels.append(
            answers.Label(
                name=head.labels[index],
                score=score,
                present=present,
                evidence=evidence[index].tolist() if present and evidence is not None else None,
            )
        )
    return labels
