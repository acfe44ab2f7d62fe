"""A run folder: everything that tells how a checkpoint came to be, and the checkpoint.

config.yaml             the resolved configuration
run.json                commit, packages, hashes of splits, data and base weights
checkpoints/            Lightning's own, to resume from
history.csv, curves.png what the training saw, an epoch a row
checkpoint.safetensors  the weights of the best validation epoch, rounded as they are measured
card.json               labels, vocabularies, answers
thresholds.json         SIGNA: from which score on a label is present
metrics.json            figures of the test split, with floors
"""

import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tilesight.errors import DataError, RunError, WeightsError
from tilesight.files import sha256, write_text, written_whole
from training.config import RunConfig, read_config
from training.datasets.multilabel import open_set
from training.datasets.splits import split_sha256

Document = TypeVar("Document", bound=BaseModel)

CONFIG = "config.yaml"
PROVENANCE = "run.json"
CHECKPOINT = "checkpoint.safetensors"
CARD = "card.json"
THRESHOLDS = "thresholds.json"
METRICS = "metrics.json"
HISTORY = "history.csv"
CURVES = "curves.png"
CHECKPOINTS = "checkpoints"

_QUESTIONS = ["multilabels.tsv", "captions.json", "vqa/theme.txt", "vqa/human.txt"]


def split_of(config: RunConfig) -> str:
    """The committed split that the run's figures are of."""
    return "ucm_captions" if config.model == "jtts" else config.dataset


def annotations_of(config: RunConfig) -> list[str]:
    """The annotation files that the run reads, as they lie in the data folder."""
    match config.model:
        case "signa":
            return open_set(config.dataset, Path()).tables
        case "jtts":
            return ["captions.json"]
        case "spatialnet-vit":
            return _QUESTIONS


def commit() -> str:
    """The commit of the code, `+changes` where it differs; `unknown` outside a checkout."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{found}+changes" if changed else found


def provenance(
    config: RunConfig, data: Path, weights: str | None, vectors: Path | None = None
) -> dict[str, Any]:
    """What the run is made of, as hashes and versions.

    Raises:
        DataError: an annotation file, or the file of the label vectors, is missing.
    """
    annotations = {name: data / name for name in annotations_of(config)}
    for path in (*annotations.values(), *([vectors] if vectors else [])):
        if not path.is_file():
            raise DataError(f"{path}: no such file")
    split = split_of(config)
    base = sha256(Path(weights)) if weights is not None and Path(weights).is_file() else None
    return {
        "model": config.model,
        "commit": commit(),
        "seed": config.seed,
        "split": split,
        "split_sha256": {part: split_sha256(split, part) for part in ("train", "val", "test")},
        "data_sha256": {name: sha256(path) for name, path in annotations.items()},
        "weights": Path(weights).name if weights is not None else None,
        "weights_sha256": base,
        "vectors": vectors.name if vectors else None,
        "vectors_sha256": sha256(vectors) if vectors else None,
        "python": platform.python_version(),
        "packages": {
            name: version(name)
            for name in ("torch", "torchvision", "lightning", "torch-geometric", "numpy", "pillow")
        },
    }


def rounded(state: dict[str, Tensor], precision: str) -> dict[str, Tensor]:
    """The weights as the checkpoint stores them; whole numbers stay as they are.

    Raises:
        WeightsError: a value is too large for float16.
    """
    if precision == "float32":
        return {name: tensor.contiguous() for name, tensor in state.items()}
    halves = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in state.items()
    }
    for name, tensor in halves.items():
        if not tensor.isfinite().all():
            raise WeightsError(
                f"{name}: holds a value beyond float16's 65504; set "
                "fit.checkpoint_precision: float32"
            )
    return halves


def save_checkpoint(network: nn.Module, config: RunConfig, path: Path) -> None:
    """Writes the weights, whole or not at all, with the model's name inside."""
    state = rounded(network.state_dict(), config.fit.checkpoint_precision)
    with written_whole(path) as temporary:
        save_file(state, temporary, metadata={"model": config.model})


def load_checkpoint(network: nn.Module, model: str, path: Path) -> None:
    """Fills the network from a checkpoint.

    Raises:
        RunError: no such file, or a checkpoint of another model.
        WeightsError: names or shapes differ; the first few are named.
    """
    if not path.is_file():
        raise RunError(f"{path}: no checkpoint; did the training finish?")
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("model")
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a safetensors file: {error}") from None
    if found != model:
        raise RunError(f"{path}: a checkpoint of {found!r}, not of {model!r}")
    own = network.state_dict()
    wrong = sorted(own.keys() ^ state.keys()) + [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if own[name].shape != state[name].shape
    ]
    if wrong:
        raise WeightsError(
            f"{path}: {len(wrong)} tensors differ from the configuration's model: "
            f"{', '.join(wrong[:5])}"
        )
    network.load_state_dict(state)


def read_run(folder: Path) -> tuple[RunConfig, dict[str, Any]]:
    """The configuration and provenance of a run folder.

    Raises:
        RunError: the folder or one of its files is missing or damaged.
    """
    if not folder.is_dir():
        raise RunError(f"{folder}: no such run folder")
    for name in (CONFIG, PROVENANCE):
        if not (folder / name).is_file():
            raise RunError(f"{folder}: {name} is missing; not a run folder")
    try:
        provenance_of_run: dict[str, Any] = json.loads((folder / PROVENANCE).read_text())
    except json.JSONDecodeError as error:
        raise RunError(f"{folder / PROVENANCE}: not JSON: {error}") from None
    return read_config(folder / CONFIG), provenance_of_run


def read_card(folder: Path, kind: type[Document]) -> Document:
    """The card of a run folder.

    Raises:
        RunError: missing, or of another model.
    """
    return read_document(folder / CARD, kind)


def read_document(path: Path, kind: type[Document]) -> Document:
    """One of the JSON files that a finished run has.

    Raises:
        RunError: missing, or not what it should be; the field is named.
    """
    if not path.is_file():
        raise RunError(f"{path}: missing; did the training finish?")
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise RunError(f"{path}: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes readable JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, sort_keys=False) + "\n")


def device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
