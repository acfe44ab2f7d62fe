"""What was measured, cell by cell: on disk as it comes, so that a run can be taken up again."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

Cell = dict[str, Any]
CELLS, ABOUT = "cells.jsonl", "run.json"
LEFT_OUT = "left_out"  # whoever could not be started; the next time it may


class Key(NamedTuple):
    """Which cell: of whom, of which loop, at which concurrency or share of the capacity, when."""

    subject: str
    kind: str  # closed | open | one (the bare loop alone, by its threads)
    level: float
    repeat: int


class OtherRunError(Exception):
    """The folder holds the cells of a run with other options."""


class Store:
    """The cells of one folder; those of a run before, with the same options, are there already."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        """Reads what is there.

        Raises:
            OtherRunError: naming the option that differs.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._path, known = folder / CELLS, folder / ABOUT
        if known.is_file():
            before = json.loads(known.read_text(encoding="utf-8"))
            now = json.loads(json.dumps(about))
            for name in sorted((before.keys() | now.keys()) - {LEFT_OUT}):
                if before.get(name) != now.get(name):
                    raise OtherRunError(
                        f"{folder}: its cells are of a run with {name} = {before.get(name)}, "
                        f"not {now.get(name)}; name another folder (--out)"
                    )
        known.write_text(json.dumps(about, indent=1), encoding="utf-8")
        cells = read_cells(folder) if self._path.is_file() else []
        self.cells = {key_of(cell): cell for cell in cells}

    def __contains__(self, key: Key) -> bool:
        """Whether the cell was measured."""
        return key in self.cells

    def add(self, key: Key, figures: Cell) -> None:
        """Keeps a cell, in place of an earlier one."""
        cell = key._asdict() | figures
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(cell) + "\n")
        self.cells[key] = cell


def key_of(cell: Cell) -> Key:
    """Which cell it is."""
    return Key(cell["subject"], cell["kind"], float(cell["level"]), cell["repeat"])


def read_cells(folder: Path) -> Iterable[Cell]:
    """The cells of a folder, oldest first; a line that was cut off when a run ended is left out."""
    for line in (folder / CELLS).read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue
