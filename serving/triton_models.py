"""Whether what Triton says of a model is what the model's manifest says."""

from typing import Any

import numpy as np
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import np_to_triton_dtype

from serving.repository import Bundle
from tilesight.errors import BundleError
from tilesight.manifest import MODEL_NAME, TensorSpec
from tilesight.triton_config import DIGEST_PREFIX


def difference(bundle: Bundle[Any], config: model_config_pb2.ModelConfig) -> BundleError | None:
    """What the server's configuration says otherwise than the manifest; None where they agree."""
    where = f"Triton's configuration of {bundle.name}"
    key, expected = f"{DIGEST_PREFIX}{bundle.version}", bundle.manifest.files[MODEL_NAME]
    digest = config.parameters[key].string_value if key in config.parameters else "missing"
    if digest != expected:
        return BundleError(
            f"{where}: parameters: {key} is {digest}, the manifest says {expected}; "
            "`tilesight models promote` writes config.pbtxt"
        )
    if config.max_batch_size < 1:
        return BundleError(f"{where}: max_batch_size is {config.max_batch_size}, at least 1 is")
    for side, found, promised in (
        ("input", config.input, bundle.manifest.inputs),
        ("output", config.output, bundle.manifest.outputs),
    ):
        tensors = {
            one.name: (model_config_pb2.DataType.Name(one.data_type), list(one.dims))
            for one in found
        }
        expected_tensors = {spec.name: (_type(spec), spec.shape[1:]) for spec in promised}
        if tensors != expected_tensors:
            return BundleError(f"{where}: {side}: {tensors}, the manifest says {expected_tensors}")
    return None


def _type(spec: TensorSpec) -> str:
    return f"TYPE_{np_to_triton_dtype(np.dtype(spec.dtype))}"


def require_same_tensors(new: Bundle[Any], old: Bundle[Any]) -> None:
    """Refuses a change under way that the server's one configuration a model cannot hold."""
    if (new.manifest.inputs, new.manifest.outputs) != (old.manifest.inputs, old.manifest.outputs):
        raise BundleError(
            f"{new.name}: version {new.version} has other tensors than version {old.version}, and "
            "Triton runs both with one configuration: restart the gateway to serve it"
        )
