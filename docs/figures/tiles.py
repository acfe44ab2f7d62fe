"""Draws tiles with what a running gateway says of them.

python docs/figures/tiles.py --out docs/figures/tiles.png TILE [TILE ...]
"""

import argparse
import base64
import json
import textwrap
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from PIL import Image

QUESTIONS = ["What is the theme of this picture?", "Are there trees?", "Are there cars?"]
WIDTH = 44


def ask(url: str, **body: object) -> dict[str, Any]:
    """The gateway's answer to a JSON body."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def describe(url: str, tile: Path) -> str:
    """Caption, present labels and answers of a tile, as lines of text."""
    image = base64.b64encode(tile.read_bytes()).decode()
    labels = ask(f"{url}/labels", image=image)["labels"]
    caption = ask(f"{url}/caption", image=image)["caption"]
    answers = ask(f"{url}/vqa", image=image, questions=QUESTIONS)["answers"]
    present = ", ".join(f"{one['name']} {one['score']:.2f}" for one in labels if one["present"])
    lines = [*textwrap.wrap(caption, WIDTH), "", *textwrap.wrap(present, WIDTH), ""]
    for one in answers:
        lines += textwrap.wrap(
            f"{one['question']} {one['answer']} ({one['confidence']:.2f})", WIDTH
        )
    return "\n".join(lines)


def main() -> None:
    """Draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tiles", nargs="+", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--out", required=True, type=Path)
    given = parser.parse_args()
    figure, axes = plt.subplots(1, len(given.tiles), figsize=(3.6 * len(given.tiles), 5.4))
    for axis, tile in zip(figure.axes or [axes], given.tiles, strict=True):
        with Image.open(tile) as image:
            axis.imshow(image.convert("RGB"))
        axis.set_title(tile.stem, fontsize=10)
        axis.axis("off")
        axis.text(
            0, -0.04, describe(given.url, tile), transform=axis.transAxes, va="top", fontsize=8.5
        )
    figure.subplots_adjust(left=0.01, right=0.99, top=0.94, bottom=0.36, wspace=0.06)
    figure.savefig(given.out, dpi=90)


if __name__ == "__main__":
    main()
