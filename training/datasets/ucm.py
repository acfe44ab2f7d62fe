"""UC Merced Land Use: 21 scenes x 100 aerial tiles (0.3 m), 17 labels for each tile.

Tiles: Yang & Newsam, 2010, USGS public domain. Labels: Chaudhuri et al., TGRS 2018.
Layout of the data folder: `images/<scene>/<stem>.(jpg|tif|png)` and `multilabels.tsv`, whose first
line is a corner cell and the 17 labels, and each other line a stem and 17 times 0 or 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from tilesight.errors import DataError, TilesightError
from tilesight.imaging import prepare
from training.datasets.splits import read_split

TILES_PER_SCENE = 100
_SUFFIXES = (".jpg", ".tif", ".png")
_NAMED_AT_MOST = 5

# Folder name -> the name that RSIVQA's theme questions are answered with.
SCENES: dict[str, str] = {
    "agricultural": "farmland",
    "airplane": "airplane",
    "baseballdiamond": "baseball diamond",
    "beach": "beach",
    "buildings": "buildings",
    "chaparral": "chaparral",
    "denseresidential": "dense residential",
    "forest": "forest",
    "freeway": "freeway",
    "golfcourse": "golf course",
    "harbor": "harbor",
    "intersection": "intersection",
    "mediumresidential": "medium residential",
    "mobilehomepark": "mobile home park",
    "overpass": "overpass",
    "parkinglot": "parking lot",
    "river": "river",
    "runway": "runway",
    "sparseresidential": "sparse residential",
    "storagetanks": "storage tanks",
    "tenniscourt": "tennis court",
}
_FOLDERS = list(SCENES)


def scene_of(stem: str) -> str:
    """The scene (a folder name of `SCENES`) that a tile's stem stands in."""
    scene = stem.rstrip("0123456789")
    if scene not in SCENES:
        raise DataError(f"tile {stem!r}: no scene of UC Merced has this name")
    return scene


def stem_of_number(number: int) -> str:
    """The stem of tile `number`.tif of UCM-Captions and RSIVQA, which count all tiles from 1."""
    if not 1 <= number <= TILES_PER_SCENE * len(_FOLDERS):
        raise DataError(f"tile {number}.tif: UC Merced has {TILES_PER_SCENE * len(_FOLDERS)} tiles")
    scene, index = divmod(number - 1, TILES_PER_SCENE)
    return f"{_FOLDERS[scene]}{index:02d}"


def _find(data: Path, stem: str) -> Path | None:
    folder = data / "images" / scene_of(stem)
    paths = (folder / f"{stem}{suffix}" for suffix in _SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def tile_path(data: Path, stem: str) -> Path:
    """The tile's file in the data folder.

    Raises:
        DataError: there is none in any of the three formats.
    """
    path = _find(data, stem)
    if path is None:
        raise DataError(f"{data}: no tile {stem} (.jpg, .tif or .png)")
    return path


def present(data: Path, stems: Sequence[str]) -> list[str]:
    """Those of the stems whose tile is in the data folder, in the same order."""
    return [stem for stem in stems if _find(data, stem) is not None]


def part_stems(data: Path, dataset: str, part: str) -> list[str]:
    """The stems of a split's part whose tile is in the data folder.

    Raises:
        DataError: there is not one.
    """
    listed = read_split(dataset, part)
    stems = present(data, listed)
    if not stems:
        raise DataError(
            f"{data / 'images'}: none of the {len(listed)} tiles of {dataset}'s {part} part"
        )
    return stems


def read_tiles(data: Path, stems: Sequence[str], size: int) -> NDArray[np.uint8]:
    """The tiles as (N, size, size, 3) RGB, through the same pixel pipeline as serving.

    Raises:
        DataError: tiles are missing (the first few are named) or one cannot be decoded.
    """
    found = {stem: _find(data, stem) for stem in stems}
    require_all("tile", [stem for stem, path in found.items() if path is None], data)
    tiles = np.empty((len(stems), size, size, 3), dtype=np.uint8)
    for index, stem in enumerate(track(stems, description="Reading tiles", transient=True)):
        path = tile_path(data, stem)
        try:
            tiles[index] = prepare(path.read_bytes(), size, size)
        except TilesightError as error:
            raise DataError(f"{path}: {error}") from error
    return tiles


def require_all(kind: str, missing: Sequence[str], where: Path | str) -> None:
    """Passes where none is missing.

    Raises:
        DataError: some are; the message counts them and names the first five.
    """
    if missing:
        named = ", ".join(missing[:_NAMED_AT_MOST])
        more = ", ..." if len(missing) > _NAMED_AT_MOST else ""
        raise DataError(f"{where}: no {kind} for {len(missing)} stems: {named}{more}")


@dataclass(frozen=True)
class LabelTable:
    """The multi-label annotation: one 0/1 row of C labels for each stem."""

    labels: list[str]
    rows: dict[str, NDArray[np.float32]]

    def matrix(self, stems: Sequence[str]) -> NDArray[np.float32]:
        """The rows of the stems, (N, C).

        Raises:
            DataError: a stem is not in the table.
        """
        missing = [stem for stem in stems if stem not in self.rows]
        require_all("row of labels", missing, "label table")
        return np.stack([self.rows[stem] for stem in stems])


def read_labels(data: Path) -> LabelTable:
    """The table of `multilabels.tsv`.

    Raises:
        DataError: the file is missing, or a line is not a stem and one 0 or 1 for each label.
    """
    path = data / "multilabels.tsv"
    header, *lines = read_lines(path)
    labels = header.split("\t")[1:]
    rows: dict[str, NDArray[np.float32]] = {}
    for number, line in enumerate(lines, start=2):
        stem, *marks = line.split("\t")
        if len(marks) != len(labels) or not set(marks) <= {"0", "1"}:
            raise DataError(f"{path}:{number}: expected a stem and {len(labels)} times 0 or 1")
        if stem in rows:
            raise DataError(f"{path}:{number}: a second row for {stem}")
        rows[stem] = np.array(marks, dtype=np.float32)
    return LabelTable(labels, rows)


def read_lines(path: Path) -> list[str]:
    """The lines of an annotation file, those without text left out.

    Raises:
        DataError: the file is missing or empty.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path}: empty")
    return lines
