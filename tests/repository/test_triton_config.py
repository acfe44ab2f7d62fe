"""What a generated `config.pbtxt` says, as Triton's own parser reads it."""

import numpy as np
import onnxruntime as ort
import pytest
from tritonclient.grpc import model_config_pb2 as triton

from tests.conftest import ROOT
from tests.repository.versions import ENCODER, HEAD
from tilesight.errors import ConfigError
from tilesight.manifest import Manifest, TensorSpec
from tilesight.repository import Repository, TritonOptions
from tilesight.triton_config import config_text, parse_config

COMMITTED = Repository(ROOT / "model_repository")
MODELS = ("signa", "jtts", ENCODER, HEAD)
DIGESTS = {1: "a" * 64, 3: "b" * 64}
OPTIONS = TritonOptions(
    instances=3,
    threads=5,
    max_batch_size=16,
    max_queue_delay_us=700,
    max_queue_size=11,
    queue_timeout_us=900,
)


def manifest_of(name: str) -> Manifest:
    return COMMITTED.manifest(name, COMMITTED.current(name))


def config_of(manifest: Manifest) -> triton.ModelConfig:
    return parse_config(config_text(manifest, DIGESTS, 3, OPTIONS))


@pytest.mark.parametrize("name", MODELS)
def test_the_tensors_are_those_of_the_manifest(name: str) -> None:
    manifest = manifest_of(name)
    config = config_of(manifest)
    assert (config.name, config.backend) == (name, "onnxruntime")
    names = {triton.TYPE_UINT8: "uint8", triton.TYPE_BOOL: "bool", triton.TYPE_INT32: "int32"}
    names |= {triton.TYPE_INT64: "int64", triton.TYPE_FP32: "float32"}
    for tensors, specs in ((config.input, manifest.inputs), (config.output, manifest.outputs)):
        read = [
            TensorSpec(name=one.name, dtype=names[one.data_type], shape=[-1, *one.dims])
            for one in tensors
        ]
        assert read == specs


def test_every_type_is_known() -> None:
    manifest = manifest_of("signa")
    dtypes = ("uint8", "bool", "int32", "int64", "float32")
    specs = [TensorSpec(name=dtype, dtype=dtype, shape=[-1, 2]) for dtype in dtypes]
    config = config_of(manifest.model_copy(update={"inputs": specs, "outputs": specs}))
    types = [one.data_type for one in config.input]
    assert types == [one.data_type for one in config.output]
    assert len(set(types)) == len(dtypes)
    assert triton.TYPE_INVALID not in types


def test_the_options() -> None:
    config = config_of(manifest_of("jtts"))
    assert config.max_batch_size == 16
    assert config.dynamic_batching.max_queue_delay_microseconds == 700
    policy = config.dynamic_batching.default_queue_policy
    assert policy.timeout_action == triton.ModelQueuePolicy.REJECT
    assert (policy.default_timeout_microseconds, policy.max_queue_size) == (900, 11)
    assert policy.allow_timeout_override
    (group,) = config.instance_group
    assert (group.count, group.kind) == (3, triton.ModelInstanceGroup.KIND_AUTO)


def test_threads_and_hashes() -> None:
    parameters = config_of(manifest_of("jtts")).parameters
    assert {name: value.string_value for name, value in parameters.items()} == {
        "intra_op_thread_count": "5",
        "inter_op_thread_count": "1",
        "sha256.1": "a" * 64,
        "sha256.3": "b" * 64,
    }


def test_only_the_promoted_version_is_loaded() -> None:
    policy = config_of(manifest_of("jtts")).version_policy
    assert policy.WhichOneof("policy_choice") == "specific"
    assert list(policy.specific.versions) == [3]


def test_the_same_text_for_the_same_contents() -> None:
    manifest = manifest_of("jtts")
    backwards = dict(reversed(DIGESTS.items()))
    assert config_text(manifest, DIGESTS, 3, OPTIONS) == config_text(
        manifest, backwards, 3, OPTIONS
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_model_accepts_its_warm_up(name: str) -> None:
    (sample,) = config_of(manifest_of(name)).model_warmup
    assert sample.batch_size == 1
    assert all(one.zero_data for one in sample.inputs.values())
    graph = COMMITTED.folder(name, COMMITTED.current(name)) / "model.onnx"
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    dtypes = {
        triton.TYPE_UINT8: np.uint8,
        triton.TYPE_INT64: np.int64,
        triton.TYPE_FP32: np.float32,
    }
    zeros = {
        name: np.zeros([1, *one.dims], dtypes[one.data_type]) for name, one in sample.inputs.items()
    }
    assert {one.name for one in session.get_inputs()} == set(zeros)
    for values in session.run(None, zeros):
        assert not np.isnan(values.astype(np.float32)).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('nme: "signa"', 'mine: not a Triton model configuration: 1:1 : Message type "inference.'),
        ("\nmax_batch_size: many", "mine: not a Triton model configuration: 2:17 : "),
        ("input {", "mine: not a Triton model configuration: 1:"),
        ("instance_group { kind: KIND_TPU }", "mine: not a Triton model configuration: 1:24 : "),
    ],
)
def test_what_triton_would_not_read(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "mine")
    assert str(caught.value).startswith(message)
