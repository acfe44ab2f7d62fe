"""The answers, field by field: what OpenAPI tells is what is sent."""

from typing import Any, Generic, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, Field

AnswerT = TypeVar("AnswerT", bound=BaseModel)


class Model(BaseModel):
    """Which weights answered."""

    name: str
    version: int
    digest: str = Field(description="SHA-256 of the graph's file")
    precision: str
    backend: str = Field(description="what ran the graph")


class Tile(BaseModel):
    """The tile as it was sent, before it was fitted to the model."""

    width: int
    height: int
    format: str


class Label(BaseModel):
    """One land-cover label."""

    name: str
    score: float = Field(ge=0, le=1)
    present: bool = Field(description="whether the score reaches the label's threshold")
    evidence: list[list[float]] | None = Field(
        default=None, description="rows of a grid over the tile; only with explain, if present"
    )


class LabelsAnswer(BaseModel):
    """The labels of a tile, best first."""

    model: Model
    tile: Tile
    labels: list[Label]
    warnings: list[str]


class Candidate(BaseModel):
    """One sentence that the search found."""

    text: str
    log_prob: float


class Attribute(BaseModel):
    """A word that the captioner considered before it wrote."""

    name: str
    score: float = Field(ge=0, le=1)
    sampled: bool = Field(description="whether the sentence was written with it in mind")


class CaptionAnswer(BaseModel):
    """A sentence about a tile."""

    model: Model
    tile: Tile
    caption: str
    candidates: list[Candidate]
    attributes: list[Attribute]
    warnings: list[str]


class Alternative(BaseModel):
    """An answer that was less likely."""

    answer: str
    confidence: float = Field(ge=0, le=1)


class Answer(BaseModel):
    """The answer to one question."""

    question: str
    answer: str
    confidence: float = Field(ge=0, le=1)
    type: str = Field(description="the type of question that the answer belongs to")
    alternatives: list[Alternative]


class VqaAnswer(BaseModel):
    """The answers about a tile, in the order of the questions."""

    model: Model
    tile: Tile
    answers: list[Answer]
    warnings: list[str]


class Results(BaseModel, Generic[AnswerT]):
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
