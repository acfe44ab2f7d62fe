"""What several workers share: the folder in which each keeps its counts, so that one can tell all.

A worker writes to files of its slot, which is 0, 1, ... and stays when the process in it is
replaced: the next process goes on counting where the one before ended. Killed workers lose nothing,
the files are mapped into memory.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import values
from prometheus_client.multiprocess import mark_process_dead

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


@dataclass(frozen=True)
class Shared:
    """One worker's place in the folder."""

    folder: Path
    slot: int

    def install(self) -> None:
        """From now on instruments are made in the folder; for the whole process."""
        os.environ[_FOLDER] = str(self.folder)
        values.ValueClass = values.MultiProcessValue(lambda: self.slot)  # type: ignore[no-untyped-call]
        (self.folder / f"{self.slot}.pid").write_text(str(os.getpid()), encoding="ascii")

    def gone(self) -> None:
        """Forgets what only held while the worker lived; what it counted stays."""
        mark_process_dead(self.slot, str(self.folder))  # type: ignore[no-untyped-call]
        (self.folder / f"{self.slot}.pid").unlink(missing_ok=True)

    def pids(self) -> dict[int, int]:
        """The processes of the workers that live, by slot."""
        found = {}
        for path in self.folder.glob("*.pid"):
            try:
                found[int(path.stem)] = int(path.read_text(encoding="ascii"))
            # Just written, or just gone.
            except (ValueError, FileNotFoundError):
                continue
        return found
