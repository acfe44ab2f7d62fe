import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from tritonclient.grpc import model_config_pb2 as triton
from typer.testing import CliRunner

from export.bundle import export_run
from export.certificate import Gates, read_certificate
from export.forms import Options
from export.graphs import SignaGraph
from export.onnx_file import Session, tensor_specs
from export.torchscript import TorchScriptModel
from tests.conftest import ROOT
from tests.export.conftest import BATCHES, GATES, GRAPHS, UNTOLD, Writing
from tilesight.cli import build
from tilesight.errors import BundleError, DataError, ExportError
from tilesight.files import sha256
from tilesight.golden import disagreement, golden_inputs
from tilesight.imaging import golden_sha256
from tilesight.manifest import read
from tilesight.repository import Repository
from tilesight.triton_config import parse_config
from training import run as run_folder
from training.config import ModelName
from training.datasets.splits import split_sha256
from training.models.jtts import BeamSearch
from training.tasks import jtts, signa, spatialnet_vit

ALL_GRAPHS = [graph for graphs in GRAPHS.values() for graph in graphs]
MODEL_OF = {graph: model for model, graphs in GRAPHS.items() for graph in graphs}
TRITON_TYPES = {
    TensorProto.UINT8: triton.TYPE_UINT8,
    TensorProto.BOOL: triton.TYPE_BOOL,
    TensorProto.INT64: triton.TYPE_INT64,
    TensorProto.FLOAT: triton.TYPE_FP32,
}
# What every version has that is exported as the fixture is.
FILES = {
    "model.onnx",
    "model.pt",
    "model.int8.onnx",
    "model.batch1.onnx",
    "manifest.json",
    "runtimes.json",
    "certificate.json",
    "certificate.md",
    "certificate.png",
}


def listing(folder: Path) -> dict[str, str]:
    """Every file's hash, and every folder; the lock of the repository says nothing."""
    return {
        str(path.relative_to(folder)): sha256(path) if path.is_file() else "folder"
        for path in folder.rglob("*")
        if path.name != ".repository.lock"
    }


