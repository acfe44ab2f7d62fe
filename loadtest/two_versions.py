"""A further version of a committed model: the same network as its other graph.

That is float32 where int8 is served, and int8 where float32 is.
"""

import json
import shutil
from pathlib import Path

import onnxruntime as ort

from tilesight.files import sha256, write_text
from tilesight.golden import golden_inputs, record
from tilesight.manifest import MANIFEST_NAME, MODEL_NAME, Manifest, parse, read_unchecked
from tilesight.repository import Repository
from tilesight.runtimes import RUNTIMES_NAME, passed_pairs, runtimes_text

# Beside the served graph lies that of the other precision.
_OTHER = {"model.fp32.onnx": "float32", "model.int8.onnx": "int8"}


def two_versions(source: Path, target: Path, model: str = "signa") -> Repository:
    """A copy of the repository in which the model has one version more, its highest.

    Served is what was served before.

    Raises:
        ValueError: the served version has no second graph.
    """
    shutil.copytree(source, target)
    repository = Repository(target)
    served, number = repository.current(model), max(repository.versions(model)) + 1
    first = repository.folder(model, served)
    second = repository.folder(model, number)
    other = next((name for name in _OTHER if (first / name).is_file()), None)
    if other is None:
        raise ValueError(f"{first}: neither {' nor '.join(_OTHER)} to make another version of")
    second.mkdir()
    shutil.copyfile(first / other, second / MODEL_NAME)
    _copy_what_passed(first, second, other)
    manifest = _manifest(first, second, number, _OTHER[other])
    write_text(second / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")
    repository.promote({model: served})
    return repository


def _copy_what_passed(first: Path, second: Path, other: str) -> None:
    """Of the first version's runtimes and precisions those of the graph that the second has."""
    pairs = [one for one in passed_pairs(first, read_unchecked(first)) if one.file == other]
    kept = [pair.model_copy(update={"file": MODEL_NAME}) for pair in pairs]
    if kept:
        write_text(second / RUNTIMES_NAME, runtimes_text(kept))


def _manifest(first: Path, second: Path, number: int, precision: str) -> Manifest:
    document = json.loads((first / MANIFEST_NAME).read_text(encoding="utf-8"))
    files = {path.name: sha256(path) for path in sorted(second.iterdir())}
    document |= {"version": number, "files": files}
    document["graph"]["precision"] = precision
    manifest = parse(json.dumps(document), str(second))
    session = ort.InferenceSession(second / MODEL_NAME, providers=["CPUExecutionProvider"])
    names = [output.name for output in manifest.outputs]
    outputs = dict(zip(names, session.run(names, golden_inputs(manifest)), strict=True))
    return manifest.model_copy(update={"golden": record(manifest, outputs)})
