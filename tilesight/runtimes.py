"""`runtimes.json`: in which runtime and precision a version has passed its gates.

A file of its own beside the manifest, which lists its hash like any other file's: whoever reads no
more than the manifest is not disturbed, and a version without it is one that nobody measured.
"""

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from tilesight.errors import ManifestError
from tilesight.manifest import Golden, Manifest, Strict

RUNTIMES_NAME = "runtimes.json"

RuntimeName = Literal["onnxruntime", "openvino"]
Precision = Literal["float32", "float16-weights", "bfloat16", "int8", "int8-bfloat16"]


class Pair(Strict):
    """A runtime and a precision that answer what torch answers, or lose no more than allowed."""

    runtime: RuntimeName
    precision: Precision = Field(
        description="int8-bfloat16: 8 bits where the file has them, bfloat16 elsewhere"
    )
    file: str = Field(description="the graph that it runs, a file of the version")
    golden: Golden = Field(description="what it answered to the golden tile")

    @property
    def bfloat16(self) -> bool:
        """Whether floats are computed in bfloat16."""
        return self.precision.endswith("bfloat16")

    def __str__(self) -> str:
        """As it stands in a log."""
        return f"{self.runtime} {self.precision} of {self.file}"


class Runtimes(Strict):
    """All pairs of one version that passed."""

    format_version: Literal[1] = 1
    passed: list[Pair]


def passed_pairs(folder: Path, manifest: Manifest) -> list[Pair]:
    """The pairs of a version that a gateway may use beside its `model.onnx`; none if unmeasured.

    Raises:
        ManifestError: the file is not what this version reads, or names a graph that is not there.
    """
    if RUNTIMES_NAME not in manifest.files:
        return []
    path = folder / RUNTIMES_NAME
    try:
        found = Runtimes.model_validate_json(path.read_bytes()).passed
    except (OSError, ValidationError) as error:
        raise ManifestError(f"{path}: {error}") from error
    for pair in found:
        if pair.file not in manifest.files:
            raise ManifestError(f"{path}: {pair}: the manifest lists no such file")
    return found


def runtimes_text(pairs: list[Pair]) -> str:
    """The file's content, a line for each pair."""
    lines = ",\n".join(f"  {json.dumps(pair.model_dump())}" for pair in pairs)
    return f'{{\n "format_version": 1,\n "passed": [\n{lines}\n ]\n}}\n'