def pictures(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def graph_of(repository: Path, name: str) -> Path:
    return repository / name / "1" / "model.onnx"


# What an export writes


def test_a_repository_holds_one_folder_a_graph_and_its_state(repository: Path) -> None:
    listed = set(listing(repository))
    assert {name for name in listed if "/" not in name} == {*ALL_GRAPHS, "repository.json"}
    for graph in ALL_GRAPHS:
        certificate = read_certificate(repository / graph / "1" / "certificate.json")
        kept = {form.file for form in certificate.forms.values() if form.file}
        assert kept == {name for name in FILES if name.startswith("model")}
        own = {name.removeprefix(f"{graph}/") for name in listed if name.startswith(f"{graph}/")}
        assert own == {"config.pbtxt", "1"} | {f"1/{name}" for name in FILES}


def test_the_first_version_is_promoted(repository: Path) -> None:
    kept = Repository(repository)
    assert {name: one.version for name, one in kept.state().promoted.items()} == dict.fromkeys(
        ALL_GRAPHS, 1
    )
    assert kept.stale_configs() == {}


@pytest.mark.parametrize("name", ALL_GRAPHS)
def test_a_manifest_tells_what_the_run_and_the_graph_are(
    name: str, repository: Path, runs: Path
) -> None:
    folder = runs / MODEL_OF[name]
    manifest = read(repository / name / "1")
    config, provenance = run_folder.read_run(folder)
    measured = json.loads((folder / "metrics.json").read_text())
    served = read_certificate(repository / name / "1" / "certificate.json").forms["onnx"]
    assert (manifest.name, manifest.version) == (name, 1)
    assert (manifest.inputs, manifest.outputs) == tensor_specs(graph_of(repository, name))
    assert manifest.lineage.checkpoint_sha256 == sha256(folder / "checkpoint.safetensors")
    assert manifest.lineage.config_sha256 == sha256(folder / "config.yaml")
    assert manifest.lineage.commit == provenance["commit"]
    assert manifest.metrics.values == measured["values"] | served.metrics
    assert manifest.metrics.seed == config.seed
    split = provenance["split"]
    assert (manifest.metrics.dataset, manifest.metrics.split) == (split, "test")
    assert manifest.metrics.split_sha256 == split_sha256(split, "test")
    assert manifest.metrics.tiles == measured["tiles"] == (10 if name == "jtts" else 12)
    if name == "spatialnet_vit_head":
        assert manifest.input is None
        assert manifest.head.encoder_sha256 == sha256(
            graph_of(repository, "spatialnet_vit_encoder")
        )
    else:
        assert manifest.input is not None
        assert (manifest.input.height, manifest.input.width) == (64, 64)
        assert manifest.input.golden_sha256 == golden_sha256(64, 64)


@pytest.mark.parametrize("name", ALL_GRAPHS)
def test_a_manifest_lists_every_file_and_the_golden_answer(name: str, repository: Path) -> None:
    folder = repository / name / "1"
    manifest = read(folder)
    assert set(manifest.files) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert manifest.golden.outputs
    answered = Session(folder / "model.onnx", threads=1).run(**golden_inputs(manifest))
    assert disagreement(manifest.golden, answered) is None


@pytest.mark.parametrize("name", ALL_GRAPHS)
def test_the_words_of_the_manifest_are_those_of_the_card(
    name: str, repository: Path, runs: Path
) -> None:
    head = read(repository / name / "1").head
    card = json.loads((runs / MODEL_OF[name] / "card.json").read_text())
    match name:
        case "signa":
            assert head.labels == card["labels"]
        case "jtts":
            assert (head.vocabulary, head.attributes) == (card["vocabulary"], card["attributes"])
        case "spatialnet_vit_encoder":
            assert head.land_use == card["scenes"]
        case _:
            assert (head.vocabulary, head.answers) == (card["vocabulary"], card["answers"])


@pytest.mark.parametrize("name", ALL_GRAPHS)
def test_triton_is_told_the_graphs_own_tensors(name: str, repository: Path) -> None:
    text = (repository / name / "config.pbtxt").read_text()
    config = parse_config(text, name)
    graph = onnx.load(graph_of(repository, name)).graph
    assert (config.name, config.backend) == (name, "onnxruntime")
    assert config.max_batch_size > 1
    assert config.parameters["sha256.1"].string_value == sha256(graph_of(repository, name))
    for told, own in ((config.input, graph.input), (config.output, graph.output)):
        assert [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in told] == [
            (
                value.name,
                TRITON_TYPES[value.type.tensor_type.elem_type],
                [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:],
            )
            for value in own
        ]


@pytest.mark.parametrize("name", ALL_GRAPHS)
def test_a_certificate_tells_what_was_compared(name: str, repository: Path) -> None:
    folder = repository / name / "1"
    certificate = read_certificate(folder / "certificate.json")
    assert (certificate.model, certificate.version) == (name, 1)
    assert certificate.tiles == (10 if name == "jtts" else 12)
    assert list(certificate.forms) == ["torch", "onnx", "torchscript", "int8", "batch1", "triton"]
    assert certificate.forms["triton"].reasons == ["not asked for"]
    assert certificate.forms["triton"].verdict == "not run"
    torch_metrics = certificate.forms["torch"].metrics
    assert certificate.task_metric in torch_metrics
    for form in ("onnx", "torchscript"):
        told = certificate.forms[form]
        assert told.differences and told.decisions
        assert all(one.limit == 1e-3 for one in told.differences.values())
        assert all(found.differing == 0 < found.compared for found in told.decisions.values())
        assert told.metrics.keys() == torch_metrics.keys()
        assert told.bytes == (folder / str(told.file)).stat().st_size
    for form in ("torch", "onnx", "torchscript"):
        assert [one.batch for one in certificate.forms[form].speed] == list(BATCHES)
    assert torch.__version__.startswith(certificate.software["torch"])
    assert certificate.gates == GATES
    readable = (folder / "certificate.md").read_text()
    assert name in readable and certificate.task_metric in readable


@pytest.mark.parametrize("name", ALL_GRAPHS)
def test_a_version_tells_nothing_of_the_machine_that_wrote_it(
    name: str, repository: Path, runs: Path, tiles: Path
) -> None:
    here = (ROOT, Path.home(), repository, runs, tiles)
    words = (*map(str, here), "site-packages", ".venv", "export/graphs.py", ".export-")
    for path in (repository / name).rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert [word for word in words if word.encode() in content] == [], path.name


@pytest.mark.parametrize("name", ALL_GRAPHS)
def test_the_halves_of_a_graph_compute_what_the_whole_weights_would(
    name: str, repository: Path, tmp_path: Path
) -> None:
    model = onnx.load(graph_of(repository, name))
    casts = {
        node.input[0]: node
        for node in model.graph.node
        if node.op_type == "Cast" and node.input[0].endswith(".float16")
    }
    stored = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16]
    assert len(stored) == len(casts) > 0
    sizes = {kind: 0 for kind in (TensorProto.FLOAT16, TensorProto.FLOAT)}
    for tensor in model.graph.initializer:
        if tensor.data_type in sizes:
            sizes[tensor.data_type] += int(np.prod(tensor.dims))
    share = sizes[TensorProto.FLOAT16] / sum(sizes.values())
    certificate = json.loads((repository / name / "1" / "certificate.json").read_text())
    assert certificate["float16_share"] == pytest.approx(share)
    told = read(repository / name / "1").graph.precision
    assert told == ("float16-weights" if share > 0.5 else "float32")
    for tensor in stored:
        cast = casts[tensor.name]
        whole = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(whole, cast.output[0]))
        model.graph.node.remove(cast)
    onnx.save(model, tmp_path / "whole.onnx")
    inputs = example_inputs(name, repository)
    halved = Session(graph_of(repository, name)).run(**inputs)
    for output, value in Session(tmp_path / "whole.onnx").run(**inputs).items():
        assert np.array_equal(halved[output], value), output


