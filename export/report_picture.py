"""A certificate as a picture."""

import math
import textwrap
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from export.certificate import Certificate, Worst
from export.report_facts import furthest, most_different

# Worst tiles that are drawn; the text tells of all.
_TILES = 2
_COLOURS = {
    "torch": "#4d4d4d",
    "onnx": "#1f77b4",
    "int8": "#d95f02",
    "torchscript": "#7b52ab",
    "triton": "#2a9d5c",
    "batch1": "#6baed6",
    "openvino-bf16": "#c2307a",
    "openvino-int8": "#e6a700",
    "openvino-int8-bf16": "#8c564b",
}


def drawn(certificate: Certificate, tile_of: Callable[[str], NDArray[np.uint8] | None]) -> Figure:
    """Speed and task metric above, the worst tiles below; `tile_of` has their pictures, or None."""
    # Forms of one precision mostly fail on the same tile, which is drawn once.
    by_tile: dict[str, Worst] = {}
    for worst in furthest(certificate):
        by_tile.setdefault(worst.tile, worst)
    tiles = list(by_tile.values())[:_TILES]
    lines = 1 + len(tiles)
    figure = Figure(figsize=(12, 0.6 + 3.6 * lines), layout="constrained")
    figure.suptitle(
        f"{certificate.model}, version {certificate.version}: "
        f"{certificate.tiles} tiles of {certificate.split}"
    )
    grid = figure.add_gridspec(lines, 2, width_ratios=(1, 1))
    _draw_speed(figure.add_subplot(grid[0, 0]), certificate)
    _draw_metric(figure.add_subplot(grid[0, 1]), certificate)
    for line, worst in enumerate(tiles, start=1):
        _draw_tile(figure.add_subplot(grid[line, 0]), worst, tile_of(worst.tile))
        _draw_values(figure.add_subplot(grid[line, 1]), worst)
    return figure


def _colour(form: str) -> str:
    return _COLOURS.get(form, "#999999")


def _draw_speed(axes: Axes, certificate: Certificate) -> None:
    axes.set_title("Milliseconds a tile", fontsize=10)
    axes.set_xlabel("batch")
    batches: set[int] = set()
    for name, form in certificate.forms.items():
        if not form.speed:
            continue
        speeds = sorted(form.speed, key=lambda speed: speed.batch)
        sizes = [speed.batch for speed in speeds]
        batches.update(sizes)
        axes.errorbar(
            sizes,
            [speed.ms_per_tile for speed in speeds],
            yerr=[speed.spread for speed in speeds],
            label=name,
            color=_colour(name),
            marker="o",
            markersize=4,
            capsize=3,
        )
    if not batches:
        _say_nothing_was_measured(axes)
        return
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(batches), [str(batch) for batch in sorted(batches)])
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _draw_metric(axes: Axes, certificate: Certificate) -> None:
    metric = certificate.task_metric
    axes.set_title(metric, fontsize=10)
    measured = {name: form for name, form in certificate.forms.items() if metric in form.metrics}
    if not measured:
        _say_nothing_was_measured(axes)
        return
    bars = axes.bar(
        # Words below each other: long names would run into their neighbours'.
        [name.replace("-", "\n") for name in measured],
        [form.metrics[metric] for form in measured.values()],
        color=[_colour(name) for name in measured],
    )
    axes.bar_label(bars, [f"{form.metrics[metric]:.4f}" for form in measured.values()], fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.margins(y=0.1)


def _say_nothing_was_measured(axes: Axes) -> None:
    axes.set_axis_off()
    _say(axes, "nothing was measured")


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", transform=axes.transAxes)


def _draw_tile(axes: Axes, worst: Worst, tile: NDArray[np.uint8] | None) -> None:
    title = f"{worst.form} is furthest from torch here: {worst.output} of {worst.tile}"
    axes.set_title(_plain(textwrap.fill(title, 70)), fontsize=10)
    axes.set_axis_off()
    if tile is None:
        _say(axes, "not shown: the tile is not in the public domain")
    else:
        axes.imshow(tile)


def _draw_values(axes: Axes, worst: Worst) -> None:
    shown = most_different(worst)
    rows = np.arange(len(shown))
    axes.barh(
        rows - 0.2,
        [_drawable(expected) for _, expected, _ in shown],
        height=0.4,
        color=_colour("torch"),
        label="torch",
    )
    bars = axes.barh(
        rows + 0.2,
        [_drawable(found) for _, _, found in shown],
        height=0.4,
        color=_colour(worst.form),
        label=worst.form,
    )
    labels = [_told(expected, found) for _, expected, found in shown]
    axes.bar_label(bars, labels, fontsize=7, padding=3)
    axes.set_yticks(rows, [_plain(textwrap.shorten(name, 32)) for name, _, _ in shown], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_title("The values that differ most", fontsize=10)
    axes.legend(fontsize=8)


def _told(expected: float, found: float) -> str:
    """The difference beside a bar; both values where one of them has no length."""
    if math.isfinite(expected) and math.isfinite(found):
        return f"{found - expected:+.2g}"
    return f"{expected:g} → {found:g}"


def _drawable(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _plain(text: str) -> str:
    """The text as it stands: a dollar would begin a formula."""
    return text.replace("$", "\\$")
