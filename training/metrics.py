"""Figures of merit for tags, captions and answers: pure functions on arrays and sentences.

All are shares between 0 and 1, except CIDEr (0 to 10), the counts `classes_skipped` and `distinct`.
"""

import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer import ptbtokenizer
from sklearn.metrics import (
    average_precision_score,
    fbeta_score,
    precision_recall_fscore_support,
)

from tilesight.errors import DataError
from tilesight.questions import words

TokenizerName = Literal["ptb", "words"]
Sentences = Mapping[str, Sequence[str]]


def f_beta(precision: float, recall: float, beta: float) -> float:
    """(1 + b^2) P R / (b^2 P + R), 0 where the denominator is 0."""
    denominator = beta**2 * precision + recall
    return (1 + beta**2) * precision * recall / denominator if denominator > 0 else 0.0


def label_metrics(
    truth: NDArray[Any], scores: NDArray[Any], thresholds: NDArray[Any]
) -> dict[str, float]:
    """The multi-label figures of (N, C) scores; a label is present where its threshold is reached.

    With P, R of one tile and F_b = (1 + b^2) P R / (b^2 P + R):

    - `precision_samples`, `recall_samples`, `f1_samples`, `f2_samples`: means over the tiles of
      P, R, F_1 and F_2; 0 where a denominator is 0. `f1_samples` is the headline of the field.
    - `f1_paper`, `f2_paper`: F_b of the mean P and mean R (SIGNA, Eq. 6 and 7), 1 to 2 points more.
    - `f1_micro`: F_1 of the counts pooled over all labels and tiles.
    - `f1_macro`, `map`: means over the classes of F_1 and of the average precision. Classes
      without a positive tile in `truth` have neither and are skipped: `classes_skipped` of them.

    Raises:
        DataError: the shapes differ, there are fewer than two classes, or no class has a positive
            tile.
    """
    if truth.shape != scores.shape or thresholds.shape != truth.shape[1:] or truth.shape[1] < 2:
        raise DataError(
            f"labels: truth {truth.shape}, scores {scores.shape}, thresholds {thresholds.shape}"
        )
    truth = truth.astype(np.int64)
    predicted = (scores >= thresholds).astype(np.int64)
    classes = np.flatnonzero(truth.any(axis=0))
    if classes.size == 0:
        raise DataError("labels: no class has a positive tile")
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, predicted, average="samples", zero_division=0
    )
    f2 = fbeta_score(truth, predicted, beta=2, average="samples", zero_division=0)
    micro = fbeta_score(truth, predicted, beta=1, average="micro", zero_division=0)
    of_class = fbeta_score(truth, predicted, beta=1, average=None, zero_division=0)
    return {
        "f1_samples": float(f1),
        "f2_samples": float(f2),
        "precision_samples": float(precision),
        "recall_samples": float(recall),
        "f1_paper": f_beta(float(precision), float(recall), 1),
        "f2_paper": f_beta(float(precision), float(recall), 2),
        "f1_micro": float(micro),
        "f1_macro": float(of_class[classes].mean()),
        "map": float(
            np.mean([average_precision_score(truth[:, c], scores[:, c]) for c in classes])
        ),
        "classes_skipped": float(truth.shape[1] - classes.size),
    }


def tokenizer_name() -> TokenizerName:
    """The tokenizer that `caption_metrics` uses here: PTB where there is Java, else own words."""
    return "words" if shutil.which("java") is None else "ptb"


