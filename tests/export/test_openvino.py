import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from typer.testing import CliRunner

from export.bundle import export_run
from export.certificate import Form, FormName, Gates, read_certificate
from export.certify import certify_run
from export.forms import Examiner, Options
from export.onnx_file import Session, write_onnx
from export.openvino_form import CANDIDATES, examine_on_openvino
from export.openvino_runner import OpenVinoRunner
from export.passed import write_passed
from export.verify import verify
from tests.export.conftest import GATES, Writing
from tests.export.parts import Convolutions, TinyPart
from tests.export.test_bundle import listing, outputs_shifted
from tests.serving.bundles import edit_manifest
from tilesight.cli import build
from tilesight.errors import BundleError, ExportError
from tilesight.files import sha256
from tilesight.golden import disagreement, golden_inputs
from tilesight.manifest import read
from tilesight.openvino_graph import installed
from tilesight.processor import flags, has_bfloat16
from tilesight.runtimes import Pair, passed_pairs

needs_openvino = pytest.mark.skipif(not installed(), reason="OpenVINO is not installed")
needs_bfloat16 = pytest.mark.skipif(
    not has_bfloat16(flags()), reason="this processor has no bfloat16"
)
WITHOUT_BFLOAT16 = frozenset({"avx512f"})
FORMS: list[FormName] = list(CANDIDATES)
ANY_LOSS = Gates(max_metric_loss=1e6)
NO_LOSS = Gates(max_metric_loss=0)
ENCODER, HEAD = "spatialnet_vit_encoder", "spatialnet_vit_head"


def form(file: str | None, verdict: Any) -> Form:  # noqa: ANN401
    return Form(file=file, bytes=0, verdict=verdict)


@pytest.fixture
def part(few_batches: None) -> TinyPart:
    return TinyPart(Convolutions())


@pytest.fixture
def folder(part: TinyPart, tmp_path: Path) -> Path:
    """A version's folder with the served float32 graph, and the same as what int8 would be."""
    write_onnx(part.source, tmp_path / "model.onnx")
    shutil.copy(tmp_path / "model.onnx", tmp_path / "model.int8.onnx")
    (tmp_path / "checkpoint").write_bytes(b"weights")
    return tmp_path


def examined(
    part: TinyPart,
    folder: Path,
    gates: Gates = ANY_LOSS,
    int8: str = "kept",
    processor: frozenset[str] | None = None,
) -> tuple[dict[FormName, Form], Examiner, list[str]]:
    examiner = Examiner(part, folder / "checkpoint")
    said: list[str] = []
    before: dict[FormName, Form] = {
        "onnx": form("model.onnx", "served"),
        "int8": form("model.int8.onnx", int8),
    }
    found = examine_on_openvino(examiner, folder, before, gates, said.append, processor)
    return found, examiner, said


# The forms


@needs_openvino
@needs_bfloat16
def test_openvino_is_held_against_torch_like_every_other_form(part: TinyPart, folder: Path) -> None:
    found, examiner, said = examined(part, folder)
    assert list(found) == FORMS
    assert said == [f"tiny: {name}" for name in FORMS]
    assert [one.form for one in examiner.worst] == FORMS
    for name, told in found.items():
        graph = "model.int8.onnx" if "int8" in name else "model.onnx"
        assert (told.verdict, told.file) == ("kept", graph)
        assert told.bytes == (folder / graph).stat().st_size
        assert told.metrics["closeness"] == pytest.approx(1, abs=0.01)
        assert [speed.batch for speed in told.speed] == [1, 2]
        version, lost, faster = told.reasons
        assert version == f"openvino {importlib.metadata.version('openvino')}"
        assert lost.endswith("points of closeness lost")
        assert faster.endswith("times the throughput of model.onnx in ONNX Runtime")
    # Only bfloat16 rounds: the graph that stands for int8 is one in float32.
    worst = {name: told.differences["scores"].maximum for name, told in found.items()}
    assert worst["openvino-int8"] < 1e-5 < worst["openvino-bf16"]
    assert worst["openvino-int8-bf16"] == worst["openvino-bf16"]


@needs_openvino
@needs_bfloat16
def test_what_loses_more_than_allowed_is_refused(part: TinyPart, folder: Path) -> None:
    model = onnx.load(folder / "model.int8.onnx")
    outputs_shifted("scores", by=0.2)(model)
    onnx.save(model, folder / "model.int8.onnx")
    found, *_ = examined(part, folder, Gates(max_metric_loss=5))
    assert {name: told.verdict for name, told in found.items()} == {
        "openvino-bf16": "kept",
        "openvino-int8": "refused",
        "openvino-int8-bf16": "refused",
    }
    assert any("points of closeness (limit 5.0)" in said for said in found["openvino-int8"].reasons)
    nothing, *_ = examined(part, folder, NO_LOSS)
    assert nothing["openvino-bf16"].verdict == "refused"


