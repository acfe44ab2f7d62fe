"""The answers, field by field: what OpenAPI tells is what is sent.

What a request is answered with are dataclasses: made here from checked tensors, they need no
validation, which would cost more than all else that is done for a tile beside its model. Nobody
changes them, but frozen ones would take three times as long to make.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, Field

from tilesight.imaging import Fitted

AnswerT = TypeVar("AnswerT")

Share = Annotated[float, Field(ge=0, le=1)]


class Model(BaseModel):
    """Which weights answered."""

    name: str
    version: int
    digest: str = Field(description="SHA-256 of the graph's file")
    precision: str
    backend: str = Field(description="what ran the graph")


@dataclass(slots=True)
class Tile:
    """The tile as it was sent, before it was fitted to the model."""

    width: int
    height: int
    format: str

    @classmethod
    def of(cls, tile: Fitted) -> "Tile":
        """What the answer says of the tile."""
        return cls(width=tile.width, height=tile.height, format=tile.format)


@dataclass(slots=True)
class Label:
    """One land-cover label."""

    name: str
    score: Share
    present: Annotated[bool, Field(description="whether the score reaches the label's threshold")]
    evidence: Annotated[
        list[list[float]] | None,
        Field(description="rows of a grid over the tile; only with explain, if present"),
    ] = None


@dataclass(slots=True)
class LabelsAnswer:
    """The labels of a tile, best first."""

    model: Model
    tile: Tile
    labels: list[Label]
    warnings: list[str]


@dataclass(slots=True)
class Candidate:
    """One sentence that the search found."""

    text: str
    log_prob: float


@dataclass(slots=True)
class Attribute:
    """A word that the captioner considered before it wrote."""

    name: str
    score: Share
    sampled: Annotated[bool, Field(description="whether the sentence was written with it in mind")]


@dataclass(slots=True)
class CaptionAnswer:
    """A sentence about a tile."""

    model: Model
    tile: Tile
    caption: str
    candidates: list[Candidate]
    attributes: list[Attribute]
    warnings: list[str]


@dataclass(slots=True)
class Alternative:
    """An answer that was less likely."""

    answer: str
    confidence: Share


@dataclass(slots=True)
class Answer:
    """The answer to one question."""

    question: str
    answer: str
    confidence: Share
    type: Annotated[str, Field(description="the type of question that the answer belongs to")]
    alternatives: list[Alternative]


@dataclass(slots=True)
class VqaAnswer:
    """The answers about a tile, in the order of the questions."""

    model: Model
    tile: Tile
    answers: list[Answer]
    warnings: list[str]


@dataclass(slots=True)
class Results(Generic[AnswerT]):
    """The answers of several tiles, in the order in which the tiles were sent."""

    results: list[AnswerT]


def probability(value: float | np.floating[Any]) -> float:
    """The value as a probability; float32 sums of a softmax can pass 1 by a rounding."""
    return min(1.0, max(0.0, float(value)))


def one_or_many(answers: list[AnswerT]) -> AnswerT | Results[AnswerT]:
    """The answer itself for one tile, a list of results for several."""
    if len(answers) == 1:
        return answers[0]
    return Results(results=answers)


class Health(BaseModel):
    """The process runs."""

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """The models answer."""

    status: Literal["ready"] = "ready"


class TileInput(BaseModel):
    """What a model makes of a tile before it looks at it."""

    height: int
    width: int
    bands: list[str]
    gsd_m: tuple[float, float] = Field(
        description="smallest and largest metres a pixel that it was trained for"
    )


class ModelDetails(Model):
    """A model that is served."""

    title: str
    task: str
    input: TileInput | None
    names: list[str] = Field(description="the labels, attributes, land uses or answers it knows")
    metrics: dict[str, float] = Field(description="what it reached on its test split")
    split: str
    runtime: dict[str, str | int]


class ModelList(BaseModel):
    """The models that are served."""

    models: list[ModelDetails]
