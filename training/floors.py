"""What systems reach that learn little or nothing: the floors that stand beside every figure.

Each function gives floor name -> metrics. "Oracle scene" floors are told the scene of each test
tile, so they show what a perfect scene classifier with a lookup table would reach.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocoevalcap.cider.cider import Cider
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors

from tilesight.errors import DataError
from tilesight.questions import words
from training.datasets.questions import Question
from training.datasets.ucm import scene_of
from training.label_figures import all_figures
from training.metrics import (
    Sentences,
    TokenizerName,
    answer_metrics,
    caption_metrics,
    label_metrics,
    tokenize,
)

Floors = dict[str, dict[str, float]]
_CANDIDATES = 10


def label_floors(
    train: NDArray[Any],
    test: NDArray[Any],
    train_scenes: Sequence[str] | None,
    test_scenes: Sequence[str] | None,
) -> Floors:
    """All label figures of two systems that see no pixel; of one, where tiles have no scenes.

    - `constant_set`: one set for all tiles, of the C sets that hold the k most frequent train
      labels the one with the best `f1_samples` on train.
    - `oracle_scene`: the labels that at least half of the scene's train tiles have; the shares
      are the scores.
    """
    thresholds = np.full(train.shape[1], 0.5)
    constant = np.broadcast_to(_best_constant_set(train), test.shape)
    found = {"constant_set": all_figures(test, constant, thresholds)}
    if train_scenes is None or test_scenes is None:
        return found
    shares = _scene_shares(train, train_scenes)
    unknown = sorted(set(test_scenes) - shares.keys())
    if unknown:
        raise DataError(f"scene floor: no train tile of {', '.join(unknown)}")
    oracle = np.stack([shares[scene] for scene in test_scenes])
    return found | {"oracle_scene": all_figures(test, oracle, thresholds)}


def _best_constant_set(train: NDArray[Any]) -> NDArray[np.float64]:
    by_frequency = np.argsort(-train.sum(axis=0), kind="stable")
    thresholds = np.full(train.shape[1], 0.5)

    def best_of(size: int) -> tuple[float, NDArray[np.float64]]:
        chosen = np.zeros(train.shape[1])
        chosen[by_frequency[:size]] = 1
        values = label_metrics(train, np.broadcast_to(chosen, train.shape), thresholds)
        return values["f1_samples"], chosen

    sets = [best_of(size) for size in range(1, train.shape[1] + 1)]
    return max(sets, key=lambda scored: scored[0])[1]


def _scene_shares(train: NDArray[Any], scenes: Sequence[str]) -> dict[str, NDArray[Any]]:
    names = np.array(scenes)
    return {str(name): train[names == name].mean(axis=0) for name in np.unique(names)}


def caption_floors(
    train: Sentences,
    references: Sentences,
    features: Mapping[str, NDArray[Any]] | None = None,
    tokenizer: TokenizerName | None = None,
) -> Floors:
    """The caption metrics of systems that only repeat sentences of the train tiles.

    - `oracle_scene`: one sentence a scene (`scene_templates`).
    - `nearest_neighbour`, with `features` (a vector for each train and test stem): the most
      frequent sentence of the train tile with the smallest cosine distance.
    """
    templates = scene_templates(train)
    unknown = sorted({scene_of(stem) for stem in references} - templates.keys())
    if unknown:
        raise DataError(f"scene floor: no train sentence for {', '.join(unknown)}")
    told = {"oracle_scene": {stem: templates[scene_of(stem)] for stem in references}}
    if features is not None:
        told["nearest_neighbour"] = nearest_sentences(train, list(references), features)
    known = [sentence for sentences in train.values() for sentence in sentences]
    return {
        name: caption_metrics(references, spoken, known, tokenizer) for name, spoken in told.items()
    }


def _ngrams(sentences: Sequence[str], order: int) -> list[tuple[str, ...]]:
    spoken = [words(sentence) for sentence in sentences]
    return [tuple(s[i : i + order]) for s in spoken for i in range(len(s) - order + 1)]


def scene_templates(train: Sentences) -> dict[str, str]:
    """For each scene the train sentence that agrees best with the scene's train tiles.

    Of the ten sentences that come first by `_consensus`, the one with the highest mean CIDEr-D when
    it is said of every train tile of its scene. (The best by `_consensus` alone, without CIDEr's
    length penalty and clipping, is a floor 0.18 CIDEr lower on UCM-Captions.)
    """
    candidates = {scene: ranked[:_CANDIDATES] for scene, ranked in _consensus(train).items()}
    scenes = np.array([scene_of(stem) for stem in train])
    expected = tokenize(train, "words")
    agreement: dict[str, list[float]] = defaultdict(list)
    for rank in range(max(map(len, candidates.values()))):
        said = {stem: [_at(candidates[scene_of(stem)], rank)] for stem in train}
        _, values = Cider().compute_score(expected, tokenize(said, "words"))
        for scene in candidates:
            agreement[scene].append(float(np.mean(values[scenes == scene])))
    return {scene: _at(candidates[scene], int(np.argmax(agreement[scene]))) for scene in candidates}


def _at(ranked: Sequence[str], rank: int) -> str:
    return ranked[min(rank, len(ranked) - 1)]


def _consensus(train: Sentences) -> dict[str, list[str]]:
    # For each scene its different sentences, those most like all the others first: the cosine of
    # tf-idf vectors of n-grams with the tiles as documents, as in CIDEr, summed over n = 1 to 4.
    spoken: dict[str, list[str]] = defaultdict(list)
    for stem, sentences in train.items():
        spoken[scene_of(stem)] += sentences
    different = {scene: list(dict.fromkeys(sentences)) for scene, sentences in spoken.items()}
    likeness = {scene: np.zeros(len(sentences)) for scene, sentences in different.items()}
    for order in range(1, 5):
        vectorizer = TfidfVectorizer(analyzer=partial(_ngrams, order=order), smooth_idf=False)
        vectorizer.fit(list(train.values()))
        for scene in spoken:
            centre = vectorizer.transform([[text] for text in spoken[scene]]).mean(axis=0)
            vectors = vectorizer.transform([[text] for text in different[scene]])
            likeness[scene] += vectors @ np.asarray(centre).ravel()
    return {
        scene: [different[scene][index] for index in np.argsort(-likeness[scene], kind="stable")]
        for scene in different
    }


def nearest_sentences(
    train: Sentences, stems: Sequence[str], features: Mapping[str, NDArray[Any]]
) -> dict[str, str]:
    """For each stem the most frequent sentence of the train tile nearest to it by cosine."""
    known = list(train)
    missing = [stem for stem in [*known, *stems] if stem not in features]
    if missing:
        raise DataError(f"neighbour floor: no features for {len(missing)} stems: {missing[0]}, ...")
    search = NearestNeighbors(n_neighbors=1, metric="cosine")
    search.fit(np.stack([features[stem] for stem in known]))
    nearest = search.kneighbors(np.stack([features[stem] for stem in stems]), return_distance=False)
    return {
        stem: Counter(train[known[index]]).most_common(1)[0][0]
        for stem, index in zip(stems, nearest[:, 0], strict=True)
    }


Key = Callable[[Question], Hashable]


def _by_kind(question: Question) -> Hashable:
    return question.kind


def _by_question(question: Question) -> Hashable:
    return question.kind, question.text


def _by_scene(question: Question) -> Hashable:
    return question.kind, question.text, scene_of(question.stem)


def answer_floors(train: Sequence[Question], test: Sequence[Question]) -> Floors:
    """The answer metrics of the most frequent train answer, ties to the first in the alphabet.

    - `majority_of_kind`: to a question of this kind.
    - `majority_of_question`: to this very question, else as above.
    - `oracle_scene`: to this very question on a tile of the same scene, else as above.
    """
    keys: list[tuple[str, Key]] = [
        ("majority_of_kind", _by_kind),
        ("majority_of_question", _by_question),
        ("oracle_scene", _by_scene),
    ]
    kinds = [question.kind for question in test]
    truth = [question.answer for question in test]
    predicted = _majority(train, test, lambda _: None, None)
    floors: Floors = {}
    for name, key in keys:
        predicted = _majority(train, test, key, predicted)
        floors[name] = answer_metrics(kinds, truth, predicted)
    return floors


def _majority(
    train: Sequence[Question],
    test: Sequence[Question],
    key: Key,
    fallback: Sequence[str] | None,
) -> list[str]:
    counts: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for question in train:
        counts[key(question)][question.answer] += 1
    best = {seen: min(c, key=lambda answer: (-c[answer], answer)) for seen, c in counts.items()}
    otherwise = fallback if fallback is not None else [""] * len(test)
    return [best.get(key(q), other) for q, other in zip(test, otherwise, strict=True)]
