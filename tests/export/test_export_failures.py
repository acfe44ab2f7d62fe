"""Runs, disks and files that an export or a gateway must refuse, each made of real parts."""

import asyncio
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto
from typer.testing import CliRunner

from export.bundle import export_run
from export.certificate import Gates
from export.forms import Options, write_forms
from serving.app import create_app
from serving.engine import Engine
from serving.metrics import Metrics
from tests.export.conftest import UNTOLD, Writing
from tests.export.parts import Convolutions, TinyPart
from tests.export.test_bundle import listing
from tests.serving.bundles import edit_manifest, replace_graph, write_repository
from tests.serving.gateway import settings_for
from tilesight.cli import build
from tilesight.errors import (
    BundleError,
    DataError,
    ExportError,
    ManifestError,
    RunError,
    TilesightError,
    WeightsError,
)
from training.config import MODEL_NAMES, ModelName

MIB = 1 << 20

# Runs and data


@pytest.mark.parametrize(
    "missing", ["metrics.json", "checkpoint.safetensors", "run.json", "card.json", "config.yaml"]
)
@pytest.mark.parametrize("model", MODEL_NAMES)
def test_an_unfinished_run_is_not_exported(
    model: ModelName, missing: str, runs: Path, tiles: Path, tmp_path: Path
) -> None:
    unfinished = shutil.copytree(runs / model, tmp_path / "run")
    (unfinished / missing).unlink()
    with pytest.raises(RunError, match=missing):
        export_run(unfinished, tmp_path / "model_repository", tiles, UNTOLD)
    assert not (tmp_path / "model_repository").exists()


@pytest.mark.parametrize(
    ("file", "content", "kind"),
    [
        ("metrics.json", "{", RunError),
        ("run.json", "{", RunError),
        ("card.json", "{}", RunError),
        ("checkpoint.safetensors", "cut off", WeightsError),
    ],
)
def test_a_damaged_file_of_a_run_is_named(
    file: str,
    content: str,
    kind: type[TilesightError],
    runs: Path,
    tiles: Path,
    tmp_path: Path,
) -> None:
    damaged = shutil.copytree(runs / "signa", tmp_path / "run")
    (damaged / file).write_text(content)
    with pytest.raises(kind, match=file):
        export_run(damaged, tmp_path / "model_repository", tiles, UNTOLD)
    assert not (tmp_path / "model_repository").exists()


def test_a_checkpoint_of_another_model_is_refused(
    runs: Path, tiles: Path, copied: Path, tmp_path: Path
) -> None:
    mixed = shutil.copytree(runs / "signa", tmp_path / "run")
    shutil.copy(runs / "jtts" / "checkpoint.safetensors", mixed)
    before = listing(copied)
    with pytest.raises(RunError, match="a checkpoint of 'jtts', not of 'signa'"):
        export_run(mixed, copied, tiles, UNTOLD)
    assert listing(copied) == before


def test_a_checkpoint_of_other_shapes_is_refused(runs: Path, tiles: Path, tmp_path: Path) -> None:
    other = shutil.copytree(runs / "spatialnet-vit", tmp_path / "run")
    config = other / "config.yaml"
    text = config.read_text()
    assert "width: 16" in text
    config.write_text(text.replace("width: 16", "width: 32"))
    with pytest.raises(WeightsError, match="tensors differ from the configuration's model"):
        export_run(other, tmp_path / "model_repository", tiles, UNTOLD)


@pytest.mark.parametrize(
    ("model", "missing"),
    [
        ("signa", "multilabels.tsv"),
        ("jtts", "captions.json"),
        ("spatialnet-vit", "vqa"),
        ("signa", "images"),
        ("jtts", "images"),
    ],
)
def test_missing_data_is_named(
    model: str, missing: str, runs: Path, tiles: Path, tmp_path: Path
) -> None:
    bare = shutil.copytree(tiles, tmp_path / "ucm")
    path = bare / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DataError, match=missing):
        export_run(runs / model, tmp_path / "model_repository", bare, UNTOLD)
    assert not (tmp_path / "model_repository").exists()


# A full disk


