"""Our backend inside the real Triton: right answers, together and alone, and what it refuses."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from google.protobuf.text_format import MessageToString
from numpy.typing import NDArray
from tritonclient import grpc as triton
from tritonclient.grpc import model_config_pb2 as config
from tritonclient.utils import InferenceServerException

from tests.serving.bundles import MODELS
from tests.triton.triton_server import (
    ask,
    pick_graph,
    processes,
    quick,
    row,
    runs,
    sum_graph,
    sum_model,
    tensors,
    together,
    write_model,
)
from tilesight.errors import TritonError
from tilesight.manifest import Manifest, read
from tilesight.triton import TritonServer
from tilesight.triton_config import parse_config

pytestmark = [pytest.mark.triton, pytest.mark.usefixtures("triton_home")]


def manifest_of(repository: Path, model: str) -> Manifest:
    return read(repository / model / "1")


def some_inputs(manifest: Manifest, rows: int, seed: int = 0) -> dict[str, NDArray]:
    """Tensors that every model accepts: bytes of every value, floats, small ids."""
    random = np.random.default_rng(seed)
    makers = {
        "uint8": lambda shape: random.integers(0, 256, shape, dtype=np.uint8),
        "int64": lambda shape: random.integers(1, 4, shape, dtype=np.int64),
        "float32": lambda shape: random.random(shape, dtype=np.float32),
    }
    return {spec.name: makers[spec.dtype]([rows, *spec.shape[1:]]) for spec in manifest.inputs}


def in_process(
    repository: Path, model: str, inputs: dict[str, NDArray], outputs: list[str]
) -> dict[str, NDArray]:
    graph = repository / model / "1" / "model.onnx"
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return dict(zip(outputs, session.run(outputs, inputs), strict=True))


def same(found: dict[str, NDArray], expected: dict[str, NDArray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_allclose(found[name], value, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("model", MODELS)
def test_the_answers_are_those_of_onnx_runtime(
    tiny_triton: TritonServer, tiny_repository: Path, model: str
) -> None:
    manifest = manifest_of(tiny_repository, model)
    inputs = some_inputs(manifest, rows=3)
    outputs = [output.name for output in manifest.outputs]
    found = ask(tiny_triton.grpc_url, model, inputs, outputs)
    same(found, in_process(tiny_repository, model, inputs, outputs))


def test_the_tiny_models_have_tensors_of_every_type(tiny_repository: Path) -> None:
    """Else the test above would show less than it seems to: int32 comes in no model of ours."""
    manifests = [manifest_of(tiny_repository, model) for model in MODELS]
    assert {spec.dtype for m in manifests for spec in m.inputs} == {"uint8", "int64", "float32"}
    assert {spec.dtype for m in manifests for spec in m.outputs} == {"int64", "float32", "bool"}


def test_an_output_that_nobody_asked_for_is_not_sent(
    tiny_triton: TritonServer, tiny_repository: Path
) -> None:
    inputs = some_inputs(manifest_of(tiny_repository, "signa"), rows=1)
    with triton.InferenceServerClient(tiny_triton.grpc_url) as client:
        answer = client.infer(
            "signa", tensors(inputs), outputs=[triton.InferRequestedOutput("scores")]
        )
    assert [output.name for output in answer.get_response().outputs] == ["scores"]


def test_requests_run_together_and_get_their_own_answers(
    tiny_repository: Path, tmp_path: Path
) -> None:
    """Batches of different sizes, different outputs: one run, and nobody's answer moves."""
    folder = shutil.copytree(tiny_repository / "signa", tmp_path / "signa")
    settings = parse_config((folder / "config.pbtxt").read_text(encoding="utf-8"))
    settings.dynamic_batching.CopyFrom(together(9))
    settings.ClearField("model_warmup")  # it counts as a run
    (folder / "config.pbtxt").write_text(MessageToString(settings), encoding="utf-8")
    manifest = manifest_of(tmp_path, "signa")
    asked = [some_inputs(manifest, rows, seed=rows) for rows in (4, 2, 3)]
    wanted = [["scores"], ["evidence", "scores"], ["scores"]]
    with quick(tmp_path) as server, ThreadPoolExecutor(3) as pool:
        found = list(pool.map(ask, [server.grpc_url] * 3, ["signa"] * 3, asked, wanted))
        assert runs(server.grpc_url, "signa", answered=9) == 1
    for inputs, outputs, answer in zip(asked, wanted, found, strict=True):
        same(answer, in_process(tmp_path, "signa", inputs, outputs))


def test_a_request_that_fails_harms_no_other_of_its_batch(tmp_path: Path) -> None:
    settings = sum_model(dynamic_batching=together(3))
    settings.input[0].data_type = config.TYPE_INT64
    write_model(tmp_path, "pick", pick_graph(), settings)

    def answer(place: int) -> float | str:
        try:
            return ask(server.grpc_url, "pick", {"x": np.array([[place]])}, ["y"])["y"].item()
        except InferenceServerException as error:
            return str(error)

    with quick(tmp_path) as server, ThreadPoolExecutor(3) as pool:
        good, bad, also_good = pool.map(answer, [7, 1_000_000, 3])
        assert runs(server.grpc_url, "pick", answered=2) == 1  # one call of the backend
    assert (good, also_good) == (7, 3)
    assert isinstance(bad, str) and "out of data bounds" in bad


