"""The real Triton for tests, the processes it consists of, and models that are made in a line."""

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tritonclient import grpc as triton
from tritonclient.grpc import model_config_pb2 as config
from tritonclient.utils import np_to_triton_dtype

from tilesight.errors import TritonError, TritonMissingError
from tilesight.triton import Installation, TritonServer, find

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="session")
def triton_home() -> Installation:
    """The installed Triton; a test that asks for it skips without it."""
    try:
        return find()
    except (TritonMissingError, TritonError) as error:
        pytest.skip(str(error))


def quick(repository: Path, **options: object) -> TritonServer:
    """A Triton that stops in a second: it waits for no request in flight."""
    return TritonServer(repository, exit_timeout_s=0, **options)


def ask(
    url: str, model: str, inputs: Mapping[str, NDArray], outputs: list[str], **options: object
) -> dict[str, NDArray]:
    """The named outputs of one request."""
    with triton.InferenceServerClient(url) as client:
        answer = client.infer(
            model,
            tensors(inputs),
            outputs=[triton.InferRequestedOutput(name) for name in outputs],
            **options,
        )
    return {name: answer.as_numpy(name) for name in outputs}


def tensors(inputs: Mapping[str, NDArray]) -> list[triton.InferInput]:
    """The inputs as the client wants them."""
    wanted = []
    for name, value in inputs.items():
        tensor = triton.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
        tensor.set_data_from_numpy(value)
        wanted.append(tensor)
    return wanted


def runs(url: str, model: str, answered: int) -> int:
    """How often the model ran until so many rows were answered; Triton counts after it answers."""
    with triton.InferenceServerClient(url) as client:

        def counts() -> tuple[int, int]:
            (stats,) = client.get_inference_statistics(model).model_stats
            return stats.inference_count, stats.execution_count

        eventually(lambda: counts()[0] >= answered)
        return counts()[1]


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def processes(group: int) -> dict[int, str]:
    """Command lines of the living processes of the group, by process id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_text().replace("\0", " ").strip()
        except OSError:
            continue  # it has ended meanwhile
        # Without a command line a process has given its memory back already, and is ending.
        if int(fields[2]) == group and fields[0] != "Z" and command:
            found[int(folder.name)] = command
    return found


def regions(log: str) -> list[Path]:
    """The shared memory that is there of the server which wrote this log."""
    prefix = re.search(r"tilesight_triton_[0-9a-f]+_", log)
    assert prefix, log
    return sorted(SHARED_MEMORY.glob(f"{prefix[0]}*"))


def write_model(root: Path, name: str, graph: bytes, settings: config.ModelConfig) -> Path:
    """A model without a manifest, for what the generated configuration does not show."""
    folder = root / name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / (settings.default_model_filename or "model.onnx")).write_bytes(graph)
    settings.name = name
    (folder / "config.pbtxt").write_text(text_format.MessageToString(settings), encoding="utf-8")
    return folder


def sum_model(dims: int = -1, **fields: object) -> config.ModelConfig:
    """The configuration that fits `sum_graph`."""
    return config.ModelConfig(
        backend="onnxruntime",
        max_batch_size=8,
        input=[config.ModelInput(name="x", data_type=config.TYPE_FP32, dims=[dims])],
        output=[config.ModelOutput(name="y", data_type=config.TYPE_FP32, dims=[1])],
        instance_group=[
            config.ModelInstanceGroup(count=1, kind=config.ModelInstanceGroup.KIND_CPU)
        ],
        **fields,
    )


def sum_graph() -> bytes:
    """y (N, 1) is the sum of each row of x (N, M)."""
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    return _graph(helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1), axes)


def pick_graph() -> bytes:
    """y (N, 1) is the number that stands at the place x (N, 1); there are ten, 0 to 9."""
    numbers = helper.make_tensor("numbers", TensorProto.FLOAT, [10], range(10))
    place = helper.make_node("Gather", ["numbers", "x"], ["y"])
    return _graph(place, numbers, TensorProto.INT64)


def _graph(node: onnx.NodeProto, constant: TensorProto, x_type: int = TensorProto.FLOAT) -> bytes:
    graph = helper.make_graph(
        [node],
        node.op_type,
        [helper.make_tensor_value_info("x", x_type, ["N", "M"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1])],
        [constant],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def together(requests: int) -> config.ModelDynamicBatching:
    """A batcher that waits until so many requests are there, however slow the machine is."""
    return config.ModelDynamicBatching(
        preferred_batch_size=[requests], max_queue_delay_microseconds=30_000_000
    )


def row(*values: float) -> NDArray:
    """One row of x."""
    return np.array([values], np.float32)
