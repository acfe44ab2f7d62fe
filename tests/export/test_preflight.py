"""The committed models on a Triton release, and copies of them that are broken in one way each."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper
from typer.testing import CliRunner

from export.agreement import config_problems
from export.operators import unknown_operators
from export.preflight import ModelReport, Report, check, has_vnni
from tests.conftest import ROOT
from tilesight.cli import Room, build
from tilesight.errors import BundleError, ConfigError, ManifestError
from tilesight.files import sha256, write_text
from tilesight.manifest import MANIFEST_NAME, MODEL_NAME
from tilesight.repository import REPOSITORY_NAME, Repository
from tilesight.triton_config import parse_config

COMMITTED = ROOT / "model_repository"
RELEASE = "26.07"
GIB = 2**30


def linked(root: Path, *names: str) -> Repository:
    """A repository of the committed models (of all, without names), with generated configurations.

    The version folders are links: what a test changes, it takes with `own` first.
    """
    root.mkdir()
    if (COMMITTED / REPOSITORY_NAME).exists():
        shutil.copy(COMMITTED / REPOSITORY_NAME, root)
    committed = Repository(COMMITTED)
    for name in names or committed.models():
        (root / name).mkdir()
        for version in committed.versions(name):
            (root / name / str(version)).symlink_to(committed.folder(name, version))
    repository = Repository(root)
    repository.configure(instances=1, threads=2, max_batch_size=32)
    repository.write_configs()
    return repository


def own(repository: Repository, name: str) -> Path:
    """The current version's folder, made a copy that a test may change."""
    folder = repository.folder(name, repository.current(name))
    source = folder.resolve()
    folder.unlink()
    shutil.copytree(source, folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """All committed models; changed by no test."""
    return linked(tmp_path_factory.mktemp("preflight") / "repository")


@pytest.fixture
def signa(tmp_path: Path) -> Repository:
    """One committed model, to be broken."""
    return linked(tmp_path / "repository", "signa")


def edit_manifest(repository: Repository, change: Callable[[dict[str, Any]], None]) -> None:
    folder = repository.folder("signa", repository.current("signa"))
    manifest = json.loads((folder / MANIFEST_NAME).read_text("utf-8"))
    change(manifest)
    write_text(folder / MANIFEST_NAME, json.dumps(manifest))
    repository.write_configs()


def edit_graph(repository: Repository, change: Callable[[ModelProto], None]) -> None:
    """Changes the graph, and lets hashes, manifest and configuration say so."""
    folder = own(repository, "signa")
    model = onnx.load(folder / MODEL_NAME)
    change(model)
    (folder / MODEL_NAME).write_bytes(model.SerializeToString())

    def tell(manifest: dict[str, Any]) -> None:
        manifest["files"][MODEL_NAME] = sha256(folder / MODEL_NAME)
        manifest["graph"] |= {
            "opset": next(o.version for o in model.opset_import if not o.domain),
            "ir_version": model.ir_version,
        }

    edit_manifest(repository, tell)


def look(
    repository: Repository,
    release: str = RELEASE,
    cores: int = 2,
    memory_bytes: int | None = None,
    gpu: bool = False,
) -> Report:
    return check(repository.root, release, cores, memory_bytes, gpu)


def only(report: Report) -> ModelReport:
    (model,) = report.models
    return model


def refused(repository: Repository, cores: int = 2) -> str:
    """The one reason against the one model."""
    report = look(repository, cores=cores)
    (reason,) = only(report).reasons
    assert (report.verdict, only(report).verdict) == ("no", "no")
    return reason


def test_the_committed_models_load_in_production(whole: Repository) -> None:
    report = look(whole)
    assert report.verdict == "yes"
    assert [model.name for model in report.models] == Repository(COMMITTED).models()
    assert not any(model.reasons for model in report.models)
    assert report.onnxruntime == "1.27.0"
    assert report.threads == 2 * len(report.models)
    assert report.estimated_bytes > sum(m.memory.total_bytes for m in report.models if m.memory)
    for model in report.models:
        assert model.memory is not None
        assert 0 < model.memory.weights_bytes < model.memory.total_bytes
        assert 0 < model.memory.activations_bytes < model.memory.total_bytes < GIB


def test_an_old_release_does_not_open_them(signa: Repository) -> None:
    report = look(signa, release="24.04")
    assert report.verdict == "no"
    assert any("IR version 10; ONNX Runtime 1.17 reads up to 9" in r for r in only(report).reasons)


def test_an_unknown_release_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--triton: '1\.0' is no release"):
        check(tmp_path / "nowhere", "1.0", 2)


def test_no_repository_and_no_model_are_errors(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such model repository"):
        check(tmp_path / "nowhere", RELEASE, 2)
    with pytest.raises(BundleError, match="no model with a version"):
        check(tmp_path, RELEASE, 2)


def test_a_newer_repository_file_is_an_error(signa: Repository) -> None:
    write_text(signa.root / REPOSITORY_NAME, json.dumps({"format_version": 9}))
    with pytest.raises(ManifestError, match="format_version is 9"):
        look(signa)


def test_a_newer_opset_is_refused(signa: Repository) -> None:
    def newer(model: ModelProto) -> None:
        model.opset_import[0].version = 27

    edit_graph(signa, newer)
    assert refused(signa) == "opset 27 of ai.onnx; ONNX Runtime 1.27 reads up to 26"


def test_a_newer_ir_version_is_refused(signa: Repository) -> None:
    def newer(model: ModelProto) -> None:
        model.ir_version = 14

    edit_graph(signa, newer)
    assert refused(signa) == "IR version 14; ONNX Runtime 1.27 reads up to 13"


def instead_of_sigmoid(domain: str, name: str) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == "Sigmoid")
        node.domain, node.op_type = domain, name
        if domain:
            model.opset_import.append(helper.make_opsetid(domain, 1))

    return change


def test_an_operator_that_onnx_does_not_have_is_refused(signa: Repository) -> None:
    edit_graph(signa, instead_of_sigmoid("", "Sigmoidal"))
    assert refused(signa) == "operator ai.onnx.Sigmoidal: not in opset 20"


def test_a_foreign_domain_is_refused(signa: Repository) -> None:
    edit_graph(signa, instead_of_sigmoid("org.example", "Sigmoid"))
    report = look(signa)
    assert report.verdict == "no"
    assert any("domain org.example: no operators of it" in r for r in only(report).reasons)


def test_operators_of_onnx_runtime_are_told(signa: Repository) -> None:
    edit_graph(signa, instead_of_sigmoid("com.microsoft", "QuickGelu"))
    report = look(signa)
    assert report.verdict == "yes"
    assert only(report).contrib_operators == ["QuickGelu"]
    assert any("alone has: QuickGelu" in warning for warning in only(report).warnings)


def test_what_onnx_runtime_itself_refuses_is_refused(signa: Repository) -> None:
    edit_graph(signa, instead_of_sigmoid("com.microsoft", "NoSuchOperator"))
    reason = refused(signa)
    assert reason.startswith("ONNX Runtime ")
    assert "NoSuchOperator" in reason
    # on a GPU a kernel may be there that the CPU lacks
    assert look(signa, gpu=True).verdict == "yes"


def small(*nodes: NodeProto) -> ModelProto:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])], []
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def test_operators_are_held_against_their_own_opset() -> None:
    gelu = helper.make_node("Gelu", ["x"], ["y"])
    later = helper.make_node("Swish", ["x"], ["z"])  # since opset 24
    gone = helper.make_node("Upsample", ["x", "x"], ["u"])  # until opset 9
    trees = helper.make_node("TreeEnsemble", ["x"], ["t"], domain="ai.onnx.ml")
    assert unknown_operators(small(gelu)) == []
    assert unknown_operators(small(gelu, later, gone, trees)) == [
        "operator ai.onnx.Swish: not in opset 20",
        "operator ai.onnx.Upsample: not in opset 20",
        "operator ai.onnx.ml.TreeEnsemble: the file imports no opset of its domain",
    ]