@needs_openvino
def test_a_processor_without_bfloat16_runs_the_rest(part: TinyPart, folder: Path) -> None:
    found, *_ = examined(part, folder, processor=WITHOUT_BFLOAT16)
    assert {name: told.verdict for name, told in found.items()} == {
        "openvino-bf16": "not run",
        "openvino-int8": "kept",
        "openvino-int8-bf16": "not run",
    }
    assert found["openvino-bf16"].reasons == ["this processor has neither avx512_bf16 nor amx_bf16"]


@needs_openvino
def test_the_served_int8_graph_is_the_one_that_openvino_reads(part: TinyPart, folder: Path) -> None:
    (folder / "model.int8.onnx").unlink()
    found, *_ = examined(part, folder, int8="served", processor=WITHOUT_BFLOAT16)
    assert (found["openvino-int8"].verdict, found["openvino-int8"].file) == ("kept", "model.onnx")
    assert found["openvino-bf16"].reasons == ["no file of its graph is kept"]


def test_without_the_package_nothing_is_run(
    part: TinyPart, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.openvino_form.installed", lambda: False)
    found, examiner, said = examined(part, folder)
    assert {told.verdict for told in found.values()} == {"not run"}
    assert found["openvino-int8"].reasons == [
        "OpenVINO is not installed: pip install 'tilesight[openvino]'"
    ]
    assert (examiner.worst, said) == ([], [])


@needs_openvino
def test_a_graph_that_openvino_cannot_load_is_refused_with_its_reason(
    part: TinyPart, folder: Path
) -> None:
    (folder / "model.int8.onnx").write_bytes(b"nothing that anybody could run")
    found, *_ = examined(part, folder, processor=WITHOUT_BFLOAT16)
    assert found["openvino-int8"].verdict == "refused"
    assert found["openvino-int8"].file is None
    assert found["openvino-int8"].reasons[0].startswith("OpenVINO cannot load it: ")


# What passed


def pairs_of(folder: Path) -> dict[tuple[str, str], Pair]:
    return {(pair.runtime, pair.precision): pair for pair in passed_pairs(folder, read(folder))}


@needs_openvino
@needs_bfloat16
@pytest.mark.parametrize(
    ("verdict", "file", "listed"),
    [
        ("kept", "model.onnx", True),
        ("refused", "model.onnx", False),
        ("not run", None, False),
        ("kept", None, False),
    ],
)
def test_only_what_was_kept_is_listed(
    verdict: str, file: str | None, listed: bool, copied: Path
) -> None:
    folder = copied / "signa" / "1"
    manifest = read(folder)
    before = read_certificate(folder / "certificate.json")
    told = {**before.forms, "openvino-bf16": form(file, verdict)}
    write_passed(folder, manifest, before.model_copy(update={"forms": told}))
    edit_manifest(folder, "files", "runtimes.json", value=sha256(folder / "runtimes.json"))
    found = pairs_of(folder)
    assert (("openvino", "bfloat16") in found) == listed
    assert {("onnxruntime", "float32"), ("onnxruntime", "int8")} <= found.keys()
    for pair in found.values():
        runner = (
            OpenVinoRunner(folder / pair.file, 2, pair.bfloat16)
            if pair.runtime == "openvino"
            else Session(folder / pair.file)
        )
        assert disagreement(pair.golden, runner.run(**golden_inputs(manifest))) is None
        assert pair.golden.outputs["scores"]


def test_an_export_lists_what_it_kept(repository: Path) -> None:
    found = pairs_of(repository / "signa" / "1")
    assert {key: pair.file for key, pair in found.items()} == {
        ("onnxruntime", "float32"): "model.onnx",
        ("onnxruntime", "int8"): "model.int8.onnx",
    }


@needs_openvino
def test_an_export_measures_openvino_where_it_is_installed(
    runs: Path, tiles: Path, copied: Path, writing: Writing
) -> None:
    writing()
    (version,) = export_run(runs / "signa", copied, tiles, Options(gates=GATES, triton=False))
    certificate = read_certificate(version / "certificate.json")
    assert list(certificate.forms)[-3:] == FORMS
    assert certificate.software["openvino"] == importlib.metadata.version("openvino")
    assert certificate.forms["openvino-int8"].verdict == "kept"
    assert ("openvino", "int8") in pairs_of(version)
    assert "openvino-int8" in (version / "certificate.md").read_text()


# Measured afterwards


@needs_openvino
@pytest.mark.parametrize("run", ["signa", "spatialnet-vit"])
def test_a_version_is_measured_without_a_new_export(
    run: str, runs: Path, tiles: Path, copied: Path, few_batches: None
) -> None:
    names = {"signa": ["signa"], "spatialnet-vit": [ENCODER, HEAD]}[run]
    before = listing(copied)
    states = {name: read(copied / name / "1") for name in names}
    assert certify_run(runs / run, copied, tiles) == [copied / name / "1" for name in names]
    written = {"certificate.json", "certificate.md", "certificate.png"}
    after = listing(copied)
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed == {
        f"{name}/1/{file}"
        for name in names
        for file in (*written, "manifest.json", "runtimes.json")
    }
    for name in names:
        folder = copied / name / "1"
        manifest = read(folder)
        assert manifest == states[name].model_copy(update={"files": manifest.files})
        certificate = read_certificate(folder / "certificate.json")
        assert list(certificate.forms)[-3:] == FORMS
        assert ("openvino", "int8") in pairs_of(folder)
        lines = list(verify(copied, name))
        said = "answers the golden tile as it did when it passed"
        assert f"openvino int8 of model.int8.onnx: {said}" in lines
        assert f"onnxruntime {manifest.graph.precision} of model.onnx: {said}" in lines


@needs_openvino
def test_what_cannot_run_here_keeps_the_figures_of_before(
    runs: Path, tiles: Path, copied: Path, few_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    certify_run(runs / "signa", copied, tiles)
    first = read_certificate(copied / "signa" / "1" / "certificate.json")
    monkeypatch.setattr("export.openvino_form.flags", lambda: WITHOUT_BFLOAT16)
    monkeypatch.setattr("export.certify.machine", lambda: {"cpu": "another", "threads": 7})
    certify_run(runs / "signa", copied, tiles)
    second = read_certificate(copied / "signa" / "1" / "certificate.json")
    assert second.forms["openvino-bf16"] == first.forms["openvino-bf16"]
    assert second.forms["openvino-int8"].reasons[-1] == "measured on cpu another, threads 7"
    assert [one.form for one in second.worst].count("openvino-int8") == 1


def torch_reached(certificate: dict[str, Any]) -> None:
    certificate["forms"]["torch"]["metrics"]["f1_samples"] += 0.01


@needs_openvino
def test_another_torch_than_the_certificates_is_refused(
    runs: Path, tiles: Path, copied: Path
) -> None:
    folder = copied / "signa" / "1"
    certificate = json.loads((folder / "certificate.json").read_text())
    torch_reached(certificate)
    (folder / "certificate.json").write_text(json.dumps(certificate))
    edit_manifest(folder, "files", "certificate.json", value=sha256(folder / "certificate.json"))
    before = listing(copied)
    with pytest.raises(ExportError, match=r"signa@1: torch reaches f1_samples 0\.\d+ here, the"):
        certify_run(runs / "signa", copied, tiles)
    assert listing(copied) == before


@needs_openvino
def test_versions_of_another_run_are_left_alone(runs: Path, tiles: Path, copied: Path) -> None:
    edit_manifest(copied / "signa" / "1", "lineage", "checkpoint_sha256", value="0" * 64)
    with pytest.raises(BundleError, match=r"signa: no version was made of .*checkpoint"):
        certify_run(runs / "signa", copied, tiles)


@needs_openvino
def test_a_damaged_version_is_not_measured(runs: Path, tiles: Path, copied: Path) -> None:
    (copied / "signa" / "1" / "model.pt").unlink()
    with pytest.raises(BundleError, match=r"model\.pt: missing"):
        certify_run(runs / "signa", copied, tiles)


@needs_openvino
def test_a_failure_leaves_the_version_as_it_was(
    runs: Path, tiles: Path, copied: Path, few_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ExportError("the disk is full")

    monkeypatch.setattr("export.certify.write_manifest", fail)
    before = listing(copied)
    with pytest.raises(ExportError, match="the disk is full"):
        certify_run(runs / "signa", copied, tiles)
    assert listing(copied) == before
    assert not list(copied.glob(".export-*"))


def test_the_command_names_the_extra(
    runs: Path, tiles: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.certify.installed", lambda: False)
    arguments = ["certify", str(runs / "signa"), "--data", str(tiles), "--repository", str(copied)]
    told = CliRunner().invoke(build(), arguments)
    assert told.exit_code == 2
    assert told.stderr == (
        "tilesight certify: OpenVINO is not installed: pip install 'tilesight[openvino]'\n"
    )


@needs_openvino
def test_verify_catches_a_pair_that_answers_otherwise(copied: Path) -> None:
    folder = copied / "signa" / "1"
    listed = json.loads((folder / "runtimes.json").read_text())
    listed["passed"][1]["golden"]["outputs"]["scores"][0] += 0.5
    (folder / "runtimes.json").write_text(json.dumps(listed))
    edit_manifest(folder, "files", "runtimes.json", value=sha256(folder / "runtimes.json"))
    with pytest.raises(BundleError, match=r"runtimes\.json: onnxruntime int8 of .*differs by 0\.5"):
        list(verify(copied, "signa"))
