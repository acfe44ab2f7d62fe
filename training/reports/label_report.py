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
from training.floors import Floors
from training.label_figures import ClassRow, ConfusedPair
from training.reports import label_pictures

JSON_NAME = "report.json"
REPORT_NAME = "report.md"
PAIRS = 10
MACRO_RULE = (
    "A class without a positive tile in the split has no recall and no average precision: it is "
    "left out of every mean over the classes and counted. In the pooled (micro) figures its false "
    "positives count."
)

_NONE = "-"
_EXAMPLES = 3
# The figures of the headline table in its order: name, and what it is.
_FIGURES = (
    ("f1_samples", "**F1, mean over the tiles (headline)**"),
    ("f2_samples", "F2, mean over the tiles"),
    ("precision_samples", "P, mean over the tiles"),
    ("recall_samples", "R, mean over the tiles"),
    ("f1_paper", "F1 of the tiles' mean P and mean R (SIGNA, Eq. 6-7)"),
    ("f2_paper", "F2 of the tiles' mean P and mean R (SIGNA, Eq. 6-7)"),
    ("f1_macro", "F1, mean over the classes"),
    ("f2_macro", "F2, mean over the classes"),
    ("precision_macro", "P, mean over the classes"),
    ("recall_macro", "R, mean over the classes"),
    ("f1_class_means", "F1 of the classes' mean P and mean R (SIGNA, Eq. 8-9; CF1)"),
    ("f2_class_means", "F2 of the classes' mean P and mean R (SIGNA, Eq. 8-9)"),
    ("map", "Average precision, mean over the classes"),
    ("f1_micro", "F1 of the pooled counts (OF1)"),
    ("f2_micro", "F2 of the pooled counts"),
    ("precision_micro", "P of the pooled counts"),
    ("recall_micro", "R of the pooled counts"),
    ("classes_skipped", "Classes without a positive tile"),
)
_COUNTS = ("classes_skipped",)
_FLOORS = {
    "constant_set": "the best set of labels that is the same for all tiles",
    "oracle_scene": "told the scene of each tile, the labels of half of its training tiles",
}


@dataclass(frozen=True)
class HeatMaps:
    """Tiles (K, H, W, 3) of the test part, and label -> maps (K, H, W) between 0 and 1."""

    stems: Sequence[str]
    tiles: NDArray[np.uint8]
    maps: Mapping[str, NDArray[Any]]


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
    features: NDArray[Any] | None = None
    scenes: Sequence[str] | None = None
    heat_maps: HeatMaps | None = None


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
    unknown = sorted(
        (set(heat_maps.stems) - set(evaluation.test_stems))
        | (heat_maps.maps.keys() - set(evaluation.labels))
    )
    if unknown:
        raise DataError(f"heat maps: not evaluated are {', '.join(unknown)}")
    shapes = {label: maps.shape for label, maps in heat_maps.maps.items()}
    if (
        not len(heat_maps.stems) == len(heat_maps.tiles) > 0
        or set(shapes.values()) != {heat_maps.tiles.shape[:-1]}
        or heat_maps.tiles.shape[3:] != (3,)
    ):
        raise DataError(
            f"heat maps: {len(heat_maps.stems)} stems, tiles {heat_maps.tiles.shape}, maps {shapes}"
        )


def _thresholds(evaluation: LabelEvaluation) -> dict[str, NDArray[np.float64]]:
    return {
        "half": label_figures.half(len(evaluation.labels)),
        "tuned": label_figures.tuned_thresholds(evaluation.val_truth, evaluation.val_scores),
    }


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


# Pictures

_CLASS_BARS = "class-f1.png"
_CURVES = "precision-recall.png"
_MATRIX = "co-occurrence.png"
_GRAPH = "label-graph.png"
_SCENES = "features.png"
_HEAT = "heat-maps.png"


