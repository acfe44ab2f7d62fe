"""From a question to token ids and back: words of a fixed vocabulary, no torch."""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import NFKC, Lowercase, Replace, Strip
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import WhitespaceSplit

from tilesight.errors import QuestionError
from tilesight.manifest import AnswerHead

# Everything that is neither letter, digit nor apostrophe separates words.
_SEPARATORS = Regex(r"[^\p{L}\p{N}']+")
_NORMALIZER = Normalizers([NFKC(), Lowercase(), Replace(_SEPARATORS, " "), Strip()])


def words(text: str) -> list[str]:
    """The words of a text: lower case, punctuation dropped."""
    return str(_NORMALIZER.normalize_str(text)).split()


@lru_cache(maxsize=16)
def _tokenizer(vocabulary: tuple[str, ...], unknown: str) -> Tokenizer:
    ids = {word: index for index, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=unknown))
    tokenizer.normalizer = _NORMALIZER
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer


def encode(text: str, vocabulary: Sequence[str], unk_id: int) -> list[int]:
    """The token id of each word of the text; `unk_id` for a word outside the vocabulary."""
    return list(_tokenizer(tuple(vocabulary), vocabulary[unk_id]).encode(text).ids)


def vocabulary_of(texts: Iterable[str], specials: Sequence[str], min_count: int) -> list[str]:
    """The special tokens, then each word seen at least `min_count` times, most frequent first."""
    counts: dict[str, int] = {}
    for text in texts:
        for word in words(text):
            counts[word] = counts.get(word, 0) + 1
    kept = [word for word, count in counts.items() if count >= min_count]
    return [*specials, *sorted(kept, key=lambda word: (-counts[word], word))]


def question_ids(text: str, head: AnswerHead) -> tuple[NDArray[np.int64], list[str]]:
    """The question as (max_tokens,) token ids, padded, and the words that the model never saw.

    Raises:
        QuestionError: the question is empty, too long, or without one known word.
    """
    if not text.strip():
        raise QuestionError("question: empty")
    if len(text) > head.max_characters:
        raise QuestionError(
            f"question: {len(text)} characters, the limit is {head.max_characters}",
            head.max_characters,
            "characters",
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise QuestionError("question: holds half a character (a lone surrogate)") from None
    found = words(text)
    ids = encode(text, head.vocabulary, head.unk_id)
    if len(ids) > head.max_tokens:
        raise QuestionError(
            f"question: {len(ids)} words, the limit is {head.max_tokens}", head.max_tokens, "words"
        )
    unknown = [word for word, token in zip(found, ids, strict=True) if token == head.unk_id]
    if len(unknown) == len(ids):
        raise QuestionError(
            "question: none of its words is known to the model, which reads English: "
            f"{', '.join(unknown[:10]) or repr(text[:50])}"
        )
    padded = np.full(head.max_tokens, head.pad_id, dtype=np.int64)
    padded[: len(ids)] = ids
    return padded, unknown


def sentence(token_ids: Sequence[int], vocabulary: Sequence[str], eos_id: int) -> str:
    """The words of the tokens before the first end token, as a sentence."""
    spoken = []
    for token in token_ids:
        if token == eos_id:
            break
        spoken.append(vocabulary[token])
    text = " ".join(spoken)
    return text[:1].upper() + text[1:] + "." if text else ""
