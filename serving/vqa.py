"""Answers to questions: each tile is encoded once for all of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from serving import answers
from serving.engine import Engine
from serving.errors import RequestError
from serving.jobs import Ask
from serving.repository import Served
from serving.timing import Postprocessing
from tilesight.errors import QuestionError
from tilesight.manifest import AnswerHead
from tilesight.questions import question_ids

_ALTERNATIVES = 3


class VqaOptions(BaseModel):
    """What a caller can say in the query."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: list[str] | None = Field(
        default=None,
        description="a question, repeatable; before those of the body, if there are",
    )


async def answer(
    engine: Engine, images: Sequence[bytes], questions: Sequence[str], ask: Ask
) -> list[answers.VqaAnswer]:
    """The answers to all questions for each tile, in the order of tiles and questions.

    Raises:
        QuestionError: a question that the model cannot be asked; names it if there are several.
        RequestError: no question, or more than the limit.
    """
    # Encoder and head of one moment: a head reads the memory of no other encoder.
    with engine.models.using() as served:
        return await _answer_all(engine, served, images, questions, ask)


async def _answer_all(
    engine: Engine, served: Served, images: Sequence[bytes], questions: Sequence[str], ask: Ask
) -> list[answers.VqaAnswer]:
    encoder, head = served.encoder, served.vqa
    ids, warnings = _read(questions, head.head, engine.settings.max_questions)
    tiles = await engine.look(encoder, images, ["memory"], ask)
    rows = [
        {"memory": tile.values["memory"], "question": question}
        for tile in tiles
        for question in ids
    ]
    found = await engine.run(head, rows, ["answers"], ask)
    ask.timing.model = model = engine.models.info(head)
    with Postprocessing(ask.timing):
        return [
            answers.VqaAnswer(
                model=model,
                tile=tile.info,
                answers=[
                    _answer(head.head, question, found[row * len(questions) + column]["answers"])
                    for column, question in enumerate(questions)
                ],
                warnings=[*tile.warnings, *warnings],
            )
            for row, tile in enumerate(tiles)
        ]


def _read(
    questions: Sequence[str], head: AnswerHead, limit: int
) -> tuple[NDArray[np.int64], list[str]]:
    """The questions as (Q, tokens) ids, and a warning for each with words unknown to the model."""
    if not questions:
        raise RequestError("question: none was asked", parameter="question")
    if len(questions) > limit:
        raise RequestError(
            f"question: {len(questions)} were asked, the limit is {limit}",
            parameter="question",
            limit=limit,
        )
    rows, warnings = [], []
    for index, question in enumerate(questions):
        try:
            ids, unknown = question_ids(question, head)
        except QuestionError as error:
            if len(questions) == 1:
                raise
            raise error.told(f"{error} (question {index + 1} of {len(questions)})") from error
        rows.append(ids)
        if unknown:
            warnings.append(
                f"question {index + 1}: the model does not know the word"
                f"{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}"
            )
    return np.stack(rows), warnings


def _answer(head: AnswerHead, question: str, probabilities: NDArray[Any]) -> answers.Answer:
    """The likeliest of the (A,) answers, and the ones after it."""
    best, *others = (-probabilities).argsort(kind="stable")[: _ALTERNATIVES + 1]
    return answers.Answer(
        question=question,
        answer=head.answers[best],
        confidence=answers.probability(probabilities[best]),
        type=head.answer_types[best],
        alternatives=[
            answers.Alternative(
                answer=head.answers[index], confidence=answers.probability(probabilities[index])
            )
            for index in others
        ],
    )
