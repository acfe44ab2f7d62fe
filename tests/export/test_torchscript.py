import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from export.graphs import EncoderGraph, JttsGraph, QuestionGraph, SignaGraph
from export.onnx_file import Source
from export.torchscript import TorchScriptModel, write_torchscript
from tests.conftest import ROOT
from tests.export.test_onnx_file import EXAMPLES, Refused, Scaled
from tilesight.errors import ExportError
from training import run as run_folder
from training.models.jtts import BeamSearch
from training.tasks import jtts, signa, spatialnet_vit

BATCHES = (1, 2, 3, 7)
ROWS = sum(BATCHES)
GRAPHS = ("signa", "jtts", "spatialnet_vit_encoder", "spatialnet_vit_head")

# What a user's program does, in a process where none of our packages can be imported.
USER = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tilesight", "training", "export", "serving"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Refuse())
try:
    import tilesight
except ImportError:
    pass
else:
    raise SystemExit("tilesight can be imported")

import numpy, torch

model = torch.jit.load(sys.argv[1])
inputs = dict(numpy.load(sys.argv[2]))
outputs, start = {}, 0
for size in map(int, sys.argv[4:]):
    rows = {name: torch.tensor(value[start : start + size]) for name, value in inputs.items()}
    with torch.no_grad():
        for index, output in enumerate(model(**rows)):
            outputs[f"{size}.{index}"] = output.numpy()
    start += size
