"""`config.pbtxt`, made from a model's manifest; nobody edits it by hand."""

from collections.abc import Mapping

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from tilesight.errors import ConfigError
from tilesight.manifest import Manifest, TensorSpec
from tilesight.repository import CONFIG_NAME, TritonOptions

BACKEND = "onnxruntime"
# Hashes of the graphs, one a version: a runtime compares them with the files that it opens.
DIGEST_PREFIX = "sha256."

_TYPES = {
    "uint8": triton.TYPE_UINT8,
    "bool": triton.TYPE_BOOL,
    "int32": triton.TYPE_INT32,
    "int64": triton.TYPE_INT64,
    "float32": triton.TYPE_FP32,
}


def config_text(
    manifest: Manifest, digests: Mapping[int, str], promoted: int, options: TritonOptions
) -> str:
    """The text of the model's `config.pbtxt`; the batch axis is Triton's.

    `digests` holds the hash of each version's graph, `promoted` is the version that is loaded.
    """
    parameters = {
        "intra_op_thread_count": str(options.threads),
        "inter_op_thread_count": "1",
        **{f"{DIGEST_PREFIX}{version}": digest for version, digest in digests.items()},
    }
    config = triton.ModelConfig(
        name=manifest.name,
        backend=BACKEND,
        max_batch_size=options.max_batch_size,
        version_policy=triton.ModelVersionPolicy(
            specific=triton.ModelVersionPolicy.Specific(versions=[promoted])
        ),
        input=[
            triton.ModelInput(name=spec.name, data_type=_TYPES[spec.dtype], dims=spec.shape[1:])
            for spec in manifest.inputs
        ],
        output=[
            triton.ModelOutput(name=spec.name, data_type=_TYPES[spec.dtype], dims=spec.shape[1:])
            for spec in manifest.outputs
        ],
        instance_group=[
            triton.ModelInstanceGroup(
                count=options.instances, kind=triton.ModelInstanceGroup.KIND_AUTO
            )
        ],
        dynamic_batching=_batching(options),
        parameters={
            name: triton.ModelParameter(string_value=value) for name, value in parameters.items()
        },
        model_warmup=[_warmup(manifest.inputs)],
    )
    return str(text_format.MessageToString(config))


def _batching(options: TritonOptions) -> triton.ModelDynamicBatching:
    return triton.ModelDynamicBatching(
        max_queue_delay_microseconds=options.max_queue_delay_us,
        default_queue_policy=triton.ModelQueuePolicy(
            timeout_action=triton.ModelQueuePolicy.REJECT,
            default_timeout_microseconds=options.queue_timeout_us,
            allow_timeout_override=True,
            max_queue_size=options.max_queue_size,
        ),
    )


def _warmup(inputs: list[TensorSpec]) -> triton.ModelWarmup:
    """One batch of one before the model counts as ready.

    Zeros are values that every input knows: a padded question, a black tile, the narrowest beam.
    Random bytes would be token ids beyond the vocabulary, and floats that are no numbers.
    """
    return triton.ModelWarmup(
        name="zeros",
        batch_size=1,
        inputs={
            spec.name: triton.ModelWarmup.Input(
                data_type=_TYPES[spec.dtype], dims=spec.shape[1:], zero_data=True
            )
            for spec in inputs
        },
    )


def parse_config(text: str, source: str = CONFIG_NAME) -> triton.ModelConfig:
    """The configuration in the text of a `config.pbtxt`.

    Raises:
        ConfigError: naming `source`, the line and what is wrong with it.
    """
    try:
        return text_format.Parse(text, triton.ModelConfig())
    except text_format.ParseError as error:
        raise ConfigError(f"{source}: not a Triton model configuration: {error}") from None