def _pictures(evaluation: LabelEvaluation) -> dict[str, str]:
    """File name -> caption."""
    pictures = {
        _CLASS_BARS: "F1 of each class at threshold 0.5 and with its tuned threshold",
        _CURVES: "Precision and recall of each class over all thresholds",
        _MATRIX: "Which labels the training tiles have together",
        _GRAPH: f"The label graph of the training tiles at Q = {evaluation.edge_threshold:g}",
    }
    if evaluation.features is not None:
        pictures[_SCENES] = "The network's features of the test tiles in the plane (t-SNE)"
    if evaluation.heat_maps is not None:
        pictures[_HEAT] = (
            "Where on the tile the network sees a label, with its score and whether the "
            "annotation has it"
        )
    return pictures


def _drawings(evaluation: LabelEvaluation) -> Iterator[tuple[str, Figure]]:
    """File name and picture of each of `_pictures`, drawn when it is asked for."""
    at_half, tuned = (_table_of(evaluation, values) for values in _thresholds(evaluation).values())
    labels, truth = evaluation.labels, evaluation.train_truth
    yield _CLASS_BARS, label_pictures.class_bars(at_half, tuned)
    yield (
        _CURVES,
        label_pictures.precision_recall_panels(
            evaluation.test_truth, evaluation.test_scores, at_half, tuned
        ),
    )
    yield _MATRIX, label_pictures.co_occurrence_matrix(labels, truth)
    yield _GRAPH, label_pictures.label_graph(labels, truth, evaluation.edge_threshold)
    if evaluation.features is not None:
        yield _SCENES, _scene_map(evaluation, evaluation.features)
    if evaluation.heat_maps is not None:
        yield _HEAT, _heat_map_grid(evaluation, evaluation.heat_maps)


def _scene_map(evaluation: LabelEvaluation, features: NDArray[Any]) -> Figure:
    rows = label_pictures.drawn_rows(len(features), evaluation.seed)
    places = label_pictures.embedded(features[rows], evaluation.seed)
    scenes = evaluation.scenes
    return label_pictures.scene_map(places, None if scenes is None else [scenes[r] for r in rows])


def _heat_map_grid(evaluation: LabelEvaluation, heat_maps: HeatMaps) -> Figure:
    places = {stem: row for row, stem in enumerate(evaluation.test_stems)}
    rows = [places[stem] for stem in heat_maps.stems]
    columns = {label: list(evaluation.labels).index(label) for label in heat_maps.maps}
    remarks = {
        label: [
            f"score {evaluation.test_scores[row, column]:.2f}, "
            f"{'present' if evaluation.test_truth[row, column] else 'absent'}"
            for row in rows
        ]
        for label, column in columns.items()
    }
    return label_pictures.heat_map_grid(heat_maps.tiles, heat_maps.maps, heat_maps.stems, remarks)


# Text


