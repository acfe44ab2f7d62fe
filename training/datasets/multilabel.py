"""The multi-label data sets behind one interface: `open_set("aid", folder)`.

| Name | Labels | Tiles, train/val/test | The data folder |
|---|---|---|---|
| `ucm` | 17 | 1,470/210/420 | that of `training.datasets.ucm` |
| `ucm_aitlas` | 17 | 1,285/395/420 | the same, in the parts of AiTLAS arena |
| `aid` | 17 | 1,917/483/600 | `images/<Scene>/<scene>_<n>.jpg` and the three tables |
| `dfc15` | 8 | 2,045/628/669 | `images/<n>.png` and the three tables |
| `ucm+aid` | 17 | 3,387/693/1,020 | `ucm/` and `aid/`, each as above |

The three tables are `multilabel_train.tsv`, `multilabel_val.tsv` and `multilabel_test.tsv`, in the
layout of `multilabels.tsv`. They give the labels only: who is in which part is said by the
committed lists. Tiles may be .jpg, .tif or .png in every set.

AID's tiles are 600x600 pixels where they are published. The copy that the project is measured on
was scaled down to 150x150 by whoever made it, so cars and courts are a quarter as long in it: say
so beside a figure. Labels are read without a tile being there, as DFC15 often comes.

In the union, AID's stems and scenes begin with `aid/`, UC Merced's are as they are alone. Its
parts are UC Merced's (the `ucm` lists) and then AID's.

Sources. AID: Xia et al., TGRS 2017; its labels: Hua et al., TGRS 2020. DFC15: IEEE GRSS data
fusion contest 2015; its labels: Hua et al., ISPRS 2019. The parts of all but `ucm`: Dimitrovski et
al., ISPRS 2023 (AiTLAS arena).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tilesight.errors import DataError
from training.datasets import ucm
from training.datasets.splits import PARTS, read_split, split_sha256

UCM_LABELS: tuple[str, ...] = (
    "airplane", "bare-soil", "buildings", "cars", "chaparral", "court", "dock", "field", "grass",
    "mobile-home", "pavement", "sand", "sea", "ship", "tanks", "trees", "water",
)  # fmt: skip

# Column of AID's tables -> UC Merced's name for it, in UC Merced's order. The tables of AiTLAS
# arena spell all 17 as UC Merced does. They are written out all the same: a table that spells
# one in another way is then refused by name, and one in another order is put right.
AID_COLUMNS: dict[str, str] = {
    "airplane": "airplane",
    "bare-soil": "bare-soil",
    "buildings": "buildings",
    "cars": "cars",
    "chaparral": "chaparral",
    "court": "court",
    "dock": "dock",
    "field": "field",
    "grass": "grass",
    "mobile-home": "mobile-home",
    "pavement": "pavement",
    "sand": "sand",
    "sea": "sea",
    "ship": "ship",
    "tanks": "tanks",
    "trees": "trees",
    "water": "water",
}

DFC15_LABELS: tuple[str, ...] = (
    "impervious", "water", "clutter", "vegetation", "building", "tree", "boat", "car",
)  # fmt: skip

# Folder names; a stem is one of them in lower case, an underscore and a number.
AID_SCENES: tuple[str, ...] = (
    "Airport", "BareLand", "BaseballField", "Beach", "Bridge", "Center", "Church", "Commercial",
    "DenseResidential", "Desert", "Farmland", "Forest", "Industrial", "Meadow",
    "MediumResidential", "Mountain", "Park", "Parking", "Playground", "Pond", "Port",
    "RailwayStation", "Resort", "River", "School", "SparseResidential", "Square", "Stadium",
    "StorageTanks", "Viaduct",
)  # fmt: skip
_AID_FOLDERS = {scene.lower(): scene for scene in AID_SCENES}


def _aid_scene_of(stem: str) -> str:
    scene = _AID_FOLDERS.get(stem.rpartition("_")[0])
    if scene is None:
        raise DataError(f"tile {stem!r}: no scene of AID has this name")
    return scene


@dataclass(frozen=True)
class _Source:
    """What one folder of tiles and tables looks like, and what its stems are called."""

    tables: tuple[str, ...]
    columns: Mapping[str, str]  # column of the tables -> label
    scene_of: Callable[[str], str] | None
    folder: str = "."  # in the data folder
    prefix: str = ""  # before its stems and scenes
    public_domain: bool = False  # whether its tiles may be shown in what is passed on


_TABLES = tuple(f"multilabel_{part}.tsv" for part in PARTS)
_UCM = _Source(
    ("multilabels.tsv",), {label: label for label in UCM_LABELS}, ucm.scene_of, public_domain=True
)
_AID = _Source(_TABLES, AID_COLUMNS, _aid_scene_of)
_DFC15 = _Source(_TABLES, {label: label for label in DFC15_LABELS}, None)
_SETS: dict[str, tuple[_Source, ...]] = {
    "ucm": (_UCM,),
    "ucm_aitlas": (_UCM,),
    "aid": (_AID,),
    "dfc15": (_DFC15,),
    "ucm+aid": (replace(_UCM, folder="ucm"), replace(_AID, folder="aid", prefix="aid/")),
}
NAMES: tuple[str, ...] = tuple(_SETS)


@dataclass(frozen=True)
class MultiLabelSet:
    """Tiles, labels and parts of one data set; nothing is read before it is asked for."""

    name: str
    data: Path
    labels: list[str]  # in the order of the columns of `matrix`
    _sources: tuple[_Source, ...] = field(repr=False)

    def part_stems(self, part: str) -> list[str]:
        """All stems of the train, val or test part, in the order of the committed lists.

        Raises:
            DataError: there is no such part.
        """
        if part not in PARTS:
            raise DataError(f"{self.name}: no part {part!r}, there are {', '.join(PARTS)}")
        return read_split(self.name, part)

    def split_sha256(self, part: str) -> str:
        """The SHA-256 of `part_stems`, which for a single set is that of its committed list.

        Raises:
            DataError: there is no such part.
        """
        self.part_stems(part)
        return split_sha256(self.name, part)

    @property
    def tables(self) -> list[str]:
        """The annotation files, as they lie in the data folder."""
        return [
            str(Path(source.folder) / name) for source in self._sources for name in source.tables
        ]

    def present(self, stems: Sequence[str]) -> list[str]:
        """Those of the stems whose tile is in the data folder, in the same order.

        Raises:
            DataError: a stem is not of a scene of the set.
        """
        return [stem for stem in stems if self._find(stem) is not None]

    def tiles(self, stems: Sequence[str], size: int) -> NDArray[np.uint8]:
        """The tiles as (N, size, size, 3) RGB, through the same pixel pipeline as serving.

        Raises:
            DataError: a folder of tiles is missing; tiles are missing (they are counted and the
                first five are named); one cannot be read or decoded (its path is named).
        """
        for images in {self._images(self._owner(stem)): None for stem in stems}:
            if not images.is_dir():
                raise DataError(f"{images}: no such folder; the tiles of {self.name} go there")
        return ucm.read_found(self._find, stems, size, self.data)

    def matrix(self, stems: Sequence[str]) -> NDArray[np.float32]:
        """The labels of the stems, (N, C) of 0 and 1 in the order of `labels`.

        Raises:
            DataError: a table is missing or broken (`ucm.read_table` says how), or it has no row
                for some stems (they are counted and the first five are named).
        """
        rows = self._table.rows
        ucm.require_all("row of labels", [stem for stem in stems if stem not in rows], self.data)
        return self._table.matrix(stems)

    def scene_of(self, stem: str) -> str | None:
        """The scene that a tile shows; None where the set has no scenes.

        Raises:
            DataError: the set has scenes and the stem is of none of them.
        """
        source = self._owner(stem)
        if source.scene_of is None:
            return None
        return f"{source.prefix}{source.scene_of(stem.removeprefix(source.prefix))}"

    def public_domain(self, stem: str) -> bool:
        """Whether a file that is passed on may show the tile.

        UC Merced's tiles are the USGS's and free. AID's are Google Earth's, and those of DFC15 the
        contest's: who wants to see them gets them where their owners give them.
        """
        return self._owner(stem).public_domain

    def by_scene(self, stems: Sequence[str]) -> dict[str, list[str]]:
        """Scene -> its stems, which `splits.make_ucm_split` cuts 70/10/20.

        Raises:
            DataError: the set has no scenes, or a stem is of none of them.
        """
        groups: dict[str, list[str]] = {}
        for stem in stems:
            scene = self.scene_of(stem)
            if scene is None:
                raise DataError(f"{self.name}: it has no scenes to group by")
            groups.setdefault(scene, []).append(stem)
        return groups

    @cached_property
    def _table(self) -> ucm.LabelTable:
        rows: dict[str, NDArray[np.float32]] = {}
        for source in self._sources:
            paths = [self.data / source.folder / name for name in source.tables]
            table = ucm.read_table(paths, source.columns)
            rows |= {f"{source.prefix}{stem}": row for stem, row in table.rows.items()}
        return ucm.LabelTable(self.labels, rows)

    def _owner(self, stem: str) -> _Source:
        """The source whose prefix the stem has; the empty one fits all, so the longest counts."""
        fitting = [source for source in self._sources if stem.startswith(source.prefix)]
        return max(fitting, key=lambda source: len(source.prefix))

    def _images(self, source: _Source) -> Path:
        return self.data / source.folder / "images"

    def _find(self, stem: str) -> Path | None:
        source = self._owner(stem)
        bare = stem.removeprefix(source.prefix)
        scene = "" if source.scene_of is None else source.scene_of(bare)
        return ucm.find_tile(self._images(source) / scene, bare)


def bare_stem(stem: str) -> str:
    """The stem as it is in the tile's own set, without the prefix that it has in a union."""
    return stem.rpartition("/")[2]


def open_set(name: str, data: Path) -> MultiLabelSet:
    """The data set of this name in its data folder.

    Raises:
        DataError: no set has this name; the message lists those there are.
    """
    if name not in _SETS:
        raise DataError(f"no multi-label data set {name!r}, there are {', '.join(NAMES)}")
    sources = _SETS[name]
    labels = list(dict.fromkeys(sources[0].columns.values()))
    return MultiLabelSet(name, data, labels, sources)