def test_operators_inside_of_loops_count() -> None:
    body = helper.make_graph([helper.make_node("Swish", ["x"], ["z"])], "body", [], [])
    loop = helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)
    assert unknown_operators(small(loop)) == ["operator ai.onnx.Swish: not in opset 20"]


def test_external_data_is_refused_and_never_opened(signa: Repository, tmp_path: Path) -> None:
    def outside(model: ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../../outside.bin")

    (tmp_path / "outside.bin").write_bytes(bytes(2**20))
    edit_graph(signa, outside)
    assert "its values lie in '../../../outside.bin'" in refused(signa)
    assert only(look(signa)).memory is None


def test_an_edited_configuration_is_refused_with_its_line(signa: Repository) -> None:
    path = signa.config_path("signa")
    write_text(path, path.read_text("utf-8").replace("max_batch_size: 32", "max_batch_size: 64"))
    reason = refused(signa)
    assert "'max_batch_size: 64" in reason
    assert "`tilesight models promote signa@" in reason


def test_a_configuration_that_is_none_is_refused(signa: Repository) -> None:
    write_text(signa.config_path("signa"), "max_batch_size: many\n")
    model = only(look(signa))
    assert model.verdict == "no"
    assert any("not a Triton model configuration" in reason for reason in model.reasons)
    assert (model.threads, model.memory) == (None, None)
    signa.config_path("signa").unlink()
    assert "missing" in refused(signa)


def test_a_graph_unlike_its_manifest_is_refused(signa: Repository) -> None:
    def renamed(model: ModelProto) -> None:
        node = next(node for node in model.graph.node if "scores" in node.output)
        node.output[0] = model.graph.output[0].name = "marks"

    edit_graph(signa, renamed)
    assert "output names ['evidence', 'scores'], the graph has ['evidence', 'marks']" in refused(
        signa
    )


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('backend: "onnxruntime"', 'backend: "python"', "backend is 'python'"),
        ('name: "tiles"', 'name: "tile"', "input names ['tile'], the graph has ['tiles']"),
        ("TYPE_UINT8", "TYPE_INT8", "input tiles is TYPE_INT8, the graph has uint8"),
        ("TYPE_FP32", "TYPE_STRING", "output scores is TYPE_STRING, the graph has float32"),
        ("dims: 224", "dims: 225", "input tiles has dims [225, 224, 3], the graph has [224,"),
        ("instance_group {", "instance_group { kind: KIND_GPU", "instance_group asks for a GPU"),
        ("max_batch_size: 32", "", "has dims [224, 224, 3], the graph has [-1, 224, 224, 3]"),
    ],
)
def test_a_configuration_of_another_graph_is_found(
    whole: Repository, old: str, new: str, problem: str
) -> None:
    graph = onnx.load(whole.folder("signa", whole.current("signa")) / MODEL_NAME).graph
    text = whole.config_path("signa").read_text("utf-8")
    assert config_problems(parse_config(text), graph, gpu=False) == []
    assert old in text
    # the warm-up repeats the inputs further down
    problems = config_problems(parse_config(text.replace(old, new, 1)), graph, gpu=False)
    assert problem in problems[0]


