"""UC Merced Land Use: 21 scenes x 100 aerial tiles (0.3 m), 17 labels for each tile.

Tiles: Yang & Newsam, 2010, USGS public domain. Labels: Chaudhuri et al., TGRS 2018.
Layout of the data folder: `images/<scene>/<stem>.(jpg|tif|png)` and `multilabels.tsv`, whose first
line is a corner cell and the 17 labels, and each other line a stem and 17 times 0 or 1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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


def find_tile(folder: Path, stem: str) -> Path | None:
    """The stem's file in a folder of tiles, `.jpg` before `.tif` before `.png`; None without."""
    paths = (folder / f"{stem}{suffix}" for suffix in _SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def _find(data: Path, stem: str) -> Path | None:
    return find_tile(data / "images" / scene_of(stem), stem)


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
    return read_found(partial(_find, data), stems, size, data)


def read_found(
    find: Callable[[str], Path | None], stems: Sequence[str], size: int, where: Path
) -> NDArray[np.uint8]:
    """The tiles of any data set as (N, size, size, 3) RGB; `find` tells where a stem's file is.

    Raises:
        DataError: `find` has no file for some stems (the first few are named, and `where`), or a
            file cannot be read or decoded (its path is named).
    """
    found = {stem: path for stem in stems if (path := find(stem)) is not None}
    require_all("tile", [stem for stem in dict.fromkeys(stems) if stem not in found], where)
    tiles = np.empty((len(stems), size, size, 3), dtype=np.uint8)
    for index, stem in enumerate(track(stems, description="Reading tiles", transient=True)):
        tiles[index] = _prepared(found[stem], size)
    return tiles


def _prepared(path: Path, size: int) -> NDArray[np.uint8]:
    try:
        return prepare(path.read_bytes(), size, size)
    except (TilesightError, OSError) as error:
        raise DataError(f"{path}: {error}") from error


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
        matrix = np.zeros((len(stems), len(self.labels)), dtype=np.float32)
        for index, stem in enumerate(stems):
            matrix[index] = self.rows[stem]
        return matrix


def read_labels(data: Path) -> LabelTable:
    """The table of `multilabels.tsv`.

    Raises:
        DataError: the file is missing, or a line is not a stem and one 0 or 1 for each label.
    """
    return read_table([data / "multilabels.tsv"])


def read_table(paths: Sequence[Path], columns: Mapping[str, str] | None = None) -> LabelTable:
    """One table of all the rows of one or more files in the layout of `multilabels.tsv`.

    `columns` maps each column that a file may have to its label, and its order is that of the
    labels, whatever the order in the files. Without it the first file's own columns are taken,
    and the other files need to have the same ones.

    Raises:
        DataError: a file is missing or empty; a column is unknown, missing or there twice; a line
            is not a stem and one 0 or 1 for each column; a stem has two rows, in one file or two.
    """
    first: dict[str, str] = {}
    rows: dict[str, NDArray[np.float32]] = {}
    for path in paths:
        (number, header), *lines = _numbered_lines(path)
        names = header.split("\t")[1:]
        if columns is None:
            columns = {name: name for name in names}
        order = _column_order(f"{path}:{number}", names, columns)
        for number, line in lines:
            stem, *marks = line.split("\t")
            where = f"{path}:{number}"
            _check_marks(where, stem, marks, names)
            if stem in first:
                raise DataError(f"{where}: a second row for {stem}, the first is {first[stem]}")
            first[stem] = where
            rows[stem] = np.array(marks, dtype=np.float32)[order]
    return LabelTable(list(dict.fromkeys((columns or {}).values())), rows)


def _column_order(where: str, names: Sequence[str], columns: Mapping[str, str]) -> list[int]:
    """Where each label stands among the columns `names` of a file."""
    unknown = [name for name in names if name not in columns]
    if unknown:
        known = ", ".join(columns)
        raise DataError(f"{where}: unknown column {', '.join(unknown)}; known are {known}")
    labels = [columns[name] for name in names]
    twice = [label for label in dict.fromkeys(labels) if labels.count(label) > 1]
    if twice:
        raise DataError(f"{where}: two columns for {', '.join(twice)}")
    wanted = list(dict.fromkeys(columns.values()))
    missing = [label for label in wanted if label not in labels]
    if missing:
        raise DataError(f"{where}: no column for {', '.join(missing)}")
    return [labels.index(label) for label in wanted]


def _check_marks(where: str, stem: str, marks: Sequence[str], names: Sequence[str]) -> None:
    expected = f"{where}: expected a stem and {len(names)} times 0 or 1"
    if not stem:
        raise DataError(f"{expected}, there is no stem")
    if len(marks) != len(names):
        raise DataError(f"{expected}, {stem} has {len(marks)}")
    for name, mark in zip(names, marks, strict=True):
        if mark not in ("0", "1"):
            raise DataError(f"{expected}, {stem} has {mark!r} for {name}")


def read_lines(path: Path) -> list[str]:
    """The lines of an annotation file, those without text left out.

    Raises:
        DataError: the file is missing, empty or not UTF-8.
    """
    return [line for _, line in _numbered_lines(path)]


def _numbered_lines(path: Path) -> list[tuple[int, str]]:
    """The lines with text and their numbers as an editor counts them, lines without text too."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason})") from error
    lines = [pair for pair in enumerate(text.splitlines(), start=1) if pair[1].strip()]
    if not lines:
        raise DataError(f"{path}: empty")
    return lines
