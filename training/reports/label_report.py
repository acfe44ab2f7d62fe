"""The report of a multi-label tagger: `report.json`, `report.md` and the pictures it shows."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tilesight.errors import DataError
from tilesight.files import write_text
from training import label_figures
from training.attention_use import AttentionUse
from training.floors import Floors
from training.label_figures import ClassRow, ConfusedPair
from training.reports import label_pictures
from training.reports.label_pictures import (
    CLASS_BARS,
    CURVES,
    GRAPH,
    HEAT_MAPS,
    MATRIX,
    SCENES,
)
from training.reports.label_text import report_text

JSON_NAME = "report.json"
REPORT_NAME = "report.md"
PAIRS = 10
MACRO_RULE = (
    "A class without a positive tile in the split has no recall and no average precision: it is "
    "left out of every mean over the classes and counted. In the pooled (micro) figures its false "
    "positives count."
)


@dataclass(frozen=True)
class HeatMaps:
    """Tiles (K, H, W, 3) of the test part, M labels of each, and maps (K, M, H, W) of 0 to 1."""

    stems: Sequence[str]
    tiles: NDArray[np.uint8]
    labels: Sequence[Sequence[str]]
    maps: NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class LabelEvaluation:
    """What a report is of: truth (n, C) and scores (n, C) of the parts of a split, and its origin.

    Scores are probabilities. `features` (N, D) and `scenes` (N) are of the test tiles, in the
    order of `test_stems`. `edge_threshold` is Q of the label graph (SIGNA, Eq. 2).
    """

    model: str
    labels: Sequence[str]
    train_truth: NDArray[Any]
    val_truth: NDArray[Any]
    val_scores: NDArray[Any]
    test_truth: NDArray[Any]
    test_scores: NDArray[Any]
    test_stems: Sequence[str]
    split: str
    split_sha256: str
    seed: int
    commit: str
    edge_threshold: float
    floors: Floors
    notes: Mapping[str, str] = field(default_factory=dict)
    tuned: NDArray[Any] | None = None  # (C,) thresholds; chosen on the val scores where absent
    features: NDArray[Any] | None = None
    scenes: Sequence[str] | None = None
    heat_maps: HeatMaps | None = None
    attention: AttentionUse | None = None


def write_label_report(evaluation: LabelEvaluation, folder: Path) -> dict[str, Any]:
    """What `report.json` holds, once it, the pictures and `report.md` are written to the folder.

    Each file is whole or not there; `report.md` comes last, so that its links lead somewhere.

    Raises:
        DataError: arrays of shapes that do not fit together, scores that are no probabilities, no
            class with a positive tile, or heat maps of tiles or labels that are not evaluated.
    """
    facts = label_report(evaluation)
    for name, figure in _drawings(evaluation):
        label_pictures.save(figure, folder / name)
    text = json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(folder / JSON_NAME, text + "\n")
    write_text(folder / REPORT_NAME, report_text(facts))
    return facts


def label_report(evaluation: LabelEvaluation) -> dict[str, Any]:
    """The report's figures as JSON writes them, with the file name and caption of each picture.

    Raises:
        DataError: as `write_label_report` does.
    """
    _check(evaluation)
    thresholds = _thresholds(evaluation)
    return {
        "model": evaluation.model,
        "split": evaluation.split,
        "split_sha256": evaluation.split_sha256,
        "seed": evaluation.seed,
        "commit": evaluation.commit,
        "notes": dict(evaluation.notes),
        "tiles": {
            "train": len(evaluation.train_truth),
            "val": len(evaluation.val_truth),
            "test": len(evaluation.test_truth),
        },
        "macro_rule": MACRO_RULE,
        "thresholds": {
            name: dict(zip(evaluation.labels, values.tolist(), strict=True))
            for name, values in thresholds.items()
        },
        "values": {
            name: label_figures.all_figures(evaluation.test_truth, evaluation.test_scores, values)
            for name, values in thresholds.items()
        },
        "val_values": {
            name: label_figures.all_figures(evaluation.val_truth, evaluation.val_scores, values)
            for name, values in thresholds.items()
        },
        "floors": evaluation.floors,
        "classes": {
            name: [row.as_json() for row in _table_of(evaluation, values)]
            for name, values in thresholds.items()
        },
        "confused_pairs": {
            name: [_pair_facts(pair, evaluation.test_stems) for pair in _pairs(evaluation, values)]
            for name, values in thresholds.items()
        },
        "attention": evaluation.attention.as_json() if evaluation.attention else None,
        "label_graph": {"threshold": evaluation.edge_threshold, "edges": _edges(evaluation)},
        "pictures": _pictures(evaluation),
    }


def _check(evaluation: LabelEvaluation) -> None:
    count, tiles = len(evaluation.labels), len(evaluation.test_stems)
    shapes = {
        "train truth": (evaluation.train_truth.shape, (len(evaluation.train_truth), count)),
        "val truth": (evaluation.val_truth.shape, (len(evaluation.val_truth), count)),
        "val scores": (evaluation.val_scores.shape, evaluation.val_truth.shape),
        "test truth": (evaluation.test_truth.shape, (tiles, count)),
        "test scores": (evaluation.test_scores.shape, (tiles, count)),
    }
    if evaluation.tuned is not None:
        shapes["tuned thresholds"] = (evaluation.tuned.shape, (count,))
    if evaluation.features is not None:
        shapes["features"] = (evaluation.features.shape[:1], (tiles,))
    if evaluation.scenes is not None:
        shapes["scenes"] = ((len(evaluation.scenes),), (tiles,))
    wrong = [f"{name} {found} for {due}" for name, (found, due) in shapes.items() if found != due]
    if wrong:
        raise DataError(f"label report: {'; '.join(wrong)}")
    if len(set(evaluation.labels)) != count:
        raise DataError("label report: a label occurs twice")
    label_figures.check_scores(evaluation.val_scores)
    label_figures.check_scores(evaluation.test_scores)
    if evaluation.heat_maps is not None:
        _check_heat_maps(evaluation, evaluation.heat_maps)


def _check_heat_maps(evaluation: LabelEvaluation, heat_maps: HeatMaps) -> None:
    shown = {label for labels in heat_maps.labels for label in labels}
    unknown = sorted(
        (set(heat_maps.stems) - set(evaluation.test_stems)) | (shown - set(evaluation.labels))
    )
    if unknown:
        raise DataError(f"heat maps: not evaluated are {', '.join(unknown)}")
    counts = {len(labels) for labels in heat_maps.labels}
    due = (len(heat_maps.stems), *counts, *heat_maps.tiles.shape[1:3])
    if (
        not len(heat_maps.stems) == len(heat_maps.tiles) == len(heat_maps.labels) > 0
        or len(counts) > 1
        or 0 in counts
        or heat_maps.maps.shape != due
        or heat_maps.tiles.shape[3:] != (3,)
    ):
        raise DataError(
            f"heat maps: {len(heat_maps.stems)} stems, {sorted(counts)} labels each, tiles "
            f"{heat_maps.tiles.shape}, maps {heat_maps.maps.shape}"
        )


def _thresholds(evaluation: LabelEvaluation) -> dict[str, NDArray[np.float64]]:
    tuned = evaluation.tuned
    if tuned is None:
        tuned = label_figures.tuned_thresholds(evaluation.val_truth, evaluation.val_scores)
    return {"half": label_figures.half(len(evaluation.labels)), "tuned": tuned}


def _table_of(evaluation: LabelEvaluation, thresholds: NDArray[np.float64]) -> list[ClassRow]:
    return label_figures.class_table(
        evaluation.labels, evaluation.test_truth, evaluation.test_scores, thresholds
    )


def _pairs(evaluation: LabelEvaluation, thresholds: NDArray[np.float64]) -> list[ConfusedPair]:
    predicted = evaluation.test_scores >= thresholds
    return label_figures.confused_pairs(evaluation.test_truth, predicted, evaluation.labels, PAIRS)


def _pair_facts(pair: ConfusedPair, stems: Sequence[str]) -> dict[str, Any]:
    return pair.as_json() | {"tiles": [stems[row] for row in pair.tiles]}


def _edges(evaluation: LabelEvaluation) -> list[dict[str, Any]]:
    shares = label_figures.conditional_shares(evaluation.train_truth)
    return [
        {
            "from": evaluation.labels[i],
            "to": evaluation.labels[j],
            "share": float(shares[i, j]),
        }
        for i, j in label_figures.graph_edges(shares, evaluation.edge_threshold)
    ]


def _pictures(evaluation: LabelEvaluation) -> dict[str, str]:
    """File name -> caption."""
    pictures = {
        CLASS_BARS: "F1 of each class at threshold 0.5 and with its tuned threshold",
        CURVES: "Precision and recall of each class over all thresholds",
        MATRIX: "Which labels the training tiles have together",
        GRAPH: f"The label graph of the training tiles at Q = {evaluation.edge_threshold:g}",
    }
    if evaluation.features is not None:
        pictures[SCENES] = "The network's features of the test tiles in the plane (t-SNE)"
    if evaluation.heat_maps is not None:
        pictures[HEAT_MAPS] = (
            "Where on the tile the network sees a label, with its score and whether the "
            "annotation has it"
        )
    return pictures


def _drawings(evaluation: LabelEvaluation) -> Iterator[tuple[str, Figure]]:
    """File name and picture of each of `_pictures`, drawn when it is asked for."""
    at_half, tuned = (_table_of(evaluation, values) for values in _thresholds(evaluation).values())
    labels, truth = evaluation.labels, evaluation.train_truth
    yield CLASS_BARS, label_pictures.class_bars(at_half, tuned)
    yield (
        CURVES,
        label_pictures.precision_recall_panels(
            evaluation.test_truth, evaluation.test_scores, at_half, tuned
        ),
    )
    yield MATRIX, label_pictures.co_occurrence_matrix(labels, truth)
    yield GRAPH, label_pictures.label_graph(labels, truth, evaluation.edge_threshold)
    if evaluation.features is not None:
        yield SCENES, _scene_map(evaluation, evaluation.features)
    if evaluation.heat_maps is not None:
        yield HEAT_MAPS, _heat_map_grid(evaluation, evaluation.heat_maps)


def _scene_map(evaluation: LabelEvaluation, features: NDArray[Any]) -> Figure:
    rows = label_pictures.drawn_rows(len(features), evaluation.seed)
    places = label_pictures.embedded(features[rows], evaluation.seed)
    scenes = evaluation.scenes
    return label_pictures.scene_map(places, None if scenes is None else [scenes[r] for r in rows])


def _heat_map_grid(evaluation: LabelEvaluation, heat_maps: HeatMaps) -> Figure:
    places = {stem: row for row, stem in enumerate(evaluation.test_stems)}
    columns = {label: column for column, label in enumerate(evaluation.labels)}

    def remark(stem: str, label: str) -> str:
        cell = places[stem], columns[label]
        there = "present" if evaluation.test_truth[cell] else "absent"
        return f"score {evaluation.test_scores[cell]:.2f}, {there}"

    remarks = [
        [remark(stem, label) for label in labels]
        for stem, labels in zip(heat_maps.stems, heat_maps.labels, strict=True)
    ]
    return label_pictures.heat_map_grid(
        heat_maps.tiles, heat_maps.maps, heat_maps.stems, heat_maps.labels, remarks
    )