def test_a_batch_that_the_graph_fixes_is_found(whole: Repository) -> None:
    graph = onnx.load(whole.folder("signa", whole.current("signa")) / MODEL_NAME).graph
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    config = parse_config(whole.config_path("signa").read_text("utf-8"))
    problems = config_problems(config, graph, gpu=False)
    assert problems == ["input tiles is batched, the graph fixes its batch: [1, 224, 224, 3]"]


def test_a_damaged_file_is_refused(signa: Repository) -> None:
    folder = own(signa, "signa")
    with (folder / MODEL_NAME).open("ab") as file:
        file.write(b"\0")
    assert "sha256 is" in refused(signa)


def test_what_is_no_graph_is_refused(signa: Repository) -> None:
    folder = own(signa, "signa")
    (folder / MODEL_NAME).write_bytes(b"\xff" * 100)
    digest = sha256(folder / MODEL_NAME)
    edit_manifest(signa, lambda manifest: manifest["files"].update({MODEL_NAME: digest}))
    assert refused(signa).endswith("not an ONNX file")


def test_a_graph_that_contradicts_itself_is_refused(signa: Repository) -> None:
    def without_its_weights(model: ModelProto) -> None:
        del model.graph.initializer[:]

    edit_graph(signa, without_its_weights)
    assert refused(signa).startswith("not a valid graph: ")
    assert look(signa, gpu=True).verdict == "no"


def test_a_promoted_version_that_is_gone_is_refused(signa: Repository) -> None:
    state = {"format_version": 1, "promoted": {"signa": {"version": 99, "previous": []}}}
    write_text(signa.root / REPOSITORY_NAME, json.dumps(state))
    assert "promoted.signa.version" in refused(signa)


def test_the_manifest_may_ask_for_a_newer_runtime(signa: Repository) -> None:
    own(signa, "signa")
    edit_manifest(signa, lambda m: m["graph"].update({"minimum_onnxruntime": "1.27.1"}))
    assert refused(signa) == ("the manifest asks for ONNX Runtime 1.27.1, Triton 26.07 has 1.27.0")
    assert look(signa, release="26.08").verdict == "yes"


