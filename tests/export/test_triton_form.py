import shutil
from pathlib import Path

import onnx
import pytest

from export import signa
from export.bundle import export_run
from export.certificate import Form, Gates, read_certificate
from export.forms import Options, write_forms
from export.triton_form import examine_on_triton
from tests.export.conftest import BATCHES, Writing
from tests.export.test_bundle import listing, outputs_shifted
from tilesight.errors import ExportError
from tilesight.files import sha256
from tilesight.manifest import read
from tilesight.triton import Installation
from training import run as run_folder

# int8 is served whatever it loses, or never.
WITH_INT8 = Gates(max_metric_loss=1e6, min_speedup=0, min_batch1_speedup=1e6)
WITHOUT = Gates(min_speedup=1e6, min_batch1_speedup=1e6)


def exported(runs: Path, tiles: Path, repository: Path, gates: Gates) -> tuple[Path, Form]:
    options = Options(gates=gates, drop=frozenset({"torchscript"}))
    (version,) = export_run(runs / "signa", repository, tiles, options)
    return version, read_certificate(version / "certificate.json").forms["triton"]


@pytest.mark.triton
@pytest.mark.parametrize("gates", [WITHOUT, WITH_INT8], ids=["float32", "int8"])
def test_the_real_triton_answers_what_torch_does(
    gates: Gates,
    triton_home: Installation,
    runs: Path,
    tiles: Path,
    copied: Path,
    writing: Writing,
) -> None:
    writing()
    version, form = exported(runs, tiles, copied, gates)
    assert form.verdict == "kept"
    assert (form.file, form.bytes) == ("model.onnx", (version / "model.onnx").stat().st_size)
    (said,) = form.reasons
    assert said.startswith("tritonserver 2.")
    assert said.endswith("over gRPC, with the served graph")
    assert [speed.batch for speed in form.speed] == list(BATCHES)
    certificate = read_certificate(version / "certificate.json")
    served = certificate.forms["int8" if gates is WITH_INT8 else "onnx"]
    assert served.verdict == "served"
    limit = None if gates is WITH_INT8 else gates.max_difference
    assert {found.limit for found in form.differences.values()} == {limit}
    for output, found in form.differences.items():
        assert found.maximum == pytest.approx(served.differences[output].maximum, abs=1e-4)
    assert form.metrics == pytest.approx(served.metrics, abs=1e-3)
    assert "triton" in {worst.form for worst in certificate.worst}
    assert not list(copied.glob(".export-*"))


@pytest.mark.triton
def test_a_triton_that_serves_something_else_is_refused(
    triton_home: Installation,
    runs: Path,
    tiles: Path,
    copied: Path,
    tmp_path: Path,
    writing: Writing,
) -> None:
    writing()
    folder = tmp_path / "staging" / "signa" / "1"
    folder.mkdir(parents=True)
    run = runs / "signa"
    config, _ = run_folder.read_run(run)
    (part,) = signa.plan(run, config, tiles).parts
    options = Options(gates=WITHOUT)
    forms = write_forms(part, folder, run / "checkpoint.safetensors", options, lambda _line: None)
    model = onnx.load(folder / "model.onnx")
    outputs_shifted("scores")(model)
    onnx.save(model, folder / "model.onnx")
    manifest = read(copied / "signa" / "1")
    manifest = manifest.model_copy(update={"files": {"model.onnx": sha256(folder / "model.onnx")}})
    with pytest.raises(ExportError, match=r"signa: Triton against torch: scores differs by 2\."):
        examine_on_triton(forms, folder, manifest, options)
    # Its configuration was for this question alone.
    assert [path.name for path in folder.parent.iterdir()] == ["1"]


def test_without_a_triton_the_certificate_says_what_would_bring_one(
    runs: Path,
    tiles: Path,
    copied: Path,
    tmp_path: Path,
    writing: Writing,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writing()
    monkeypatch.setenv("TILESIGHT_TRITON_HOME", str(tmp_path / "nowhere"))
    before = set(listing(copied))
    version, form = exported(runs, tiles, copied, WITHOUT)
    assert (form.verdict, form.file, form.bytes) == ("not run", None, 0)
    assert form.reasons == ["no Triton is installed: tilesight triton --install"]
    assert {name.split("/")[0] for name in set(listing(copied)) - before} == {"signa"}
    for path in version.glob("certificate.*"):
        assert str(tmp_path).encode() not in path.read_bytes()
    shutil.rmtree(version)
