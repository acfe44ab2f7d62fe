"""Draws a miniature UC Merced data folder: the real layout, a few scenes, tiles made of shapes.

The stems are real ones, chosen so that every part of both committed splits has tiles of every
scene. The same arguments give the same files.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

from PIL import Image, ImageDraw

from training.datasets.questions import SPOKEN
from training.datasets.splits import PARTS, read_split
from training.datasets.ucm import SCENES, TILES_PER_SCENE, scene_of

LABELS = list(SPOKEN)
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
_PARTS_WITH_ROOM = [(dataset, part) for dataset in ("ucm", "ucm_captions") for part in PARTS]

Color = tuple[int, int, int]
Box = tuple[int, int, int, int]
Shape = Callable[[ImageDraw.ImageDraw, Box, Color], None]


def _ellipse(canvas: ImageDraw.ImageDraw, box: Box, color: Color) -> None:
    canvas.ellipse(box, fill=color)


def _rectangle(canvas: ImageDraw.ImageDraw, box: Box, color: Color) -> None:
    canvas.rectangle(box, fill=color)


@dataclass(frozen=True)
class Look:
    """How a scene is drawn, labelled and spoken of."""

    ground: Color
    things: Color
    shape: Shape
    labels: tuple[str, ...]
    sometimes: str  # a label of every second tile, drawn as a strip at the right
    strip: Color
    thing: str
    sentences: tuple[str, ...]


LOOKS: dict[str, Look] = {
    "forest": Look(
        (40, 90, 40), (20, 140, 30), _ellipse, ("trees",), "bare-soil", (150, 110, 70), "trees",
        (
            "This is a dense forest with {n} green trees .",
            "Lots of dark green trees in the forest .",
            "It is a dense forest .",
            "There are many green trees in the forest .",
            "A piece of forest with many trees .",
        ),
    ),
    "harbor": Look(
        (30, 60, 130), (235, 235, 240), _rectangle, ("dock", "ship", "water"), "pavement",
        (130, 130, 130), "boats",
        (
            "There are {n} white boats docked at the harbor .",
            "Lots of boats docked in lines at the harbor .",
            "Many boats docked neatly at the harbor and the water is blue .",
            "This is a harbor with white boats .",
            "Some boats are in the blue water .",
        ),
    ),
    "parkinglot": Look(
        (110, 110, 110), (200, 30, 30), _rectangle, ("cars", "pavement"), "grass", (90, 170, 80),
        "cars",
        (
            "There are {n} cars in the parking lot .",
            "Lots of cars parked neatly in the parking lot .",
            "This is a parking lot with many cars .",
            "Many cars are parked in lines .",
            "A grey parking lot with some cars .",
        ),
    ),
    "beach": Look(
        (220, 200, 150), (250, 240, 210), _ellipse, ("sand", "sea"), "trees", (30, 110, 170),
        "waves",
        (
            "Waves slapping a white sand beach with {n} waves .",
            "This is a beach with blue sea and white sands .",
            "There is a beach with white sand .",
            "A white beach beside the blue water .",
            "Waves are on the beach .",
        ),
    ),
}  # fmt: skip


def draw(folder: Path, tiles_per_scene: int = 12, scenes: int = 4, side: int = 64) -> Path:
    """The folder, filled with `scenes` scenes of `tiles_per_scene` tiles and their annotations.

    From 6 tiles a scene on, each part of each split has a tile of each scene; at most 4 scenes.
    """
    tiles = sorted(
        _Tile(stem, side)
        for scene in list(LOOKS)[:scenes]
        for stem in chosen_stems(scene, tiles_per_scene)
    )
    for tile in tiles:
        tile.save(folder / "images" / tile.scene)
    (folder / "vqa").mkdir(parents=True, exist_ok=True)
    _write(folder / "multilabels.tsv", ["\t".join(["IMAGE\\LABEL", *LABELS])], tiles, _Tile.row)
    _write(folder / "vqa" / "theme.txt", [], tiles, _Tile.theme)
    _write(folder / "vqa" / "human.txt", [], tiles, _Tile.people)
    images = [tile.captions() for tile in tiles]
    (folder / "captions.json").write_text(json.dumps({"images": images, "dataset": "UCM"}))
    return folder


def chosen_stems(scene: str, count: int) -> list[str]:
    """The first `count` stems of a scene when the parts of both splits give one in turn."""
    lists = [
        [stem for stem in read_split(dataset, part) if scene_of(stem) == scene]
        for dataset, part in _PARTS_WITH_ROOM
    ]
    in_turn = chain.from_iterable(zip_longest(*lists))
    return list(dict.fromkeys(stem for stem in in_turn if stem is not None))[:count]


class _Tile:
    def __init__(self, stem: str, side: int) -> None:
        self.stem, self.side = stem, side
        self.scene = scene_of(stem)
        self.look = LOOKS[self.scene]
        self.generator = random.Random(stem)
        self.count = self.generator.randint(1, 6)
        self.has_strip = self.generator.random() < 0.5
        index = int(stem.removeprefix(self.scene))
        self.number = list(SCENES).index(self.scene) * TILES_PER_SCENE + index + 1

    def __lt__(self, other: "_Tile") -> bool:
        return self.number < other.number

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (self.side, self.side), self.look.ground)
        canvas = ImageDraw.Draw(picture)
        if self.has_strip:
            _rectangle(canvas, (self.side * 3 // 4, 0, self.side, self.side), self.look.strip)
        size = max(2, self.side // 8)
        for _ in range(self.count):
            x, y = (self.generator.randrange(self.side - size) for _ in range(2))
            self.look.shape(canvas, (x, y, x + size, y + size), self.look.things)
        picture.save(folder / f"{self.stem}.jpg", quality=95)

    def row(self) -> list[str]:
        shown = {*self.look.labels, *([self.look.sometimes] if self.has_strip else [])}
        return ["\t".join([self.stem, *(str(int(label in shown)) for label in LABELS)])]

    def theme(self) -> list[str]:
        name = SCENES[self.scene]
        return [f"{self.number}.tif:what is the theme of this picture?{name}"]

    def people(self) -> list[str]:
        """The lines of a harbour or car park, as in the real file only some scenes have any."""
        if self.scene not in ("harbor", "parkinglot"):
            return []
        thing = self.look.thing
        asked = [
            f"What is the theme of this picture?{SCENES[self.scene]}",
            "Does this picture contain trees?no",
            f"How many {thing} in the picture?{_NUMBERS[self.count]}",
            f"What is the location of the {thing} in this picture?center",
            "How many  in the picture?zero",
            "What is the location of the  in this picture?i cannot see it ",
        ]
        return [f"{self.number}.tif:{question}" for question in asked]

    def captions(self) -> dict[str, object]:
        part = next(p for p in PARTS if self.stem in read_split("ucm_captions", p))
        sentences = [{"raw": s.format(n=_NUMBERS[self.count])} for s in self.look.sentences]
        return {"filename": f"{self.number}.tif", "split": part, "sentences": sentences}


def _write(
    path: Path, header: list[str], tiles: list[_Tile], lines_of: Callable[[_Tile], list[str]]
) -> None:
    lines = [*header, *chain.from_iterable(lines_of(tile) for tile in tiles)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