def test_the_manifest_has_to_tell_the_graph_s_format(signa: Repository) -> None:
    own(signa, "signa")
    edit_manifest(signa, lambda manifest: manifest["graph"].update({"opset": 19}))
    assert "promises opset 19 and IR version 10, the graph has 20 and 10" in refused(signa)


def test_threads_are_held_against_the_cores(signa: Repository) -> None:
    signa.configure(instances=2, threads=4)
    assert only(look(signa, cores=8)).threads == 8
    assert look(signa, cores=8).verdict == "yes"
    assert "2 x 4 threads on 7 cores" in refused(signa, cores=7)
    assert look(signa, cores=7, gpu=True).verdict == "yes"


def test_models_that_share_the_cores_are_a_warning(whole: Repository) -> None:
    together = 2 * len(whole.models())
    assert look(whole, cores=together).warnings == []
    (warning,) = look(whole, cores=together - 1).warnings
    assert f"{together} threads of all models on {together - 1} cores" in warning


def test_too_little_memory_is_refused(whole: Repository) -> None:
    needed = look(whole).estimated_bytes
    assert look(whole, memory_bytes=needed).verdict == "yes"
    report = look(whole, memory_bytes=needed - 1)
    assert report.verdict == "no"
    assert {model.verdict for model in report.models} == {"yes"}
    (reason,) = report.reasons
    assert "GiB there are" in reason
    assert all(model.name in reason for model in report.models)


def test_memory_grows_with_instances_and_batch(signa: Repository) -> None:
    def total() -> int:
        memory = only(look(signa, cores=64)).memory
        assert memory is not None
        return memory.total_bytes

    once = total()
    signa.configure(instances=2)
    assert total() == 2 * once
    signa.configure(instances=1, max_batch_size=64)
    assert once < total() < 2 * once


def test_int8_without_the_instructions_for_it_is_a_warning(
    signa: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own(signa, "signa")
    edit_manifest(signa, lambda manifest: manifest["graph"].update({"precision": "int8"}))
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr("export.preflight._CPUINFO", cpuinfo)
    cpuinfo.write_text("processor\t: 0\nflags\t\t: sse2 avx2 avx512f\n", encoding="utf-8")
    report = look(signa)
    assert report.verdict == "yes"
    assert any("no VNNI" in warning for warning in only(report).warnings)
    cpuinfo.write_text("processor\t: 0\nflags\t\t: sse2 avx2 avx_vnni\n", encoding="utf-8")
    assert only(look(signa)).warnings == []
    assert any("on a GPU" in warning for warning in only(look(signa, gpu=True)).warnings)


def test_a_machine_that_lists_no_flags_is_not_judged(tmp_path: Path) -> None:
    assert has_vnni(tmp_path / "missing")
    other = tmp_path / "cpuinfo"
    other.write_text("Features : asimddp\n", encoding="utf-8")
    assert has_vnni(other)


def run(*arguments: str) -> tuple[int, str]:
    app = build((Room("export.preflight_cli", ("preflight",), "export"), Room("none", ("x",), "x")))
    result = CliRunner().invoke(app, ["preflight", *arguments], env={"COLUMNS": "100"})
    return result.exit_code, result.output


def test_the_command_says_yes(whole: Repository) -> None:
    status, output = run("--triton", RELEASE, "--repository", str(whole.root), "--cores", "64")
    assert status == 0
    assert "Triton 26.07 (ONNX Runtime 1.27.0): yes" in output
    assert all(len(line) <= 100 for line in output.splitlines())


def test_the_command_says_no_and_why(whole: Repository) -> None:
    arguments = ("--triton", RELEASE, "--repository", str(whole.root), "--memory-gib", "0.1")
    status, output = run(*arguments, "--cores", "1")
    assert status == 1
    assert "signa: no: 1 x 2 threads on 1 core;" in output
    assert "repository: no: needs an estimated" in output
    assert "Triton 26.07 (ONNX Runtime 1.27.0): no" in output
    assert all(len(line) <= 100 for line in output.splitlines())


def test_the_command_reports_to_programs(whole: Repository) -> None:
    arguments = ("--triton", RELEASE, "--repository", str(whole.root), "--json", "--cores", "2")
    status, output = run(*arguments)
    assert status == 0
    assert Report.model_validate_json(output) == look(whole)


def test_the_command_names_what_it_cannot_do(tmp_path: Path) -> None:
    status, output = run("--triton", "27.01", "--repository", str(tmp_path))
    assert status == 2
    assert "tilesight preflight: --triton: '27.01'" in output
