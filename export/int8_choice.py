"""Which of the int8 recipes suits a graph: fast enough, and then closest to float32."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx

from export.certificate import Gates
from export.int8 import write_int8
from export.onnx_file import Session
from export.part import Part
from export.speed import speedup
from tilesight.cores import usable_cores

# Convolutions at the start that stay float32; they are the ones that lose the most.
_FLOAT_CONVOLUTIONS = (0, 3, 9)
# At which the recipes' speeds are compared.
_BATCH = 8


class _Candidate(NamedTuple):
    """An int8 graph, how fast it is, and how far from float32 on validation tiles."""

    path: Path
    recipe: str
    speedup: float
    distance: float


def fit_int8(part: Part, source: Path, target: Path, gates: Gates) -> str:
    """Writes the int8 graph of the recipe that suits the model; returns what was tried.

    Of the recipes that are fast enough the one that stays closest to float32 on validation tiles,
    of which the task's figures are too coarse to tell; else the fastest. Test tiles take no part
    in the choice: the certificate judges with them.

    Raises:
        ExportError: the graph cannot be quantised.
    """
    # Beside the target, so that renaming is one step; a failing recipe leaves no candidate.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fit-") as folder:
        candidates = _candidates(part, source, Path(folder))
        fast = [one for one in candidates if one.speedup >= gates.min_speedup]
        chosen = (
            min(fast, key=lambda one: one.distance)
            if fast
            else max(candidates, key=lambda one: one.speedup)
        )
        chosen.path.rename(target)
    return f"chosen {'; '.join(one.recipe for one in sorted(candidates, key=chosen.__ne__))}"


def _candidates(part: Part, source: Path, folder: Path) -> list[_Candidate]:
    """The graph quantised by each recipe."""
    before = Session(source, usable_cores())
    expected = part.outputs(before, "val")[part.shown.output]
    convolutional = any(node.op_type == "Conv" for node in onnx.load(source).graph.node)
    candidates = []
    for count in _FLOAT_CONVOLUTIONS if convolutional else (0,):
        path = folder / f"{count}.onnx"
        write_int8(source, path, part.calibration, count)
        after = Session(path, usable_cores())
        distance = float(np.abs(part.outputs(after, "val")[part.shown.output] - expected).mean())
        faster = speedup(before, after, part.feeds(_BATCH))
        recipe = (
            f"{f'first {count} convolutions float32' if count else 'all int8'}: {faster:.2f} times "
            f"as fast, {part.shown.output} {distance:.2g} off on average on validation tiles"
        )
        candidates.append(_Candidate(path, recipe, faster, distance))
    return candidates
