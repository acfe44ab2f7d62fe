"""The report of a multi-label tagger in words: Markdown from the figures of `label_report`."""

from collections.abc import Mapping, Sequence
from typing import Any

from training.reports.label_pictures import (
    CLASS_BARS,
    CURVES,
    GRAPH,
    HEAT_MAPS,
    MATRIX,
    SCENES,
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
_SHORT = {"f1_samples": "F1 of tiles", "f1_macro": "F1 of classes", "map": "mAP"}
_FLOORS = {
    "constant_set": "the best set of labels that is the same for all tiles",
    "oracle_scene": "told the scene of each tile, the labels of half of its training tiles",
}


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
        pictures[CLASS_BARS],
        pictures[CURVES],
        "## Labels that are taken for each other",
        "Tiles that miss the one label and wrongly have the other, at threshold 0.5; beside them "
        "how many there would be by chance, if both errors fell on tiles independently.",
        _confused(facts),
        *([] if facts["attention"] is None else ["## The attention", _attention(facts)]),
        "## The labels of the training tiles",
        pictures[MATRIX],
        pictures[GRAPH],
        *(
            f"## {title}\n\n{pictures[name]}"
            for name, title in ((SCENES, "Features"), (HEAT_MAPS, "Heat maps"))
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
            f"- Classes without positives: {facts['macro_rule']}",
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
            "Floors are systems that see no pixel, at threshold 0.5. The F of mean P and mean R is "
            "never below the mean of F, at 0.5 here "
            f"{at_half['f1_paper'] - at_half['f1_samples']:.3f} above it: compare it only "
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


def _attention(facts: Mapping[str, Any]) -> str:
    use = facts["attention"]
    rows = [
        (f"Weights {name}" if name != "none" else "No weights", *(map(_share, values.values())))
        for name, values in use["figures"].items()
    ]
    names = next(iter(use["figures"].values()))
    return (
        f"The channel weights have a root mean square of {use['strength']:.3f}; a channel's weight "
        f"deviates by {use['between_tiles']:.3f} from tile to tile. What the test tiles get with "
        "the weights of each, with their mean over the validation tiles, and without:\n\n"
        + _table(("Test tiles, threshold 0.5", *(_SHORT[name] for name in names)), rows)
    )


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
