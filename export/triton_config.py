"""`config.pbtxt`, made from the graph's own inputs and outputs; nobody edits it by hand."""

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from tilesight.manifest import TensorSpec

MAX_BATCH_SIZE = 32
MAX_QUEUE_DELAY_US = 2000

_TYPES = {
    "uint8": triton.TYPE_UINT8,
    "bool": triton.TYPE_BOOL,
    "int32": triton.TYPE_INT32,
    "int64": triton.TYPE_INT64,
    "float32": triton.TYPE_FP32,
}


def config_text(name: str, inputs: list[TensorSpec], outputs: list[TensorSpec]) -> str:
    """The text of the model's `config.pbtxt`; the batch axis is Triton's."""
    config = triton.ModelConfig(
        name=name,
        backend="onnxruntime",
        max_batch_size=MAX_BATCH_SIZE,
        input=[
            triton.ModelInput(name=s.name, data_type=_TYPES[s.dtype], dims=s.shape[1:])
            for s in inputs
        ],
        output=[
            triton.ModelOutput(name=s.name, data_type=_TYPES[s.dtype], dims=s.shape[1:])
            for s in outputs
        ],
        dynamic_batching=triton.ModelDynamicBatching(
            max_queue_delay_microseconds=MAX_QUEUE_DELAY_US
        ),
        version_policy=triton.ModelVersionPolicy(
            latest=triton.ModelVersionPolicy.Latest(num_versions=1)
        ),
    )
    return str(text_format.MessageToString(config))