def caption_metrics(
    references: Sentences,
    hypotheses: Mapping[str, str],
    train_sentences: Iterable[str] | None = None,
    tokenizer: TokenizerName | None = None,
    meteor: bool = True,
) -> dict[str, float]:
    """The caption figures of pycocoevalcap over the tiles of `references`.

    - `bleu_1` to `bleu_4`: corpus BLEU with the closest reference length.
    - `rouge_l`: mean over the tiles of the longest-common-subsequence F (beta 1.2).
    - `cider`: CIDEr-D (sigma 6); document frequencies come from `references`.
    - `meteor`: METEOR 1.5, and `sm` = (bleu_4 + meteor + rouge_l + cider) / 4. Both need Java and
      are left out with the tokenizer "words", and where `meteor` is not wanted: it is slow.
    - `distinct`: how many different sentences the hypotheses are.
    - `verbatim_train`: share of the hypotheses that are a sentence of `train_sentences` word by
      word; left out without them.

    `tokenizer` defaults to `tokenizer_name()`, which a report has to state.

    Raises:
        DataError: references and hypotheses are not of the same tiles, or there are none.
    """
    if not references or references.keys() != hypotheses.keys():
        raise DataError(
            f"captions: references of {len(references)} tiles, hypotheses of {len(hypotheses)}, "
            f"{len(references.keys() & hypotheses.keys())} in common"
        )
    name = tokenizer or tokenizer_name()
    expected = tokenize(references, name)
    # One order for both: the scorers walk the references' keys.
    spoken = tokenize({stem: [hypotheses[stem]] for stem in references}, name)
    values = _overlap(expected, spoken)
    if name == "ptb" and meteor:
        values["meteor"] = _meteor_score(expected, spoken)
        values["sm"] = sum(values[key] for key in ("bleu_4", "meteor", "rouge_l", "cider")) / 4
    return values | _variety(list(hypotheses.values()), train_sentences)


def _overlap(expected: Sentences, spoken: Sentences) -> dict[str, float]:
    bleu, _ = Bleu(4).compute_score(expected, spoken, verbose=0)
    rouge, _ = Rouge().compute_score(expected, spoken)
    cider, _ = Cider().compute_score(expected, spoken)
    named = {f"bleu_{order}": float(value) for order, value in enumerate(bleu, start=1)}
    return named | {"rouge_l": float(rouge), "cider": float(cider)}


def _variety(hypotheses: Sequence[str], train_sentences: Iterable[str] | None) -> dict[str, float]:
    spoken = [tuple(words(sentence)) for sentence in hypotheses]
    values = {"distinct": float(len(set(spoken)))}
    if train_sentences is not None:
        known = {tuple(words(sentence)) for sentence in train_sentences}
        values["verbatim_train"] = sum(sentence in known for sentence in spoken) / len(spoken)
    return values


def tokenize(sentences: Sentences, name: TokenizerName) -> dict[str, list[str]]:
    """The sentences as lower-case tokens joined by blanks, without punctuation."""
    if name == "words":
        return {stem: [" ".join(words(text)) for text in sentences[stem]] for stem in sentences}
    flat = [" ".join(text.split()) for stem in sentences for text in sentences[stem]]
    lines = iter(_ptb_lines(flat))
    return {stem: [next(lines) for _ in sentences[stem]] for stem in sentences}


def _ptb_lines(sentences: Sequence[str]) -> list[str]:
    # pycocoevalcap's own call writes into its package's folder, reports to stderr and loses empty
    # sentences at the end; the Java class, its options and the list of dropped tokens are the same.
    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    output = subprocess.run(
        [*command, "-preserveLines", "-lowerCase"],
        input="".join(f"{sentence}\n" for sentence in sentences),
        capture_output=True,
        check=True,
        encoding="utf-8",
    ).stdout
    lines = output.split("\n")[: len(sentences)]
    dropped = set(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(token for token in line.split() if token not in dropped) for line in lines]


@contextmanager
def _meteor() -> Iterator[Meteor]:
    scorer = Meteor()
    process = scorer.meteor_p
    try:
        yield scorer
    finally:
        # Its destructor leaves two of the three pipes open.
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()


def _meteor_score(expected: Sentences, spoken: Sentences) -> float:
    with _meteor() as scorer:
        score, _ = scorer.compute_score(expected, spoken)
    return float(score)


def answer_metrics(
    kinds: Sequence[str], truth: Sequence[str], predicted: Sequence[str]
) -> dict[str, float]:
    """The share of right answers: `overall`, of each kind, and `average` over the kinds.

    An answer is right when it equals the true one letter by letter. `average` is the unweighted
    mean of the kinds that occur.

    Raises:
        DataError: there is no question, or the lengths differ.
    """
    if not truth or not len(kinds) == len(truth) == len(predicted):
        raise DataError(
            f"answers: {len(kinds)} kinds, {len(truth)} true answers, {len(predicted)} predicted"
        )
    right = np.array([t == p for t, p in zip(truth, predicted, strict=True)])
    of_kind = np.array(kinds)
    values = {kind: float(right[of_kind == kind].mean()) for kind in sorted(set(kinds))}
    average = sum(values.values()) / len(values)
    return {"overall": float(right.mean()), "average": average, **values}