def example_inputs(name: str, repository: Path) -> dict[str, NDArray[np.generic]]:
    shown: dict[str, NDArray[np.generic]] = {"tiles": pictures(3)}
    if name == "jtts":
        return shown | {"beams": np.array([[1], [2], [3]])}
    if name == "spatialnet_vit_head":
        memory = Session(graph_of(repository, "spatialnet_vit_encoder")).run(**shown)["memory"]
        question = np.zeros((3, 20), dtype=np.int64)
        question[:, :3] = [[2, 3, 4], [5, 6, 7], [8, 0, 0]]
        return {"memory": memory, "question": question}
    return shown


# What the graphs answer


@pytest.mark.parametrize("name", ALL_GRAPHS)
def test_torchscript_answers_as_onnx_does(name: str, repository: Path) -> None:
    inputs = example_inputs(name, repository)
    whole = Session(graph_of(repository, name)).run(**inputs)
    script = TorchScriptModel(repository / name / "1" / "model.pt", list(whole)).run(**inputs)
    for output, value in whole.items():
        if value.dtype == np.float32:
            np.testing.assert_allclose(script[output], value, atol=1e-4, err_msg=output)
        elif output != "tokens":  # rows beyond the asked width are filler
            assert np.array_equal(script[output], value), output
    for row, width in enumerate(inputs.get("beams", np.empty((0, 1), int))[:, 0]):
        kept = slice(width)
        assert np.array_equal(script["tokens"][row, kept], whole["tokens"][row, kept])


@pytest.mark.parametrize("count", [1, 3])
@torch.no_grad()
def test_signa_answers_as_torch_does(count: int, runs: Path, repository: Path) -> None:
    config, _ = run_folder.read_run(runs / "signa")
    _, network = signa.load(runs / "signa", config)
    network = network.cpu()
    tiles = pictures(count)
    scores = signa.predict(network, tiles)
    evidence = network.evidence(network.features(torch.from_numpy(tiles)))
    found = Session(graph_of(repository, "signa")).run(tiles=tiles)
    np.testing.assert_allclose(found["scores"], scores, atol=1e-5)
    np.testing.assert_allclose(found["evidence"], evidence, atol=1e-4)


