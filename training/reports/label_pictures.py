"""The pictures of a multi-label report, each from arrays alone.

Two colours keep their meaning throughout: blue is threshold 0.5, orange the tuned thresholds.
"""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from sklearn.metrics import precision_recall_curve

from tilesight.errors import DataError
from tilesight.files import written_whole
from training.label_figures import ClassRow, conditional_shares, graph_edges

# File names, which a report's text links.
CLASS_BARS = "class-f1.png"
CURVES = "precision-recall.png"
MATRIX = "co-occurrence.png"
GRAPH = "label-graph.png"
SCENES = "features.png"
HEAT_MAPS = "heat-maps.png"
HALF_COLOUR, TUNED_COLOUR = "#1f6fb4", "#e07b00"
EMBEDDED_AT_MOST = 500
# Okabe and Ito's colours without yellow, which is faint on white: they differ for all eyes.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#444444")
_MARKERS = ("o", "^", "s", "D", "v", "P", "X")
# Cells are numbered up to as many labels; beyond, the numbers would be too small to read.
_NUMBERED_AT_MOST = 30
_LEVEL_NAMES_AT_MOST = 24
_LEGEND_LINES = 36
# Light enough for weak arrows to stand back, dark enough to be seen on white.
_ARROWS = LinearSegmentedColormap.from_list("arrows", ["#bcd7ea", "#4292c6", "#08306b"])
_HEAT = ScalarMappable(Normalize(0, 1), "inferno")
_WHITE_EDGE = (patheffects.withStroke(linewidth=2.5, foreground="white"),)


