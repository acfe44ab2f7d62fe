"""Questions on UC Merced tiles from three sources.

- `labels`: made here from the 17 labels ("Are there ships?"), answered yes or no.
- `theme`: RSIVQA's theme question, one for each tile (Zheng et al., TGRS 2021).
- `people`: RSIVQA's questions written by people, on 559 tiles. 294 of the 2,795 lines lost their
  noun ("How many  in the picture?") and are dropped. Their theme of 50 airplane tiles is "airport".

RSIVQA's lines are `N.tif:question?answer`. Answers are lower case; wordings such as "up and bottom"
and "top and bottom" stay apart, as no source says that they mean the same.
"""

import logging
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tilesight.errors import DataError
from training.datasets.ucm import (
    SCENES,
    LabelTable,
    read_labels,
    read_lines,
    require_all,
    stem_of_number,
)

Kind = Literal["presence", "theme", "count", "location"]
Source = Literal["labels", "theme", "people"]

log = logging.getLogger(__name__)

_LINE = re.compile(r"(?P<number>\d+)\.tif:(?P<text>[^?]+\?)(?P<answer>.*\S.*)")
_NOUN_LOST = re.compile(r"\b(?:how many|location of the)\s+in\b", re.IGNORECASE)
_OPENINGS: dict[str, Kind] = {
    "does this picture contain ": "presence",
    "what is the theme ": "theme",
    "how many ": "count",
    "what is the location ": "location",
}
_THEME_PARAPHRASES = (
    "What is this place?",
    "What is shown in this tile?",
    "What kind of land use is this?",
    "What kind of scene is this?",
)
_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_NUMBERS = {
    **{word: value for value, word in enumerate(_UNITS)},
    **{word: 20 + 10 * index for index, word in enumerate(_TENS)},
}


@dataclass(frozen=True)
class Question:
    """One question on one tile, with the answer that its source gives."""

    stem: str
    text: str
    answer: str
    kind: Kind
    source: Source


@dataclass(frozen=True)
class Noun:
    """How a label is spoken of; a mass noun has no singular form."""

    many: str
    one: str | None = None


# The first noun of a label is the usual one; the others are what people also call it.
SPOKEN: dict[str, tuple[Noun, ...]] = {
    "airplane": (Noun("airplanes", "an airplane"), Noun("planes", "a plane")),
    "bare-soil": (Noun("bare soil"),),
    "buildings": (Noun("buildings", "a building"),),
    "cars": (Noun("cars", "a car"),),
    "chaparral": (Noun("chaparral"),),
    "court": (Noun("courts", "a court"), Noun("tennis courts", "a tennis court")),
    "dock": (Noun("docks", "a dock"),),
    "field": (Noun("fields", "a field"),),
    "grass": (Noun("grass"),),
    "mobile-home": (Noun("mobile homes", "a mobile home"),),
    "pavement": (Noun("pavement"),),
    "sand": (Noun("sand"),),
    "sea": (Noun("sea"),),
    "ship": (Noun("ships", "a ship"), Noun("boats", "a boat")),
    "tanks": (Noun("tanks", "a tank"), Noun("storage tanks", "a storage tank")),
    "trees": (Noun("trees", "a tree"),),
    "water": (Noun("water"),),
}


def _plain_question(noun: Noun) -> str:
    return f"{'Is' if noun.one is None else 'Are'} there {noun.many}?"


def phrasings(noun: Noun) -> list[str]:
    """The ways to ask whether a tile shows the noun; the plainest first."""
    be = "Is" if noun.one is None else "Are"
    asked = [
        _plain_question(noun),
        f"{be} there any {noun.many}?",
        f"{be} there any {noun.many} in the picture?",
        f"{be} there {noun.many} in this tile?",
        f"Does this picture contain {noun.many}?",
        f"Can you see {noun.many}?",
    ]
    if noun.one is not None:
        asked += [f"Is there {noun.one}?", f"Does this picture contain {noun.one}?"]
    return asked


def _nouns(label: str) -> tuple[Noun, ...]:
    if label not in SPOKEN:
        raise DataError(f"label {label!r}: no spoken name, known are {', '.join(SPOKEN)}")
    return SPOKEN[label]


def _presence(stem: str, text: str, present: bool) -> Question:
    return Question(stem, text, "yes" if present else "no", "presence", "labels")