@pytest.mark.parametrize("count", [1, 3])
@torch.no_grad()
def test_jtts_answers_as_torch_does_each_tile_with_its_own_width(
    count: int, runs: Path, repository: Path
) -> None:
    config, _ = run_folder.read_run(runs / "jtts")
    _, network = jtts.load(runs / "jtts", config)
    network = network.cpu()
    tiles, beams = pictures(count), np.array([[2], [1], [3]])[:count]
    expected = BeamSearch(network)(torch.from_numpy(tiles), torch.from_numpy(beams))
    found = Session(graph_of(repository, "jtts")).run(tiles=tiles, beams=beams)
    for name, value in zip(("tokens", "log_probs", "attributes", "sampled"), expected, strict=True):
        if value.dtype == torch.float32:
            np.testing.assert_allclose(found[name], value, atol=1e-4, err_msg=name)
            continue
        for row, width in enumerate(beams[:, 0]):
            kept = slice(width) if name == "tokens" else slice(None)
            assert np.array_equal(found[name][row, kept], value[row, kept]), name


@pytest.mark.parametrize("count", [1, 3])
@torch.no_grad()
def test_both_graphs_of_spatialnet_vit_together_answer_as_torch_does(
    count: int, runs: Path, repository: Path, tiles: Path
) -> None:
    folder = runs / "spatialnet-vit"
    config, _ = run_folder.read_run(folder)
    card, network = spatialnet_vit.load(folder, config)
    network = network.cpu()
    head = spatialnet_vit.reading_head(card, config)
    part = spatialnet_vit.read_part(tiles, "test", 64, config.seed)
    stems, shown = part.stems[:count], part.tiles[:count]
    asked = [question for question in part.questions if question.stem in stems]
    memory, land_use = spatialnet_vit.encode(network, shown)
    answers, counts = spatialnet_vit.answer(network, memory, stems, asked, head)

    encoded = Session(graph_of(repository, "spatialnet_vit_encoder")).run(tiles=shown)
    np.testing.assert_allclose(encoded["memory"], memory, atol=1e-4)
    np.testing.assert_allclose(encoded["land_use"], land_use, atol=1e-5)
    rows, ids = spatialnet_vit.question_rows(stems, asked, head)
    answered = Session(graph_of(repository, "spatialnet_vit_head")).run(
        memory=encoded["memory"][rows], question=ids
    )
    np.testing.assert_allclose(answered["answers"], answers, atol=1e-5)
    np.testing.assert_allclose(answered["count"], counts, atol=1e-4)


# A second export, and exports that fail


