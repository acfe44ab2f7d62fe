"""A sentence about the tile, the sentences that came close, and the words behind them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from serving import answers
from serving.engine import Engine
from serving.errors import RequestError
from serving.jobs import Ask
from serving.parameters import require_at_most
from serving.repository import Bundle
from serving.timing import Postprocessing
from tilesight.manifest import CaptionHead
from tilesight.questions import sentence

_OUTPUTS = ["tokens", "log_probs", "attributes", "sampled"]


class CaptionOptions(BaseModel):
    """What a caller can ask of the captioner."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    beams: int | None = Field(default=None, ge=1, description="how many sentences the search keeps")
    candidates: int | None = Field(
        default=None, ge=1, description="how many sentences to return; at most `beams`"
    )
    explain: bool = Field(
        default=False, description="lists every attribute, not only the sampled ones"
    )


async def caption(
    engine: Engine, images: Sequence[bytes], options: CaptionOptions, ask: Ask
) -> list[answers.CaptionAnswer]:
    """A sentence for each tile, in the given order.

    Raises:
        RequestValidationError: more beams or candidates are asked for than the model keeps.
        RequestError: more candidates than beams are asked for.
    """
    with engine.models.using() as served:
        return await _caption(engine, served.caption, images, options, ask)


async def _caption(
    engine: Engine,
    bundle: Bundle[CaptionHead],
    images: Sequence[bytes],
    options: CaptionOptions,
    ask: Ask,
) -> list[answers.CaptionAnswer]:
    require_at_most("beams", options.beams, bundle.head.max_beams)
    require_at_most("candidates", options.candidates, bundle.head.max_beams)
    beams = bundle.head.default_beams if options.beams is None else options.beams
    candidates = beams if options.candidates is None else options.candidates
    if candidates > beams:
        raise RequestError(
            f"candidates: {candidates} is more than the search keeps; at most beams = {beams}",
            parameter="candidates",
            maximum=beams,
        )
    wanted = {"beams": np.full(1, beams, dtype=np.int64)}
    tiles = await engine.look(bundle, images, _OUTPUTS, ask, wanted)
    ask.timing.model = model = engine.models.info(bundle)
    with Postprocessing(ask.timing):
        results = []
        for tile in tiles:
            found = tile.values
            sentences = _sentences(bundle.head, found["tokens"], found["log_probs"])
            results.append(
                answers.CaptionAnswer(
                    model=model,
                    tile=tile.info,
                    caption=sentences[0].text,
                    candidates=sentences[:candidates],
                    attributes=_attributes(
                        bundle.head, options, found["attributes"], found["sampled"]
                    ),
                    warnings=list(tile.warnings),
                )
            )
        return results


def _sentences(
    head: CaptionHead, tokens: NDArray[Any], log_probs: NDArray[Any]
) -> list[answers.Candidate]:
    """The sentences of one tile from its (K, T) tokens and (K,) log probabilities, best first."""
    return [
        answers.Candidate(
            text=sentence(tokens[beam].tolist(), head.vocabulary, head.eos_id),
            log_prob=float(log_probs[beam]),
        )
        for beam in range(len(tokens))
        # The graph fills the rows beyond the asked beams with minus infinity.
        if np.isfinite(log_probs[beam])
    ]


def _attributes(
    head: CaptionHead, options: CaptionOptions, scores: NDArray[Any], sampled: NDArray[Any]
) -> list[answers.Attribute]:
    """The sampled attributes of one tile, all of them with `explain`; best first."""
    return [
        answers.Attribute(
            name=head.attributes[index],
            score=answers.probability(scores[index]),
            sampled=bool(sampled[index]),
        )
        for index in (-scores).argsort(kind="stable")
        if options.explain or sampled[index]
    ]