class Disk:
    """A small disk of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        """Takes all space that is left."""
        with (self.folder / "filler").open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(64 << 10))
            except OSError as error:
                assert error.errno == errno.ENOSPC, error
        # The last page may have room for a small write.
        with (self.folder / "filler").open("ab", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(b"0")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 64 MiB; skips where it cannot be mounted."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64M", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def served(disk: Disk, repository: Path) -> Path:
    """SIGNA alone on the small disk, promoted."""
    folder = disk.folder / "model_repository"
    shutil.copytree(repository / "signa", folder / "signa")
    return folder


@pytest.mark.parametrize("step", ["ONNX", "TorchScript", "int8", "Triton"])
def test_a_disk_that_is_full_at_any_step_leaves_the_repository_as_it_was(
    step: str, runs: Path, tiles: Path, disk: Disk, served: Path, writing: Writing
) -> None:
    writing()
    before = listing(served)

    def say(line: str) -> None:
        if line == f"signa: {step}":
            disk.fill()

    with pytest.raises(ExportError, match="No space left on device"):
        export_run(runs / "signa", served, tiles, UNTOLD, say=say)
    assert listing(served) == before


@pytest.mark.parametrize("step", ["ONNX", "TorchScript", "int8"])
def test_no_writer_takes_a_full_disk_for_a_graph_that_it_cannot_write(
    step: str, disk: Disk, few_batches: None
) -> None:
    # The real writers: a quantiser that refuses a graph would let the export go on.
    folder = disk.folder / "tiny" / "1"
    folder.mkdir(parents=True)
    checkpoint = folder.parent / "checkpoint"
    checkpoint.touch()

    def say(line: str) -> None:
        if line == f"tiny: {step}":
            disk.fill()

    options = Options(gates=Gates(max_metric_loss=100), triton=False)
    with pytest.raises(OSError, match="No space left on device"):
        write_forms(TinyPart(Convolutions()), folder, checkpoint, options, say)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_the_command_names_the_full_disk_and_exits_with_two(
    runs: Path, tiles: Path, disk: Disk, served: Path, writing: Writing
) -> None:
    writing()
    before = listing(served)
    (disk.folder / "filler").write_bytes(bytes(64 * MIB - used(disk.folder) - 2 * MIB))
    arguments = [str(runs / "signa"), "--data", str(tiles), "--repository", str(served)]
    told = CliRunner().invoke(build(), ["export", "--no-triton", *arguments])
    assert told.exit_code == 2, told.output
    assert told.stderr.startswith("tilesight export: ")
    assert "No space left on device" in told.stderr
    assert "Traceback" not in told.output
    assert listing(served) == before


def used(folder: Path) -> int:
    space = os.statvfs(folder)
    return (space.f_blocks - space.f_bfree) * space.f_frsize


def test_a_repository_that_cannot_be_made_is_named(runs: Path, tiles: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="file"):
        export_run(runs / "signa", tmp_path / "file" / "models", tiles, UNTOLD)


# Files that a gateway must not serve


@pytest.fixture
def tiny_models(tmp_path: Path) -> Path:
    """A repository of tiny models that a gateway could serve."""
    return write_repository(tmp_path / "model_repository")


@pytest.mark.parametrize("location", ["../../../outside.bin", "/etc/hostname", "beside.bin"])
def test_a_graph_with_values_in_another_file_is_not_served(
    location: str, tiny_models: Path
) -> None:
    folder = tiny_models / "signa" / "1"
    model = onnx.load(folder / "model.onnx")
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    if not location.startswith("/"):
        (folder / location).write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    replace_graph(tiny_models, "signa", model.SerializeToString())

    async def start() -> None:
        engine = Engine(settings_for(tiny_models), Metrics())
        try:
            await engine.models.start()
        finally:
            await engine.models.close()

    with pytest.raises(BundleError, match=r"signa.*model\.onnx"):
        asyncio.run(start())


def test_a_manifest_of_a_newer_format_is_not_served(tiny_models: Path) -> None:
    edit_manifest(tiny_models / "signa" / "1", "format_version", value=3)
    with pytest.raises(ManifestError, match=r"format_version is 3, .* a later Tilesight reads it"):
        create_app(settings_for(tiny_models))


def test_nothing_is_exported_beside_a_served_version_of_a_newer_format(
    runs: Path, tiles: Path, copied: Path, writing: Writing
) -> None:
    writing()
    edit_manifest(copied / "signa" / "1", "format_version", value=3)
    before = listing(copied)
    with pytest.raises(ManifestError, match="format_version is 3"):
        export_run(runs / "signa", copied, tiles, UNTOLD)
    assert listing(copied) == before