def outputs_shifted(*names: str, by: float = 2e-3) -> Callable[[onnx.ModelProto], None]:
    """Damages a graph of these outputs so that each says a little more than it should."""

    def damage(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(
            numpy_helper.from_array(np.array(by, dtype=np.float32), "shift")
        )
        for output in model.graph.output:
            if output.name in names:
                for node in model.graph.node:
                    for index, name in enumerate(node.output):
                        if name == output.name:
                            node.output[index] = f"{name}.before"
                model.graph.node.append(
                    onnx.helper.make_node("Add", [f"{output.name}.before", "shift"], [output.name])
                )

    return damage


def test_a_second_export_is_version_two_and_the_first_is_served_on(
    runs: Path, tiles: Path, copied: Path, writing: Writing
) -> None:
    writing()
    before = listing(copied)
    (version,) = export_run(runs / "signa", copied, tiles, UNTOLD)
    assert version == copied / "signa" / "2"
    assert read(version).version == 2
    after = listing(copied)
    config = "signa/config.pbtxt"
    assert {name: after[name] for name in before if name != config} == {
        name: digest for name, digest in before.items() if name != config
    }
    added = {name.removeprefix("signa/2/") for name in set(after) - set(before)}
    assert added == {"signa/2", *FILES}
    kept = Repository(copied)
    assert kept.current("signa") == 1
    assert kept.stale_configs() == {}
    # Triton is told the second one's hash as well: it can be promoted at any time.
    told = parse_config((copied / config).read_text(), config).parameters
    assert told["sha256.2"].string_value == sha256(version / "model.onnx")


def test_a_later_version_is_promoted_where_that_is_asked_for(
    runs: Path, tiles: Path, copied: Path, writing: Writing
) -> None:
    writing()
    export_run(runs / "spatialnet-vit", copied, tiles, UNTOLD, promote=True)
    kept = Repository(copied)
    promoted = {name: one.version for name, one in kept.state().promoted.items()}
    assert promoted == {
        "signa": 1,
        "jtts": 1,
        "spatialnet_vit_encoder": 2,
        "spatialnet_vit_head": 2,
    }
    assert kept.state().promoted["spatialnet_vit_head"].previous == [1]
    assert kept.stale_configs() == {}


def test_the_next_version_counts_from_the_highest(
    runs: Path, tiles: Path, copied: Path, writing: Writing
) -> None:
    writing()
    shutil.copytree(copied / "signa" / "1", copied / "signa" / "9")
    (copied / "signa" / "10_old").mkdir()
    assert export_run(runs / "signa", copied, tiles, UNTOLD) == [copied / "signa" / "10"]


def test_a_served_int8_graph_is_what_the_manifest_is_about(
    runs: Path, tiles: Path, copied: Path, writing: Writing
) -> None:
    writing()
    gates = Gates(max_metric_loss=1e6, min_speedup=0, min_batch1_speedup=1e6)
    options = Options(gates=gates, triton=False, drop=frozenset({"torchscript"}))
    (version,) = export_run(runs / "signa", copied, tiles, options)
    manifest = read(version)
    assert (manifest.graph.precision, manifest.golden.tolerance) == ("int8", 5e-2)
    first = copied / "signa" / "1"
    assert sha256(version / "model.onnx") == sha256(first / "model.int8.onnx")
    assert sha256(version / "model.fp32.onnx") == sha256(first / "model.onnx")
    gone = {"manifest.json", "model.pt", "model.int8.onnx", "model.batch1.onnx"}
    assert set(manifest.files) == FILES - gone | {"model.fp32.onnx"}
    certificate = read_certificate(version / "certificate.json")
    assert certificate.forms["int8"].verdict == "served"
    assert manifest.metrics.values.items() >= certificate.forms["int8"].metrics.items()
    answered = Session(version / "model.onnx").run(**golden_inputs(manifest))
    strict = manifest.golden.model_copy(update={"tolerance": 1e-5})
    assert disagreement(strict, answered) is None


@pytest.mark.parametrize(
    ("model", "output", "said"),
    [
        ("signa", "scores", r"signa: ONNX .*scores differs by 2\.\d+e-03 \(limit 1e-03, \w+\d\d\)"),
        ("signa", "evidence", r"signa: .*evidence differs"),
        ("jtts", "log_probs", r"jtts: .*log_probs differs"),
        ("spatialnet-vit", "land_use", r"spatialnet_vit_encoder: .*land_use differs"),
        # The encoder is proved by then and must not be left behind.
        ("spatialnet-vit", "answers", r"spatialnet_vit_head: .*answers differs by .*\?\)"),
    ],
)
def test_an_export_that_disagrees_with_torch_leaves_the_repository_as_it_was(
    model: ModelName,
    output: str,
    said: str,
    runs: Path,
    tiles: Path,
    copied: Path,
    writing: Writing,
) -> None:
    before = listing(copied)
    writing(outputs_shifted(output))
    with pytest.raises(ExportError, match=said):
        export_run(runs / model, copied, tiles, UNTOLD)
    assert listing(copied) == before


def test_another_decision_is_told_where_the_numbers_are_near(
    runs: Path, tiles: Path, copied: Path, writing: Writing
) -> None:
    # The threshold lies between torch's score and the file's, so near are they.
    config, _ = run_folder.read_run(runs / "signa")
    _, network = signa.load(runs / "signa", config)
    scores = signa.predict(network, signa.read_part(tiles, "test", 64).tiles)
    nearest = float(scores.flat[np.abs(scores - 0.5).argmin()])
    writing(outputs_shifted("scores", by=(0.5 - nearest) * 1.01))
    options = Options(gates=Gates(max_difference=1.0), triton=False)
    with pytest.raises(ExportError, match=r"ONNX against torch: [1-9]\d* of 204 labels differ"):
        export_run(runs / "signa", copied, tiles, options)


def test_a_graph_that_cannot_be_written_leaves_the_repository_as_it_was(
    runs: Path, tiles: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(graph: SignaGraph, tiles: torch.Tensor) -> None:
        raise ValueError("not a graph")

    before = listing(copied)
    monkeypatch.setattr("export.onnx_file.torch.onnx.export", refuse)
    with pytest.raises(ExportError, match="SignaGraph"):
        export_run(runs / "signa", copied, tiles, UNTOLD)
    assert listing(copied) == before


def test_a_promotion_that_fails_takes_all_its_versions_out_again(
    runs: Path, tiles: Path, copied: Path, writing: Writing
) -> None:
    writing()
    # The encoder's configuration is written before that of the head turns out to be impossible.
    blocked = copied / "spatialnet_vit_head" / "config.pbtxt"
    blocked.unlink()
    blocked.mkdir()
    before = listing(copied)
    with pytest.raises(BundleError, match=r"spatialnet_vit_head/config\.pbtxt"):
        export_run(runs / "spatialnet-vit", copied, tiles, UNTOLD, promote=True)
    assert listing(copied) == before


def test_a_first_export_that_cannot_be_promoted_leaves_no_model(
    runs: Path, tiles: Path, copied: Path, writing: Writing
) -> None:
    writing()
    shutil.rmtree(copied / "signa")
    state = copied / "repository.json"
    promoted = json.loads(state.read_text())
    del promoted["promoted"]["signa"]
    # An encoder that is gone: nothing can be promoted as long as its head is.
    state.write_text(json.dumps(promoted))
    (copied / "signa" / "config.pbtxt").mkdir(parents=True)
    before = listing(copied)
    with pytest.raises(BundleError, match=r"signa/config\.pbtxt"):
        export_run(runs / "signa", copied, tiles, UNTOLD)
    assert listing(copied) == before


def test_a_run_measured_on_another_split_is_not_exported(
    runs: Path, tiles: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(runs / "signa", tmp_path / "run")
    provenance = json.loads((other / "run.json").read_text())
    provenance["split_sha256"]["test"] = "0" * 64
    (other / "run.json").write_text(json.dumps(provenance))
    with pytest.raises(ExportError, match=r"split ucm: .* test list 000000000000"):
        export_run(other, tmp_path / "model_repository", tiles, UNTOLD)
    assert not (tmp_path / "model_repository").exists()


def test_an_export_needs_the_tiles_that_prove_it(runs: Path, tiles: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: no such folder"):
        export_run(runs / "signa", tmp_path / "models", tmp_path / "absent", UNTOLD)
    bare = shutil.copytree(tiles, tmp_path / "bare", ignore=shutil.ignore_patterns("images"))
    with pytest.raises(DataError, match="bare"):
        export_run(runs / "signa", tmp_path / "models", bare, UNTOLD)
    assert not (tmp_path / "models").exists()


# The command line


def test_the_command_shows_what_the_comparison_found(
    runs: Path, tiles: Path, copied: Path, writing: Writing
) -> None:
    writing()
    options = ["--no-triton", "--promote", "--drop", "torchscript", "--min-speedup", "0"]
    options += ["--max-loss", "1000000"]
    arguments = [str(runs / "signa"), "--data", str(tiles), "--repository", str(copied)]
    told = CliRunner().invoke(build(), ["export", *arguments, *options], env={"COLUMNS": "200"})
    assert told.exit_code == 0, told.output
    assert "signa/2" in told.stdout.replace("\n", "")
    assert re.search(r"onnx +kept .*0 differ", told.stdout)
    assert re.search(r"int8 +served ", told.stdout)
    assert "torchscript: file not kept" in told.stdout
    assert "triton: not asked for" in told.stdout
    assert not (copied / "signa" / "2" / "model.pt").exists()
    assert Repository(copied).current("signa") == 2


def test_a_failing_command_says_why_and_exits_with_two(
    runs: Path, tiles: Path, copied: Path, writing: Writing, tmp_path: Path
) -> None:
    writing(outputs_shifted("scores"))
    for folder, options, said in (
        (runs / "signa", [], "scores differs"),
        (runs / "signa", ["--drop", "everything"], "--drop everything: no such form"),
        (tmp_path / "absent", [], "no such run"),
    ):
        arguments = [str(folder), "--data", str(tiles), "--repository", str(copied), *options]
        told = CliRunner().invoke(build(), ["export", "--no-triton", *arguments])
        assert told.exit_code == 2, told.output
        assert "tilesight export: " in told.stderr
        assert said in told.stderr