def presence_questions(table: LabelTable, stems: Sequence[str], seed: int) -> list[Question]:
    """For each tile one question a present label and, where there are enough, as many absent ones.

    Labels and wordings are drawn for each tile by itself: neither the order nor the other stems
    change what is asked of a tile.
    """
    require_all("row of labels", [stem for stem in stems if stem not in table.rows], "label table")
    asked: list[Question] = []
    for stem in stems:
        generator = random.Random(f"{seed}:{stem}")
        marks = dict(zip(table.labels, table.rows[stem] > 0, strict=True))
        shown = [label for label in table.labels if marks[label]]
        absent = [label for label in table.labels if not marks[label]]
        for label in shown + generator.sample(absent, min(len(shown), len(absent))):
            noun = generator.choice(_nouns(label))
            text = generator.choice(phrasings(noun))
            asked.append(_presence(stem, text, bool(marks[label])))
    return asked


def all_presence_questions(table: LabelTable, stems: Sequence[str]) -> list[Question]:
    """Every label of every tile in the plainest wording: yes and no as often as in the labels."""
    require_all("row of labels", [stem for stem in stems if stem not in table.rows], "label table")
    return [
        _presence(stem, _plain_question(_nouns(label)[0]), bool(mark > 0))
        for stem in stems
        for label, mark in zip(table.labels, table.rows[stem], strict=True)
    ]


def read_theme(data: Path) -> list[Question]:
    """The theme questions of `vqa/theme.txt`."""
    return _read(data / "vqa" / "theme.txt", "theme")


def read_people(data: Path) -> list[Question]:
    """The questions of `vqa/human.txt`, without those that lost their noun (logged)."""
    return _read(data / "vqa" / "human.txt", "people")


def _read(path: Path, source: Source) -> list[Question]:
    lines = read_lines(path)
    whole = [(number, line) for number, line in enumerate(lines, 1) if not _NOUN_LOST.search(line)]
    if len(whole) < len(lines):
        lost = len(lines) - len(whole)
        log.info("%s: %d of %d questions lost their noun: dropped", path, lost, len(lines))
    return [_parse(f"{path}:{number}", line, source) for number, line in whole]


def _parse(where: str, line: str, source: Source) -> Question:
    match = _LINE.fullmatch(line)
    if match is None:
        raise DataError(f"{where}: not `N.tif:question?answer`: {line!r}")
    text = " ".join(match["text"].split())
    kind = next((k for opening, k in _OPENINGS.items() if text.lower().startswith(opening)), None)
    if kind is None:
        raise DataError(f"{where}: a question of no known kind: {text!r}")
    answer = " ".join(match["answer"].lower().split())
    stem = stem_of_number(int(match["number"]))
    return Question(stem, text[:1].upper() + text[1:], answer, kind, source)


def questions(data: Path, stems: Sequence[str], seed: int) -> list[Question]:
    """The balanced presence questions, the theme and the people's questions on the stems."""
    wanted = set(stems)
    written = [q for q in read_theme(data) + read_people(data) if q.stem in wanted]
    return presence_questions(read_labels(data), stems, seed) + written


def paraphrases(question: Question) -> list[Question]:
    """The question in other words, for training only; empty where its kind has none."""
    if question.kind != "theme":
        return []
    return [replace(question, text=text) for text in _THEME_PARAPHRASES]


def answer_list(train_questions: Iterable[Question], min_count: int) -> list[str]:
    """The answers given at least `min_count` times, most frequent first."""
    counts = Counter(question.answer for question in train_questions)
    kept = (answer for answer, count in counts.items() if count >= min_count)
    return sorted(kept, key=lambda answer: (-counts[answer], answer))


def count_of(answer: str) -> int | None:
    """The number that an answer such as "about twenty-eight" says, or None."""
    parts = answer.removeprefix("about ").split("-")
    if not all(part in _NUMBERS for part in parts):
        return None
    return sum(_NUMBERS[part] for part in parts)


def answer_type(answer: str) -> Kind:
    """The kind of question that the answer belongs to."""
    if answer in ("yes", "no"):
        return "presence"
    if answer in SCENES.values() or answer == "airport":
        return "theme"
    return "location" if count_of(answer) is None else "count"
