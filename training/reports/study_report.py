"""A study's table and picture, from what `study.json` holds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.comparison import FIGURES
from training.reports.label_pictures import save

PICTURE = "study.png"
_DRAWN = {"f1_samples": "F1, mean over the test tiles", "map": "mean average precision"}
_POINT, _MEAN, _FLOOR = "#1f6fb4", "#d55e00", "#999999"


def study_text(facts: Mapping[str, Any]) -> str:
    """The table in Markdown, with what it was measured on and how."""
    against, table = facts["against"], facts["rows"]
    with_cost = any(row["cost"] for row in table)
    head = ["variant", "seeds", *FIGURES, f"points above {against}", "p, seeds", "p, tiles"]
    if with_cost:
        head += ["parameters", "MACs", f"ms a tile (x {against})"]
    plain = next((row["cost"] for row in table if row["variant"] == against), None)
    lines = []
    for row in table:
        lines.append([row["variant"], str(row["seeds"]), *_figures(row), *_tests(row)])
        if with_cost:
            lines[-1] += _cost(row["cost"], plain)
    for name, values in facts["floors"].items():
        lines.append([f"floor: {name.replace('_', ' ')}", "-", *_shares(values)])
    left = facts["runs_left"]
    parts = [
        f"# {facts['title']}",
        f"{left} runs are left." if left else "All runs are finished.",
        f"![{facts['title']}]({PICTURE})",
        "\n".join(_rows(head, lines)),
        _explained(facts),
        f"    tilesight study signa {facts['file']} --data DATA --weights FILE --out FOLDER",
    ]
    return "\n\n".join(parts) + "\n"


def _explained(facts: Mapping[str, Any]) -> str:
    seeds, epochs, sizes = (
        ", ".join(map(str, facts[name])) for name in ("seeds", "epochs", "image_sizes")
    )
    return (
        f"Test part of `{facts['dataset']}` (SHA-256 `{facts['test_sha256']}`), threshold 0.5; "
        f"seeds {seeds}; epochs {epochs}; input {sizes} pixels a side. Mean and deviation over the "
        "seeds. p over seeds: paired t-test; p over tiles: paired permutation test of each tile's "
        "F1, averaged over the seeds. Floors see no pixel. Milliseconds are of this machine, to be "
        "compared with each other alone."
    )


def _rows(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    filled = [[*line, *["-"] * (len(head) - len(line))] for line in lines]
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *filled)]


def _shares(values: Mapping[str, float]) -> list[str]:
    return [f"{values[name]:.4f}" if name in values else "-" for name in FIGURES]


def _figures(row: Mapping[str, Any]) -> list[str]:
    deviation = row["deviation"]
    return [
        share + (f" ± {deviation[name]:.4f}" if deviation else "")
        for name, share in zip(FIGURES, _shares(row["mean"]), strict=True)
    ]


def _tests(row: Mapping[str, Any]) -> list[str]:
    difference = row["difference"]
    return [
        "-" if difference is None else f"{difference:+.2f}",
        *("-" if p is None else f"{p:.3f}" for p in (row["p_seeds"], row["p_tiles"])),
    ]


def _cost(cost: Mapping[str, Any] | None, plain: Mapping[str, Any] | None) -> list[str]:
    if cost is None:
        return []
    times = f" ({cost['ms'] / plain['ms']:.2f})" if plain else ""
    return [
        f"{cost['parameters']:,}",
        f"{cost['macs'] / 1e6:,.1f} M",
        f"{cost['ms']:.2f}{times}",
    ]


def draw(facts: Mapping[str, Any], path: Path) -> None:
    """Writes the picture: each seed a point, each mean a line, whole or not at all."""
    save(study_figure(facts), path)


def study_figure(facts: Mapping[str, Any]) -> Figure:
    """A panel for each drawn figure, a line for each variant, the first on top."""
    table = facts["rows"]
    figure = Figure(figsize=(11, 1.6 + 0.42 * len(table)), layout="constrained")
    panels = figure.subplots(1, len(_DRAWN), sharey=True, squeeze=False)[0]
    for axes, (name, title) in zip(panels, _DRAWN.items(), strict=True):
        for place, row in enumerate(table):
            values = row["values"][name]
            axes.plot(values, [place] * len(values), "o", color=_POINT, alpha=0.65, zorder=3)
            axes.vlines(row["mean"][name], place - 0.3, place + 0.3, color=_MEAN, linewidth=2.5)
        axes.set_title(title, fontsize=10)
        axes.set_yticks(range(len(table)), [row["variant"] for row in table])
        axes.grid(axis="x", color=_FLOOR, alpha=0.3)
        axes.margins(y=0.15)
        # More would run into each other where the figures are close.
        axes.xaxis.set_major_locator(MaxNLocator(4))
    panels[0].invert_yaxis()
    figure.suptitle(f"{facts['title']}: seeds (points) and means (lines)", fontsize=11)
    return figure
