"""The committed split lists: one stem a line, so that a figure can name the tiles it stands on.

- `ucm`: 70/10/20 a scene by the recipe of SIGNA's official code, 1,470/210/420 tiles.
- `ucm_captions`: the official split of UCM-Captions, 1,680/210/210.
- `ucm_aitlas`: the split of UC Merced's multi-label table in AiTLAS arena, 1,285/395/420.
- `aid`: the split of AID's multi-label table in AiTLAS arena, 1,917/483/600.
- `dfc15`: the split of DFC15's multi-label table in AiTLAS arena, 2,045/628/669.

The last three (Dimitrovski et al., ISPRS 2023) stand in the order of the tables they come from.

`ucm+aid` are the lists of `ucm` and then those of `aid`, whose stems begin with `aid/` there.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from tilesight.errors import DataError

PARTS = ("train", "val", "test")
_FOLDER = Path(__file__).parent / "splits"


def read_split(dataset: str, part: str) -> list[str]:
    """The stems of one part of a committed split, in the order of the list, or of several lists.

    Raises:
        DataError: no such list is committed; the message names those that are.
    """
    first, *others = dataset.split("+")
    stems = _read_list(first, part)
    for name in others:
        stems += [f"{name}/{stem}" for stem in _read_list(name, part)]
    return stems


def _read_list(dataset: str, part: str) -> list[str]:
    path = _FOLDER / f"{dataset}_{part}.txt"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in _FOLDER.glob("*.txt")))
        raise DataError(f"split: no list {path.stem}, there are {known}")
    return path.read_text(encoding="utf-8").split()


def split_sha256(dataset: str, part: str) -> str:
    """The SHA-256 of the list with one stem and one newline a line, however it was checked out."""
    lines = "".join(f"{stem}\n" for stem in read_split(dataset, part))
    return hashlib.sha256(lines.encode()).hexdigest()


def make_ucm_split(stems_by_class: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The recipe behind the `ucm` lists: part -> stems.

    The generator is seeded once, then each class in alphabetical order is sorted, shuffled and
    cut at 70 % and 80 %.
    """
    generator = random.Random(42)
    split: dict[str, list[str]] = {part: [] for part in PARTS}
    for name in sorted(stems_by_class):
        stems = sorted(stems_by_class[name])
        generator.shuffle(stems)
        train_end = len(stems) * 7 // 10
        val_end = train_end + len(stems) // 10
        split["train"] += stems[:train_end]
        split["val"] += stems[train_end:val_end]
        split["test"] += stems[val_end:]
    return split