def report_text(facts: Mapping[str, Any]) -> str:
    """The report in Markdown, from what `label_report` gives."""
    pictures = {
        name: f"![{caption}]({name})\n\n*{caption}.*" for name, caption in facts["pictures"].items()
    }
    parts = [
        _introduction(facts),
        "## Figures",
        _headline(facts),
        _floor_notes(facts),
        _tuning(facts),
        "## Classes",
        _classes(facts),
        pictures[_CLASS_BARS],
        pictures[_CURVES],
        "## Labels that are taken for each other",
        "Tiles that miss the one label and wrongly have the other, at threshold 0.5; beside them "
        "how many there would be by chance, if both errors fell on tiles independently.",
        _confused(facts),
        "## The labels of the training tiles",
        pictures[_MATRIX],
        pictures[_GRAPH],
        *(
            f"## {title}\n\n{pictures[name]}"
            for name, title in ((_SCENES, "Features"), (_HEAT, "Heat maps"))
            if name in pictures
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(facts: Mapping[str, Any]) -> str:
    tiles = facts["tiles"]
    notes = [f"- {name}: {_line(note)}" for name, note in facts["notes"].items()]
    return "\n".join(
        [
            f"# Labels of {facts['model']}",
            "",
            f"- Split: `{facts['split']}` (SHA-256 `{facts['split_sha256']}`), "
            f"{tiles['train']} training, {tiles['val']} validation and {tiles['test']} test tiles",
            f"- Seed: {facts['seed']}",
            f"- Commit: `{facts['commit']}`",
            "- Threshold: 0.5 for every label; beside it, for each label the threshold with the "
            "best F1 on the validation tiles",
            f"- Classes without positives: {MACRO_RULE}",
            *notes,
        ]
    )


def _headline(facts: Mapping[str, Any]) -> str:
    floors = facts["floors"]
    systems = [facts["values"]["half"], facts["values"]["tuned"], *floors.values()]
    header = (
        "Test tiles",
        "Threshold 0.5",
        "Tuned thresholds",
        *(f"Floor: {name.replace('_', ' ')}" for name in floors),
    )
    rows = [(words, *(_figure(values, name) for values in systems)) for name, words in _FIGURES]
    return _table(header, rows)


def _figure(values: Mapping[str, float], name: str) -> str:
    if name not in values:
        return _NONE
    return f"{values[name]:.0f}" if name in _COUNTS else _share(values[name])


def _floor_notes(facts: Mapping[str, Any]) -> str:
    at_half = facts["values"]["half"]
    notes = [
        f"- Floor {name.replace('_', ' ')}: {_FLOORS[name]}."
        for name in facts["floors"]
        if name in _FLOORS
    ]
    return "\n".join(
        [
            "Floors are systems that see no pixel, at threshold 0.5; a dash is a figure that was "
            "not measured for them. The F of mean P and mean R is never below the mean of F, at "
            f"0.5 here {at_half['f1_paper'] - at_half['f1_samples']:.3f} above it: compare it only "
            "with papers that give it.",
            "",
            *notes,
        ]
    ).rstrip()


def _tuning(facts: Mapping[str, Any]) -> str:
    told = [
        f"{_share(facts[part]['half']['f1_macro'])} to {_share(facts[part]['tuned']['f1_macro'])}"
        for part in ("val_values", "values")
    ]
    return (
        "Tuned thresholds take the mean F1 of the classes on the validation tiles, where they "
        f"were chosen, from {told[0]}; on the test tiles from {told[1]}."
    )


def _classes(facts: Mapping[str, Any]) -> str:
    header = (
        "Label",
        "Positive tiles",
        "AP",
        *(f"{name} at 0.5" for name in ("Predicted", "P", "R", "F1")),
        "Tuned threshold",
        *(f"{name} tuned" for name in ("Predicted", "P", "R", "F1")),
    )
    rows = [
        (
            half["label"],
            str(half["support"]),
            _share(half["average_precision"]),
            *_decided(half),
            f"{tuned['threshold']:.3f}",
            *_decided(tuned),
        )
        for half, tuned in zip(facts["classes"]["half"], facts["classes"]["tuned"], strict=True)
    ]
    return _table(header, rows)


def _decided(row: Mapping[str, Any]) -> tuple[str, ...]:
    return str(row["predicted"]), *(_share(row[name]) for name in ("precision", "recall", "f1"))


def _confused(facts: Mapping[str, Any]) -> str:
    rows = [
        (
            pair["missed"],
            pair["added"],
            str(len(pair["tiles"])),
            f"{pair['expected']:.1f}",
            ", ".join(pair["tiles"][:_EXAMPLES])
            + (", …" if len(pair["tiles"]) > _EXAMPLES else ""),
        )
        for pair in facts["confused_pairs"]["half"]
    ]
    if not rows:
        return "There is no such tile."
    header = ("Missed", "Wrongly added", "Tiles", "By chance", "For example")
    return _table(header, rows, words=(0, 1, 4))


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3f}"


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = (0,)
) -> str:
    """A Markdown table; the columns that hold words stand to the left, numbers to the right."""
    lines = [f"| {' | '.join(_cell(text) for text in row)} |" for row in (header, *rows)]
    rule = "|".join("---" if column in words else "---:" for column in range(len(header)))
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def _cell(text: str) -> str:
    """The text on one line, with nothing that ends a cell."""
    return _line(text).replace("|", "\\|")


def _line(text: str) -> str:
    return " ".join(text.split())