numpy.savez(sys.argv[3], **outputs)
"""


@dataclass(frozen=True)
class Written:
    """A written file, the eager network that it has to equal, and something to ask both."""

    path: Path
    source: Source
    eager: Callable[..., tuple[torch.Tensor, ...]]
    inputs: dict[str, NDArray[Any]]

    def expected(self, rows: slice) -> dict[str, NDArray[Any]]:
        with torch.no_grad():
            answers = self.eager(*(torch.tensor(value[rows]) for value in self.inputs.values()))
        return {
            name: value.numpy() for name, value in zip(self.source.outputs, answers, strict=True)
        }


def networks(runs: Path) -> dict[str, Any]:
    modules = {"signa": signa, "jtts": jtts, "spatialnet-vit": spatialnet_vit}
    loaded = {}
    for name, module in modules.items():
        config, _ = run_folder.read_run(runs / name)
        loaded[name] = module.load(runs / name, config)[1].cpu()
    return loaded


@pytest.fixture(scope="module")
def written(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Written]:
    """Each graph of the tiny runs as a file; changed by no test."""
    network = networks(runs)
    random = np.random.default_rng(0)
    tiles = random.integers(0, 256, (ROWS, 64, 64, 3), dtype=np.uint8)
    beams = np.arange(ROWS).reshape(-1, 1) % 6  # 0 counts as 1, 5 as the most there are
    question = random.integers(0, 9, (ROWS, 20))
    encoder = EncoderGraph(network["spatialnet-vit"])
    with torch.no_grad():
        memory = encoder(torch.tensor(tiles))[0].numpy()
    asked: dict[str, tuple[nn.Module, dict[str, NDArray[Any]], tuple[str, ...]]] = {
        "signa": (SignaGraph(network["signa"]), {"tiles": tiles}, ("scores", "evidence")),
        "jtts": (
            JttsGraph(network["jtts"]),
            {"tiles": tiles, "beams": beams},
            ("tokens", "log_probs", "attributes", "sampled"),
        ),
        "spatialnet_vit_encoder": (encoder, {"tiles": tiles}, ("memory", "land_use")),
        "spatialnet_vit_head": (
            QuestionGraph(network["spatialnet-vit"]),
            {"memory": memory, "question": question},
            ("answers", "count"),
        ),
    }
    folder = tmp_path_factory.mktemp("torchscript")
    answer = {}
    for name, (module, inputs, outputs) in asked.items():
        examples = tuple(torch.tensor(value[:2]) for value in inputs.values())
        source = Source(module, examples, tuple(inputs), outputs)
        path = folder / f"{name}.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            write_torchscript(source, path)
        eager = BeamSearch(network["jtts"]) if name == "jtts" else module
        answer[name] = Written(path, source, eager.eval(), inputs)
    return answer


def same(found: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        if value.dtype == np.float32:
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6, err_msg=name)
        else:
            assert np.array_equal(found[name], value), name


@pytest.mark.parametrize("name", GRAPHS)
def test_a_process_without_our_packages_gets_torchs_answers(
    name: str, written: dict[str, Written], tmp_path: Path
) -> None:
    model = written[name]
    np.savez(tmp_path / "asked.npz", **model.inputs)
    paths = [str(model.path), str(tmp_path / "asked.npz"), str(tmp_path / "answered.npz")]
    ran = subprocess.run(
        [sys.executable, "-c", USER, *paths, *map(str, BATCHES)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    answered = np.load(tmp_path / "answered.npz")
    start = 0
    for size in BATCHES:
        found = {
            output: answered[f"{size}.{index}"] for index, output in enumerate(model.source.outputs)
        }
        same(found, model.expected(slice(start, start + size)))
        start += size


@pytest.mark.parametrize("name", GRAPHS)
def test_here_a_file_answers_by_name_in_batches_of_any_size(
    name: str, written: dict[str, Written]
) -> None:
    model = written[name]
    file = TorchScriptModel(model.path, model.source.outputs)
    whole = model.expected(slice(None))
    same(file.run(**model.inputs), whole)
    in_batches = file.run_in_batches(5, **model.inputs)
    for output, value in whole.items():
        np.testing.assert_allclose(in_batches[output], value, atol=1e-5, err_msg=output)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_sentences_are_the_same_token_for_token_at_every_width(
    width: int, written: dict[str, Written]
) -> None:
    model = written["jtts"]
    beams = np.full((ROWS, 1), width)
    with torch.no_grad():
        expected = model.eager(torch.tensor(model.inputs["tiles"]), torch.tensor(beams))
    file = TorchScriptModel(model.path, model.source.outputs)
    found = file.run(tiles=model.inputs["tiles"], beams=beams)
    assert np.array_equal(found["tokens"][:, :width], expected[0][:, :width])
    assert np.isfinite(found["log_probs"][:, :width]).all()
    assert np.isneginf(found["log_probs"][:, width:]).all()


def code(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        return "\n".join(
            archive.read(name).decode() for name in archive.namelist() if name.endswith(".py")
        )


def test_the_search_is_a_loop_that_can_end_early(written: dict[str, Written]) -> None:
    text = code(written["jtts"].path)
    assert "while " in text
    assert text.count("torch.lstm_cell(") == 2  # the two cells of one step, not of every step


@pytest.mark.parametrize("name", GRAPHS)
def test_a_file_holds_the_networks_weights_to_the_bit(
    name: str, written: dict[str, Written]
) -> None:
    model = written[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        stored = torch.jit.load(model.path).state_dict()
    own = dict(model.source.module.named_parameters())
    shared = own.keys() & stored.keys()
    assert len(shared) > 10
    assert all(torch.equal(stored[key], own[key]) for key in shared)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_file_tells_nothing_of_the_machine_and_the_code_it_came_from(
    name: str, written: dict[str, Written]
) -> None:
    with zipfile.ZipFile(written[name].path) as archive:
        content = b"".join(
            entry.filename.encode() + archive.read(entry) for entry in archive.infolist()
        )
    for word in (str(ROOT), str(Path.home()), "site-packages", ".venv", "debug_pkl"):
        assert word.encode() not in content, word
    for room in ("export", "training", "tilesight"):
        assert f"{room}/".encode() not in content, room
        assert f"{room}.".encode() not in content, room


@pytest.mark.parametrize("name", GRAPHS)
def test_a_file_names_no_device(name: str, written: dict[str, Written]) -> None:
    assert "torch.device(" not in code(written[name].path)


def test_a_file_can_be_loaded_to_another_device(written: dict[str, Written]) -> None:
    model = written["signa"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        elsewhere = torch.jit.load(model.path, map_location="meta")
    scores, evidence = elsewhere(torch.tensor(model.inputs["tiles"]).to("meta"))
    assert scores.device.type == evidence.device.type == "meta"
    assert len(scores) == ROWS


def test_tiles_of_another_type_are_refused(written: dict[str, Written]) -> None:
    model = written["signa"]
    file = TorchScriptModel(model.path, model.source.outputs)
    with pytest.raises(torch.jit.Error, match=r"tiles has to be torch\.uint8"):
        file.run(tiles=model.inputs["tiles"].astype(np.float32) / 255)


def test_inputs_are_called_as_the_source_calls_them(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    write_torchscript(Source(Scaled(), EXAMPLES, ("pixels",), ("scaled", "large")), path)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 2, 4), dtype=np.uint8)
    pixels.flags.writeable = False
    found = TorchScriptModel(path, ("scaled", "large")).run_in_batches(2, pixels=pixels)
    assert np.array_equal(found["scaled"], pixels * np.arange(4, dtype=np.float32))
    assert np.array_equal(found["large"], found["scaled"].sum(axis=2) > 9)


def test_a_module_that_is_no_graph_is_refused_and_the_file_before_stays(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"before")
    with pytest.raises(ExportError, match="Refused"):
        write_torchscript(Source(Refused(), EXAMPLES, ("tiles",), ("out",)), path)
    assert [child.name for child in tmp_path.iterdir()] == ["model.pt"]
    assert path.read_bytes() == b"before"
