"""Pictures of a run."""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from tilesight.files import written_whole


def draw_curves(history: Path, out: Path) -> None:
    """Writes a PNG with a panel for each figure of the history, over the epochs."""
    with history.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in (rows[0] if rows else {}) if name not in ("epoch", "step")]
    columns = 4
    lines = max(-(-len(names) // columns), 1)
    figure, axes = plt.subplots(lines, columns, figsize=(4 * columns, 2.6 * lines), squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        points = [(int(row["epoch"]), float(row[name])) for row in rows if row[name]]
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.2)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("epoch", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    with written_whole(out) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
    plt.close(figure)