def test_requests_of_different_sizes_run_apart(tmp_path: Path) -> None:
    settings = sum_model(dynamic_batching=together(3))
    settings.input[0].allow_ragged_batch = True
    write_model(tmp_path, "sum", sum_graph(), settings)
    with quick(tmp_path) as server, ThreadPoolExecutor(3) as pool:
        rows = [row(1, 2), row(1, 2, 3), row(5, 5)]
        found = list(
            pool.map(lambda x: ask(server.grpc_url, "sum", {"x": x}, ["y"])["y"].item(), rows)
        )
        assert runs(server.grpc_url, "sum", answered=3) == 1  # one call of the backend
    assert found == [3, 6, 10]


def test_a_cancelled_request_costs_the_next_one_nothing(
    tiny_triton: TritonServer, tiny_repository: Path
) -> None:
    inputs = some_inputs(manifest_of(tiny_repository, "signa"), rows=1)
    with triton.InferenceServerClient(tiny_triton.grpc_url) as client:
        answers: list[object] = []
        for _ in range(3):
            call = client.async_infer(
                "signa", tensors(inputs), lambda result, error: answers.append(error)
            )
            call.cancel()
        kept = client.infer("signa", tensors(inputs))
    same(
        {"scores": kept.as_numpy("scores")},
        in_process(tiny_repository, "signa", inputs, ["scores"]),
    )


@pytest.mark.parametrize("model", MODELS)
def test_the_configuration_stays_as_it_was_written(
    tiny_triton: TritonServer, tiny_repository: Path, model: str
) -> None:
    written = parse_config((tiny_repository / model / "config.pbtxt").read_text(encoding="utf-8"))
    with triton.InferenceServerClient(tiny_triton.grpc_url) as client:
        loaded = client.get_model_config(model).config
    assert list(loaded.input) == list(written.input)
    assert list(loaded.output) == list(written.output)
    assert loaded.max_batch_size == written.max_batch_size
    assert loaded.version_policy == written.version_policy
    assert {k: v.string_value for k, v in loaded.parameters.items()} == {
        k: v.string_value for k, v in written.parameters.items()
    }


def test_threads_are_those_of_the_configuration(tmp_path: Path) -> None:
    for name, threads in {"narrow": "1", "wide": "5"}.items():
        settings = sum_model(
            parameters={"intra_op_thread_count": config.ModelParameter(string_value=threads)}
        )
        write_model(tmp_path, name, sum_graph(), settings)
    with quick(tmp_path) as server:
        counts = {
            model: len(list(Path(f"/proc/{process}/task").iterdir()))
            for process, command in processes(server.pid).items()
            for model in ("narrow", "wide")
            if "backend_stub" in command and f" {model}_" in command
        }
    assert counts["wide"] - counts["narrow"] == 4


def test_a_graph_of_another_name_is_read(tmp_path: Path) -> None:
    write_model(tmp_path, "sum", sum_graph(), sum_model(default_model_filename="model.int8.onnx"))
    with quick(tmp_path) as server:
        assert ask(server.grpc_url, "sum", {"x": row(1, 2, 3)}, ["y"])["y"].item() == 6


def test_a_graph_that_is_not_the_promised_one_is_refused(
    tmp_path: Path, tiny_repository: Path
) -> None:
    copy = shutil.copytree(tiny_repository / "signa", tmp_path / "signa")
    with (copy / "1" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(TritonError, match=r"sha256 is [0-9a-f]{64}, config\.pbtxt says"):
        quick(tmp_path).start()


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"name": "z"}, r"inputs are \['x'\], config\.pbtxt says \['z'\]"),
        ({"data_type": config.TYPE_INT64}, r"input x is tensor\(float\) \[-1, -1\], config\.pbtxt"),
        ({"dims": [2, 3]}, r"input x is tensor\(float\) \[-1, -1\], config\.pbtxt .*\[-1, 2, 3\]"),
    ],
)
def test_a_configuration_of_another_graph_is_refused(
    tmp_path: Path, field: dict[str, object], message: str
) -> None:
    settings = sum_model()
    settings.input[0].CopyFrom(
        config.ModelInput(**({"name": "x", "data_type": config.TYPE_FP32, "dims": [-1]} | field))
    )
    write_model(tmp_path, "sum", sum_graph(), settings)
    with pytest.raises(TritonError, match=message):
        quick(tmp_path).start()


def test_external_data_is_not_read(tmp_path: Path) -> None:
    """What lies outside the hashed file has no say in the answers."""
    model = onnx.load_from_string(sum_graph())
    axes = model.graph.initializer[0]
    (tmp_path / "outside.bin").write_bytes(np.array([1], np.int64).tobytes())
    axes.ClearField("int64_data")
    axes.data_location = onnx.TensorProto.EXTERNAL
    axes.external_data.add(key="location", value="../../outside.bin")
    write_model(tmp_path, "sum", model.SerializeToString(), sum_model())
    with pytest.raises(TritonError, match="external"):
        quick(tmp_path).start()
