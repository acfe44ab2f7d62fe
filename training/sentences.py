"""Sentences as token ids: the special tokens that both caption decoders share."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tilesight.questions import encode

PAD, BOS, EOS, UNK = range(4)
SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")  # in the order of their ids


def sentence_ids(text: str, vocabulary: Sequence[str], length: int) -> NDArray[np.int64]:
    """(length,) token ids of the sentence with its end, padded, cut where it is longer."""
    ids = [*encode(text, vocabulary, UNK)[: length - 1], EOS]
    return np.array(ids + [PAD] * (length - len(ids)), dtype=np.int64)
