import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from tritonclient.grpc import model_config_pb2 as triton
from typer.testing import CliRunner

from export.bundle import export_run
from export.certificate import Certificate
from export.graphs import SignaGraph
from export.onnx_file import Session, Source, tensor_specs
from tests.export.conftest import GRAPHS
from tilesight.cli import build
from tilesight.errors import DataError, ExportError, RunError
from tilesight.files import sha256
from tilesight.imaging import golden_sha256
from tilesight.manifest import read
from training import run as run_folder
from training.config import MODEL_NAMES, ModelName
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


def listing(folder: Path) -> dict[str, str]:
    """Every file's hash, and every folder."""
    return {
        str(path.relative_to(folder)): sha256(path) if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


def pictures(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def graph_of(repository: Path, name: str) -> Path:
    return repository / name / "1" / "model.onnx"


# What an export writes


def test_a_repository_holds_one_folder_a_graph_and_nothing_else(repository: Path) -> None:
    version = {f"1/{name}" for name in ("model.onnx", "manifest.json", "certificate.json")}
    for graph in ALL_GRAPHS:
        assert set(listing(repository / graph)) == {"config.pbtxt", "1", *version}
    assert {path.name for path in repository.iterdir()} == set(ALL_GRAPHS)


@pytest.mark.parametrize("name", ALL_GRAPHS)
def test_a_manifest_tells_what_the_run_and_the_graph_are(
    name: str, repository: Path, runs: Path
) -> None:
    folder = runs / MODEL_OF[name]
    manifest = read(repository / name / "1")
    config, provenance = run_folder.read_run(folder)
    measured = json.loads((folder / "metrics.json").read_text())
    assert (manifest.name, manifest.version) == (name, 1)
    assert (manifest.inputs, manifest.outputs) == tensor_specs(graph_of(repository, name))
    assert manifest.lineage.checkpoint_sha256 == sha256(folder / "checkpoint.safetensors")
    assert manifest.lineage.config_sha256 == sha256(folder / "config.yaml")
    assert manifest.lineage.commit == provenance["commit"]
    assert manifest.metrics.values == measured["values"]
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
    config = text_format.Parse(
        (repository / name / "config.pbtxt").read_text(), triton.ModelConfig()
    )
    graph = onnx.load(graph_of(repository, name)).graph
    assert (config.name, config.backend) == (name, "onnxruntime")
    assert config.max_batch_size > 1
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
    text = (repository / name / "1" / "certificate.json").read_text()
    certificate = Certificate.model_validate_json(text)
    assert certificate.tiles == (10 if name == "jtts" else 12)
    assert certificate.bytes == graph_of(repository, name).stat().st_size
    assert certificate.differences and certificate.decisions
    assert all(found.differing == 0 < found.compared for found in certificate.decisions.values())
    assert certificate.metrics["torch"]
    # Tiles that a network of one epoch cannot tell apart change places in a ranking.
    assert certificate.metrics["onnx"] == pytest.approx(certificate.metrics["torch"], abs=0.05)
    assert certificate.onnxruntime == onnxruntime.__version__


@pytest.mark.parametrize("name", ALL_GRAPHS)
def test_a_graph_tells_nothing_of_the_machine_that_wrote_it(name: str, repository: Path) -> None:
    content = graph_of(repository, name).read_bytes()
    here = Path(__file__).resolve().parents[2]
    for path in (str(here), "site-packages", ".venv", str(Path.home()), "export/graphs.py"):
        assert path.encode() not in content, path


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

Write = Callable[[Source, Path], float]


def writing(repository: Path, damage: Callable[[onnx.ModelProto], None] | None = None) -> Write:
    """What writes a graph: the one that was exported before, damaged. Saves half a minute."""

    def write(_source: Source, path: Path) -> float:
        model = onnx.load(graph_of(repository, path.parent.name))
        if damage is not None:
            damage(model)
        onnx.save(model, path)
        return 0.0

    return write


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


@pytest.fixture
def copied(repository: Path, tmp_path: Path) -> Path:
    """A repository that a test may change."""
    return shutil.copytree(repository, tmp_path / "model_repository")


def test_a_second_export_is_version_two_and_the_first_stays(
    runs: Path, tiles: Path, copied: Path
) -> None:
    before = listing(copied / "signa")
    (version,) = export_run(runs / "signa", copied, tiles)
    assert version == copied / "signa" / "2"
    assert read(version).version == 2
    after = listing(copied / "signa")
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {
        "2",
        "2/model.onnx",
        "2/manifest.json",
        "2/certificate.json",
    }


def test_the_next_version_counts_from_the_highest(
    runs: Path, tiles: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied / "signa" / "1").rename(copied / "signa" / "9")
    (copied / "signa" / "10_old").mkdir()
    monkeypatch.setattr("export.bundle.write_onnx", writing_from(copied / "signa" / "9"))
    assert export_run(runs / "signa", copied, tiles) == [copied / "signa" / "10"]


def writing_from(version: Path) -> Write:
    def write(_source: Source, path: Path) -> float:
        shutil.copy(version / "model.onnx", path)
        return 0.0

    return write


@pytest.mark.parametrize(
    ("model", "output", "said"),
    [
        ("signa", "scores", r"signa: .*scores differs by 2\.\d+e-03 \(limit 1e-03, \w+\d\d\)"),
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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = listing(copied)
    monkeypatch.setattr("export.bundle.write_onnx", writing(copied, outputs_shifted(output)))
    with pytest.raises(ExportError, match=said):
        export_run(runs / model, copied, tiles)
    assert listing(copied) == before


def test_another_decision_is_told_where_the_numbers_are_near(
    runs: Path, tiles: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The threshold lies between torch's score and the file's, so near are they.
    config, _ = run_folder.read_run(runs / "signa")
    _, network = signa.load(runs / "signa", config)
    scores = signa.predict(network, signa.read_part(tiles, "test", 64).tiles)
    nearest = float(scores.flat[np.abs(scores - 0.5).argmin()])
    shift = (0.5 - nearest) * 1.01
    monkeypatch.setattr("export.certificate.MAX_DIFFERENCE", 1.0)
    monkeypatch.setattr(
        "export.bundle.write_onnx", writing(copied, outputs_shifted("scores", by=shift))
    )
    with pytest.raises(ExportError, match=r"[1-9]\d* of 204 labels differ"):
        export_run(runs / "signa", copied, tiles)


def test_a_graph_that_cannot_be_written_leaves_the_repository_as_it_was(
    runs: Path, tiles: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(graph: SignaGraph, tiles: torch.Tensor) -> None:
        raise ValueError("not a graph")

    before = listing(copied)
    monkeypatch.setattr(SignaGraph, "forward", refuse)
    with pytest.raises(ExportError, match="SignaGraph"):
        export_run(runs / "signa", copied, tiles)
    assert listing(copied) == before


def test_a_run_measured_on_another_split_is_not_exported(
    runs: Path, tiles: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(runs / "signa", tmp_path / "run")
    provenance = json.loads((other / "run.json").read_text())
    provenance["split_sha256"]["test"] = "0" * 64
    (other / "run.json").write_text(json.dumps(provenance))
    with pytest.raises(ExportError, match=r"split ucm: .* test list 000000000000"):
        export_run(other, tmp_path / "model_repository", tiles)
    assert not (tmp_path / "model_repository").exists()


@pytest.mark.parametrize("missing", ["metrics.json", "checkpoint.safetensors", "run.json"])
@pytest.mark.parametrize("model", MODEL_NAMES)
def test_an_unfinished_run_is_not_exported(
    model: ModelName, missing: str, runs: Path, tiles: Path, tmp_path: Path
) -> None:
    unfinished = shutil.copytree(runs / model, tmp_path / "run")
    (unfinished / missing).unlink()
    with pytest.raises(RunError, match=re.escape(missing)):
        export_run(unfinished, tmp_path / "model_repository", tiles)
    assert not list((tmp_path / "model_repository").rglob("*"))


def test_an_export_needs_the_tiles_that_prove_it(runs: Path, tiles: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: no such folder"):
        export_run(runs / "signa", tmp_path / "models", tmp_path / "absent")
    bare = shutil.copytree(tiles, tmp_path / "bare", ignore=shutil.ignore_patterns("images"))
    with pytest.raises(DataError, match="bare"):
        export_run(runs / "signa", tmp_path / "models", bare)
    assert not (tmp_path / "models").exists()


# The command line


def test_the_command_shows_what_the_comparison_found(
    runs: Path, tiles: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.bundle.write_onnx", writing(copied))
    arguments = [str(runs / "signa"), "--data", str(tiles), "--repository", str(copied)]
    told = CliRunner().invoke(build(), ["export", *arguments])
    assert told.exit_code == 0, told.output
    assert "signa/2" in told.stdout.replace("\n", "")
    assert re.search(r"scores: largest difference \S+ \(limit 1e-03\)", told.stdout)
    assert "labels: 0 of 204 differ" in told.stdout


def test_a_failing_command_says_why_and_exits_with_two(
    runs: Path, tiles: Path, copied: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    damage = outputs_shifted("scores")
    monkeypatch.setattr("export.bundle.write_onnx", writing(copied, damage))
    for folder, said in ((runs / "signa", "scores differs"), (tmp_path / "absent", "no such run")):
        arguments = [str(folder), "--data", str(tiles), "--repository", str(copied)]
        told = CliRunner().invoke(build(), ["export", *arguments])
        assert told.exit_code == 2, told.output
        assert "tilesight export: " in told.stderr
        assert said in told.stderr
