"""UCM-Captions (Qu et al., 2016): five sentences for each tile, and the words that JTTS tags.

`captions.json` is in the layout of Karpathy's caption sets. Its `tokens` keep typos ('formland'),
so the sentences are read from `raw`, whose closing ' .' is dropped.

`attributes/ucm.txt` is JTTS's attribute vocabulary: the nouns and adjectives that occur more than
100 times in the sentences of the train part (words as `tilesight.questions.words` counts them),
most frequent first; participles ("parked") and numerals are no adjectives. The paper names no
tagger; the words were chosen by hand and are frozen, so nothing tags at run time.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilesight.errors import DataError
from tilesight.questions import words
from training.datasets.ucm import read_lines, require_all, stem_of_number

_ATTRIBUTES = Path(__file__).parent / "attributes"


def read_captions(data: Path) -> dict[str, list[str]]:
    """The sentences of each tile: stem -> sentences without the full stop.

    Raises:
        DataError: the file is missing or not in the expected layout.
    """
    return {
        _stem(image): [_plain(sentence["raw"]) for sentence in image["sentences"]]
        for image in _images(data)
    }


def official_split(data: Path) -> dict[str, list[str]]:
    """The split that `captions.json` carries: part -> stems in the file's order."""
    split: dict[str, list[str]] = {}
    for image in _images(data):
        split.setdefault(image["split"], []).append(_stem(image))
    return split


def _images(data: Path) -> list[dict[str, Any]]:
    path = data / "captions.json"
    try:
        images = json.loads("\n".join(read_lines(path)))["images"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a JSON object with `images`") from error
    for number, image in enumerate(images):
        if not {"filename", "split", "sentences"} <= image.keys() or not image["sentences"]:
            raise DataError(f"{path}: image {number}: no filename, split or sentences")
    return list(images)


def _stem(image: Mapping[str, Any]) -> str:
    number = str(image["filename"]).removesuffix(".tif")
    if not number.isdecimal():
        raise DataError(f"captions.json: {image['filename']!r} is not a number and .tif")
    return stem_of_number(int(number))


def _plain(raw: str) -> str:
    return " ".join(raw.split()).removesuffix(".").rstrip()


def read_attributes(name: str = "ucm") -> list[str]:
    """The committed attribute words of a data set."""
    return read_lines(_ATTRIBUTES / f"{name}.txt")


def attribute_matrix(
    captions: Mapping[str, Sequence[str]], stems: Sequence[str], attributes: Sequence[str]
) -> NDArray[np.float32]:
    """Which attribute occurs in any of a tile's sentences, (N, A) of 0 and 1."""
    require_all("captions", [stem for stem in stems if stem not in captions], "captions")
    matrix = np.zeros((len(stems), len(attributes)), dtype=np.float32)
    for row, stem in zip(matrix, stems, strict=True):
        spoken = {word for sentence in captions[stem] for word in words(sentence)}
        row[:] = [attribute in spoken for attribute in attributes]
    return matrix
