"""The golden tile's answer: proof that whatever runs a model computes what its exporter saw.

Hashes say that a file arrived whole. They do not say that this processor, this runtime or that
server over there computes with it what was measured; one answer compared with the manifest does.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tilesight import imaging
from tilesight.manifest import Golden, Manifest

# An output of more values (a class activation map, a memory) would fill the manifest.
_MOST_VALUES = 256
# Other processors add up in another order; int8 sums saturate on those without VNNI.
TOLERANCES = {
    "float32": 1e-3,
    "float16-weights": 1e-3,
    "bfloat16": 5e-2,
    "int8": 5e-2,
    "int8-bfloat16": 5e-2,
}


def golden_inputs(manifest: Manifest) -> dict[str, NDArray[np.generic]]:
    """The golden tile where the model reads a tile, ones elsewhere; a batch of one."""
    tile = manifest.input
    return {
        spec.name: imaging.prepare(imaging.golden_image(), tile.height, tile.width)[None]
        if tile is not None and spec.name == tile.name
        else np.ones([1, *spec.shape[1:]], dtype=spec.dtype)
        for spec in manifest.inputs
    }


def record(
    manifest: Manifest, outputs: Mapping[str, NDArray[np.generic]], precision: str | None = None
) -> Golden:
    """What is kept of the golden tile's outputs: small ones, of finite floats.

    Without another precision they are those of the manifest's graph.
    """
    kept = {
        name: [round(float(value), 6) for value in values.ravel().tolist()]
        for name, values in outputs.items()
        if values.dtype.kind == "f"
        and values.size <= _MOST_VALUES
        and bool(np.isfinite(values).all())
    }
    return Golden(outputs=kept, tolerance=TOLERANCES[precision or manifest.graph.precision])


def disagreement(golden: Golden, outputs: Mapping[str, NDArray[np.generic]]) -> str | None:
    """The first output that is not what was recorded, as a sentence; None where all agree."""
    for name, expected in golden.outputs.items():
        found = np.asarray(outputs[name], dtype=np.float64).ravel()
        if found.size != len(expected):
            return f"{name}: {found.size} values, the manifest has {len(expected)}"
        largest = float(np.abs(found - np.array(expected)).max(initial=0.0))
        if not largest <= golden.tolerance:
            return (
                f"{name}: differs by {largest:.2g} from the manifest's golden answer, "
                f"the limit is {golden.tolerance:g}"
            )
    return None
