"""A further version of a committed model: the same network as its other graph, float32 for int8."""

import json
import shutil
from pathlib import Path

import onnxruntime as ort

from tilesight.files import sha256, write_text
from tilesight.golden import golden_inputs, record
from tilesight.manifest import MANIFEST_NAME, MODEL_NAME, Manifest, parse, read_unchecked
from tilesight.repository import Repository
from tilesight.runtimes import RUNTIMES_NAME, passed_pairs, runtimes_text

_FLOAT32 = "model.fp32.onnx"


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
    if not (first / _FLOAT32).is_file():
        raise ValueError(f"{first}: no {_FLOAT32} to make another version of")
    second.mkdir()
    shutil.copyfile(first / _FLOAT32, second / MODEL_NAME)
    _copy_what_passed(first, second)
    manifest = _manifest(first, second, number)
    write_text(second / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")
    repository.promote({model: served})
    return repository


def _copy_what_passed(first: Path, second: Path) -> None:
    """Of the first version's runtimes and precisions those of the graph that the second has."""
    pairs = [one for one in passed_pairs(first, read_unchecked(first)) if one.file == _FLOAT32]
    kept = [pair.model_copy(update={"file": MODEL_NAME}) for pair in pairs]
    if kept:
        write_text(second / RUNTIMES_NAME, runtimes_text(kept))


def _manifest(first: Path, second: Path, number: int) -> Manifest:
    document = json.loads((first / MANIFEST_NAME).read_text(encoding="utf-8"))
    files = {path.name: sha256(path) for path in sorted(second.iterdir())}
    document |= {"version": number, "files": files}
    document["graph"]["precision"] = "float32"
    manifest = parse(json.dumps(document), str(second))
    session = ort.InferenceSession(second / MODEL_NAME, providers=["CPUExecutionProvider"])
    names = [output.name for output in manifest.outputs]
    outputs = dict(zip(names, session.run(names, golden_inputs(manifest)), strict=True))
    return manifest.model_copy(update={"golden": record(manifest, outputs)})
