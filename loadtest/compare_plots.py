"""The plots of a comparison: answers and latencies against concurrency and against offered load."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from loadtest.cells import read_cells
from loadtest.compare_report import TITLES
from loadtest.ratios import BARE, Figures

PLOT = "compare.png"
# Okabe and Ito's colours, which the colour-blind can tell apart.
_COLOURS = {
    BARE: "#000000",
    "gateway": "#D55E00",
    "fastapi_torch": "#999999",
    "fastapi_onnxruntime": "#0072B2",
    "litserve": "#009E73",
    "bentoml": "#CC79A7",
    "gateway_processes": "#882255",
    "gateway_single_rows": "#999933",
    "gateway_triton": "#E69F00",
    "gateway_openvino": "#56B4E9",
}


def write_plots(folder: Path, title: str) -> Path:
    """The path of `compare.png`, drawn from the cells of the folder."""
    figures = Figures(list(read_cells(folder)))
    picture = Figure(figsize=(12, 8.5), layout="constrained")
    grid = picture.subplots(2, 2)
    _throughput(grid[0][0], figures)
    _goodput(grid[0][1], figures)
    _latency(grid[1][0], figures, "closed", "connections")
    _latency(grid[1][1], figures, "open", "offered, requests/s")
    lines, names = grid[0][0].get_legend_handles_labels()
    picture.legend(lines, names, loc="outside lower center", ncols=4, frameon=False)
    picture.suptitle(title)
    path = folder / PLOT
    picture.savefig(path, dpi=110)
    return path


def _throughput(axes: Axes, figures: Figures) -> None:
    for subject in figures.subjects():
        levels = figures.levels(subject, "closed")
        if subject == BARE:  # it has no connections: the same limit for all
            axes.axhline(_limit(figures, levels), **_style(subject))  # type: ignore[arg-type]
            continue
        found = [figures.figure(subject, "closed", level, "goodput_rps") for level in levels]
        middle = [one.median if one else 0.0 for one in found]
        axes.plot(levels, middle, **_style(subject))  # type: ignore[arg-type]
        axes.fill_between(
            levels,
            [one.least if one else 0.0 for one in found],
            [one.greatest if one else 0.0 for one in found],
            color=_COLOURS[subject],
            alpha=0.12,
            linewidth=0,
        )
    axes.set(title="Closed loop: throughput", xlabel="connections", ylabel="answers/s")
    axes.set_ylim(bottom=0)
    _doubling(axes, figures)


def _limit(figures: Figures, levels: Sequence[float]) -> float:
    rounds = [figures.rounds(BARE, "closed", level).values() for level in levels]
    return statistics.median(float(cell["goodput_rps"]) for one in rounds for cell in one)


def _goodput(axes: Axes, figures: Figures) -> None:
    top = 0.0
    for subject in figures.subjects():
        offered, answered = _series(figures, subject, "goodput_rps")
        top = max([top, *offered])
        axes.plot(offered, answered, **_style(subject))  # type: ignore[arg-type]
    axes.plot([0, top], [0, top], color="0.8", linewidth=1, zorder=0)
    axes.set(title="Open loop: goodput", xlabel="offered, requests/s", ylabel="answers/s")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)


def _latency(axes: Axes, figures: Figures, kind: str, label: str) -> None:
    for subject in figures.subjects():
        for rank, dashes in (("p50", "-"), ("p99", ":")):
            if kind == "open":
                at, values = _series(figures, subject, "latency_ms", rank)
            elif subject == BARE:
                continue
            else:
                at = figures.levels(subject, kind)
                found = [figures.figure(subject, kind, one, "latency_ms", rank) for one in at]
                values = [one.median if one else float("nan") for one in found]
            axes.plot(at, values, **_style(subject) | {"linestyle": dashes})  # type: ignore[arg-type]
    loop = "Closed" if kind == "closed" else "Open"
    axes.set(title=f"{loop} loop: p50 (solid) and p99 (dotted)", xlabel=label, ylabel="ms")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.grid(axis="y", color="0.92")
    if kind == "closed":
        _doubling(axes, figures)
    else:
        axes.set_xlim(left=0)


def _series(figures: Figures, subject: str, *path: str) -> tuple[list[float], list[float]]:
    """Offered load, and the figure at it."""
    points = []
    for level in figures.levels(subject, "open"):
        offered = figures.figure(subject, "open", level, "offered_rps")
        value = figures.figure(subject, "open", level, *path)
        if offered and value:
            points.append((offered.median, value.median))
    return [one for one, _ in points], [other for _, other in points]


def _doubling(axes: Axes, figures: Figures) -> None:
    levels = sorted(
        {level for one in figures.subjects() for level in figures.levels(one, "closed")}
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(levels, [f"{level:g}" for level in levels])


def _style(subject: str) -> dict[str, object]:
    return {
        "color": _COLOURS[subject],
        "label": TITLES[subject].strip("*"),
        "marker": "" if subject == BARE else "o",
        "linestyle": "--" if subject == BARE else "-",
        "linewidth": 2.4 if subject == "gateway" else 1.4,
        "markersize": 4,
        "zorder": 3 if subject == "gateway" else 2,
    }