def save(figure: Figure, path: Path) -> None:
    """Writes the figure as PNG, whole or not at all; the same figure gives the same bytes."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})


def class_bars(at_half: Sequence[ClassRow], tuned: Sequence[ClassRow]) -> Figure:
    """F_1 of each class at 0.5 and with its tuned threshold, the most frequent class on top."""
    order = sorted(range(len(at_half)), key=lambda index: -at_half[index].support)
    figure = Figure(figsize=(9, 1.3 + 0.42 * len(order)), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(order))
    for rows, shift, colour, name in (
        (at_half, -0.2, HALF_COLOUR, "threshold 0.5"),
        (tuned, 0.2, TUNED_COLOUR, "tuned threshold"),
    ):
        f1 = [rows[index].f1 for index in order]
        bars = axes.barh(
            places + shift, [value or 0 for value in f1], height=0.38, color=colour, label=name
        )
        axes.bar_label(
            bars, ["" if value is None else f"{value:.2f}" for value in f1], fontsize=7, padding=2
        )
    for place, index in enumerate(order):
        if at_half[index].f1 is None:
            axes.text(0.01, place, "no positive tile", va="center", fontsize=8, color="#666666")
    axes.set_yticks(
        places, [f"{_plain(at_half[index].label)} ({at_half[index].support})" for index in order]
    )
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_xlim(0, 1.08)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_xlabel("F1")
    axes.set_ylabel("label (positive test tiles)")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def co_occurrence_matrix(labels: Sequence[str], truth: NDArray[Any]) -> Figure:
    """P(j given i) of labels (N, C): row i, column j, in hundredths."""
    shares = conditional_shares(truth)
    count = len(labels)
    # The title is as long for few labels.
    side = max(3 + 0.42 * count, 6.0)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    # The diagonal is always 1 and would be all that is seen.
    others = np.ma.masked_where(np.eye(count, dtype=bool), shares)
    shown = axes.imshow(others, cmap="Blues", vmin=0, vmax=1)
    axes.set_facecolor("#dddddd")
    names = [_plain(label) for label in labels]
    axes.set_xticks(range(count), names, rotation=90)
    axes.set_yticks(range(count), names)
    axes.set_ylabel("label i")
    axes.set_xlabel("label j")
    axes.set_title("P(j | i): of the tiles with label i, hundredths that have label j", pad=12)
    if count <= _NUMBERED_AT_MOST:
        for (i, j), share in np.ndenumerate(shares):
            # An empty cell says zero with less ink.
            if i != j and share >= 0.005:
                colour = "white" if share > 0.5 else "#222222"
                number = f"{100 * share:.0f}"
                axes.text(j, i, number, ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(shown, ax=axes, shrink=0.7)
    return figure


def label_graph(labels: Sequence[str], truth: NDArray[Any], threshold: float) -> Figure:
    """The graph of labels (N, C) on a circle: an arrow i -> j where P(j given i) >= threshold.

    Arrows are as dark as P is high. Labels of many tiles have large nodes.
    """
    shares = conditional_shares(truth)
    edges = graph_edges(shares, threshold)
    order = _circle_order(shares, edges)
    angles = np.empty(len(labels))
    angles[order] = np.pi / 2 - 2 * np.pi * np.arange(len(labels)) / len(labels)
    nodes = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    radial = len(labels) > _LEVEL_NAMES_AT_MOST
    figure = Figure(figsize=(14, 12.5) if radial else (12, 8.4), layout="constrained")
    axes = figure.add_subplot()
    colours = ScalarMappable(Normalize(min(threshold, 0.99), 1), _ARROWS)
    figure.colorbar(colours, ax=axes, shrink=0.5, label="P(j | i) of the arrow from i to j")
    # The strongest are drawn last, over the others.
    for i, j in sorted(edges, key=lambda edge: float(shares[edge])):
        share = shares[i, j]
        axes.add_patch(
            FancyArrowPatch(
                tuple(nodes[i]),
                tuple(nodes[j]),
                connectionstyle=f"arc3,rad={_bend(nodes, i, j, (j, i) in edges)}",
                arrowstyle="-|>",
                mutation_scale=13,
                shrinkA=9,
                shrinkB=11,
                linewidth=0.6 + 1.6 * share,
                color=colours.to_rgba(share),
            )
        )
    frequency = truth.mean(axis=0)
    axes.scatter(nodes[:, 0], nodes[:, 1], s=60 + 260 * frequency, color="#333333", zorder=3)
    for index, label in enumerate(labels):
        name = f"{_plain(label)} ({frequency[index]:.0%})"
        _name_on_circle(axes, float(angles[index]), name, radial)
    # A title of the axes would be cut off above a square that fills the figure.
    figure.suptitle(
        f"Arrows i → j where P(j | i) ≥ {threshold:g}: {len(edges)}; "
        "beside a label its share of the training tiles"
    )
    reach = 1.6 if radial else 1.15
    axes.set_xlim(-max(reach, 1.5), max(reach, 1.5))
    axes.set_ylim(-reach, reach)
    axes.set_aspect("equal")
    axes.set_axis_off()
    return figure


def _bend(nodes: NDArray[np.float64], i: int, j: int, both_ways: bool) -> float:
    """The curvature of an arrow towards the centre, away from the nodes that lie between.

    Of two arrows between the same nodes one is bent more.
    """
    (x, y), (to_x, to_y) = nodes[i], nodes[j]
    inwards = 1 if x * to_y - y * to_x < 0 else -1
    return inwards * (0.26 if both_ways and i > j else 0.1)


def _circle_order(shares: NDArray[np.float64], edges: Sequence[tuple[int, int]]) -> list[int]:
    """The labels around the circle.

    A chain, in which each next label is the one that is most with the last, starts with those that
    are with many; its halves alternate, so that their arrows do not all run along the rim.
    """
    tied = np.zeros_like(shares)
    for i, j in edges:
        tied[[i, j], [j, i]] += shares[i, j]
    order = [int(tied.sum(axis=1).argmax())]
    while len(order) < len(tied):
        left = [index for index in range(len(tied)) if index not in order]
        order.append(max(left, key=lambda index: tied[order[-1], index]))
    middle = -(-len(order) // 2)
    first, second = order[:middle], order[middle:]
    return [label for pair in zip(first, second, strict=False) for label in pair] + (
        first[len(second) :]
    )


def _name_on_circle(axes: Axes, angle: float, text: str, radial: bool) -> None:
    """The name beside its node: level, or outwards where level names would overlap."""
    x, y = np.cos(angle), np.sin(angle)
    if radial:
        # No name stands on its head.
        degrees = np.degrees(np.arctan2(y, x) if x >= 0 else np.arctan2(-y, -x))
        axes.text(
            1.05 * x,
            1.05 * y,
            text,
            ha="left" if x >= 0 else "right",
            va="center",
            fontsize=10,
            rotation=float(degrees),
            rotation_mode="anchor",
        )
        return
    side = "center" if abs(x) < 0.1 else ("left" if x > 0 else "right")
    axes.text(1.09 * x, 1.09 * y, text, ha=side, va="center", fontsize=10)


def precision_recall_panels(
    truth: NDArray[Any],
    scores: NDArray[Any],
    at_half: Sequence[ClassRow],
    tuned: Sequence[ClassRow],
) -> Figure:
    """A precision-recall curve for each class, with the points of 0.5 and the tuned threshold."""
    columns = min(5, len(at_half))
    lines = -(-len(at_half) // columns)
    figure = Figure(figsize=(2.3 * columns + 0.4, 2.3 * lines + 0.8), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(at_half) :]:
        axes.set_axis_off()
    for index, axes in enumerate(panels.flat[: len(at_half)]):
        _draw_curve(axes, truth[:, index], scores[:, index], at_half[index], tuned[index])
        # The panel below may be missing, and with it the numbers of the shared axis.
        axes.tick_params(labelsize=8, labelbottom=index + columns >= len(at_half))
    figure.supxlabel("recall", fontsize=10)
    figure.supylabel("precision", fontsize=10)
    figure.legend(
        handles=[
            _marker("o", HALF_COLOUR, "threshold 0.5"),
            _marker("D", TUNED_COLOUR, "tuned threshold"),
            Line2D([], [], color="#999999", linestyle=":", label="share of positive tiles"),
        ],
        loc="outside upper center",
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    return figure


def _marker(marker: str, colour: str, label: str) -> Line2D:
    return Line2D([], [], marker=marker, color=colour, linestyle="", markersize=6, label=label)


def _draw_curve(
    axes: Axes,
    truth: NDArray[Any],
    scores: NDArray[Any],
    at_half: ClassRow,
    tuned: ClassRow,
) -> None:
    name = _plain(textwrap.shorten(at_half.label, 22, placeholder="…"))
    if at_half.average_precision is None:
        axes.set_title(name, fontsize=9)
        axes.text(0.5, 0.5, "no positive tile", ha="center", va="center", color="#666666")
        return
    axes.set_title(f"{name}, AP {at_half.average_precision:.2f}", fontsize=9)
    precision, recall, _ = precision_recall_curve(truth, scores)
    # What no threshold reaches is at the left end: it is not drawn as if it had been measured.
    axes.plot(recall[:-1], precision[:-1], color="#444444", linewidth=1.3)
    axes.axhline(float(truth.mean()), color="#999999", linestyle=":", linewidth=1)
    # The larger one below, so that both are seen where they meet.
    for row, marker, size, colour in (
        (at_half, "o", 8, HALF_COLOUR),
        (tuned, "D", 5, TUNED_COLOUR),
    ):
        # Where nothing is predicted there is no precision, and no point.
        if row.predicted and row.recall is not None and row.precision is not None:
            axes.plot(row.recall, row.precision, marker, color=colour, markersize=size)
    axes.set_xlim(-0.04, 1.04)
    axes.set_ylim(-0.04, 1.06)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.grid(alpha=0.3)


def drawn_rows(count: int, seed: int) -> NDArray[np.int64]:
    """The rows of at most 500 of `count` tiles, in their order; where there are more, by lot."""
    if count <= EMBEDDED_AT_MOST:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, EMBEDDED_AT_MOST, replace=False))


def embedded(features: NDArray[Any], seed: int) -> NDArray[np.float32]:
    """The places in the plane (n, 2) of tiles with these features (n, D).

    t-SNE (van der Maaten and Hinton, JMLR 2008) from the principal components, perplexity 30 or a
    third of the other tiles where there are few.

    Raises:
        DataError: there are fewer than four tiles.
    """
    if len(features) < 4:
        raise DataError(f"t-SNE: {len(features)} tiles, at least 4 are needed")
    # Features that are all equal have no principal components.
    start = "pca" if np.ptp(features, axis=0).any() else "random"
    embedding = TSNE(
        random_state=seed,
        init=start,
        perplexity=min(30.0, (len(features) - 1) / 3),
        # Of so few tiles faster than Barnes-Hut, whose threads wait for each other by spinning.
        method="exact",
    )
    places: NDArray[np.float32] = embedding.fit_transform(features.astype(np.float32))
    return places


def scene_map(places: NDArray[np.float32], scenes: Sequence[str] | None) -> Figure:
    """The tiles' places (n, 2) as `embedded` gives them, each with its scene's colour and shape.

    The number of a scene stands at the median of its tiles and beside its name.
    """
    columns = math.ceil(len(set(scenes or ())) / _LEGEND_LINES)
    figure = Figure(figsize=(8.4 + 2.6 * columns, 8), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(f"t-SNE of the features of {len(places)} tiles: near tiles are alike")
    # The plane of t-SNE has no unit.
    axes.set_xticks([])
    axes.set_yticks([])
    if scenes is None:
        axes.scatter(places[:, 0], places[:, 1], s=18, color=_COLOURS[0], alpha=0.8, linewidths=0)
        return figure
    of_tile = np.array(scenes)
    for number, scene in enumerate(sorted(set(scenes))):
        own = places[of_tile == scene]
        axes.scatter(
            own[:, 0],
            own[:, 1],
            s=30,
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKERS[number // len(_COLOURS) % len(_MARKERS)],
            alpha=0.75,
            linewidths=0,
            label=f"{number + 1} {_plain(scene)}",
        )
        x, y = np.median(own, axis=0)
        axes.text(
            x,
            y,
            str(number + 1),
            fontsize=11,
            fontweight="bold",
            ha="center",
            va="center",
            path_effects=_WHITE_EDGE,
            zorder=4,
        )
    figure.legend(loc="outside right upper", frameon=False, fontsize=9, ncols=columns)
    return figure


def heat_map_grid(
    tiles: NDArray[np.uint8],
    maps: NDArray[Any],
    stems: Sequence[str],
    labels: Sequence[Sequence[str]],
    remarks: Sequence[Sequence[str]],
) -> Figure:
    """A row for each tile (K, H, W, 3): the tile, and its M labels' maps laid over it.

    Args:
        tiles: the tiles.
        maps: (K, M, H, W) between 0 and 1, as large as the tiles.
        stems: the tiles' names.
        labels: K times the M labels of a tile.
        remarks: K times a line below each label.
    """
    columns = 1 + maps.shape[1]
    figure = Figure(figsize=(2.3 * columns + 0.8, 2.65 * len(tiles) + 0.3), layout="constrained")
    panels = figure.subplots(len(tiles), columns, squeeze=False)
    for line, tile in enumerate(tiles):
        panels[line, 0].imshow(tile)
        panels[line, 0].set_title(_plain(textwrap.shorten(stems[line], 28)), fontsize=9)
        for column, axes in enumerate(panels[line, 1:]):
            axes.imshow(_grey(tile))
            heat = np.asarray(maps[line, column], dtype=np.float64)
            # Where there is no heat the tile is seen through.
            axes.imshow(_HEAT.to_rgba(heat), alpha=0.15 + 0.6 * heat)
            told = labels[line][column], remarks[line][column]
            axes.set_title("\n".join(map(_plain, told)), fontsize=9)
    for axes in panels.flat:
        axes.set_axis_off()
    figure.colorbar(_HEAT, ax=panels, shrink=0.6, label="evidence (1: the tile's strongest)")
    return figure


def _grey(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The tile without colours, which would be taken for heat."""
    light = (tile.astype(np.float64) @ [0.299, 0.587, 0.114]).round().astype(np.uint8)
    return np.repeat(light[..., None], 3, axis=-1)


def _plain(text: str) -> str:
    """The text as it stands: a dollar would begin a formula."""
    return text.replace("$", "\\$")
