"""Label vectors from a file of word vectors in GloVe's text format: a word and its numbers a line.

A label of several words (`bare-soil`) gets the mean of the vectors of those words that the file
has. A label none of whose words it has gets a random vector of the mean length of the others, the
same in every run: its generator is seeded by the label. What was found is kept in the run's card.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tilesight.errors import DataError
from tilesight.manifest import Strict

_BETWEEN_WORDS = re.compile(r"[\s_-]+")


class VectorSource(Strict):
    """Where a label's vector comes from."""

    label: str
    words: list[str]
    missing: list[str]


def words_of(label: str) -> list[str]:
    """The words that a label is looked up by."""
    return [word for word in _BETWEEN_WORDS.split(label.lower()) if word]


def read_vectors(
    path: Path, labels: Sequence[str], width: int
) -> tuple[NDArray[np.float32], list[VectorSource]]:
    """(C, W) a vector for each label, and where each comes from.

    Raises:
        DataError: no such file, a line that is no word with numbers, another width than asked for,
            or not one word of any label.
    """
    wanted = {word for label in labels for word in words_of(label)}
    found = {word: vector for word, vector in _lines(path, width) if word in wanted}
    if not found:
        raise DataError(f"{path}: has not one word of the labels {', '.join(labels)}")
    length = float(np.mean([np.linalg.norm(vector) for vector in found.values()]))
    vectors, sources = [], []
    for label in labels:
        known = [word for word in words_of(label) if word in found]
        missing = [word for word in words_of(label) if word not in found]
        vectors.append(
            np.mean([found[word] for word in known], axis=0)
            if known
            else _random(label, width, length)
        )
        sources.append(VectorSource(label=label, words=known, missing=missing))
    return np.stack(vectors).astype(np.float32), sources


def _lines(path: Path, width: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    if not path.is_file():
        raise DataError(f"--vectors {path}: no such file")
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                word, *values = line.split()
                if len(values) != width:
                    raise DataError(
                        f"{path}:{number}: {len(values)} numbers, label_vector_width is {width}"
                    )
                yield word, np.array(values, dtype=np.float32)
    except ValueError as error:
        raise DataError(f"{path}: not word vectors in GloVe's text format: {error}") from None


def _random(label: str, width: int, length: float) -> NDArray[np.float64]:
    seed = int.from_bytes(hashlib.sha256(label.encode()).digest()[:8], "big")
    vector = np.random.default_rng(seed).standard_normal(width)
    return vector * (length / float(np.linalg.norm(vector)))
