"""A graph behind a Triton server, asked over gRPC as the gateway asks it."""

from collections.abc import Sequence
from typing import Any

import tritonclient.grpc as grpc
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from export.runner import Outputs, Runner
from tilesight.errors import TritonError


class TritonRunner(Runner):
    """A model version that a Triton server has loaded."""

    def __init__(self, url: str, model: str, version: int, outputs: Sequence[str]) -> None:
        """A client of the server at this address (host:port)."""
        self._client = grpc.InferenceServerClient(url)
        self._model, self._version = model, str(version)
        self._outputs = [grpc.InferRequestedOutput(name) for name in outputs]
        self._names = outputs

    def run(self, **inputs: NDArray[Any]) -> Outputs:
        """The outputs by name for one batch.

        Raises:
            TritonError: the server does not answer, or answers with an error.
        """
        try:
            answer = self._client.infer(
                self._model,
                [_tensor(name, values) for name, values in inputs.items()],
                model_version=self._version,
                outputs=self._outputs,
            )
        except InferenceServerException as error:
            raise TritonError(f"{self._model}: {error}") from error
        return {name: answer.as_numpy(name) for name in self._names}

    def server(self) -> str:
        """The server's version."""
        return str(self._client.get_server_metadata().version)

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()


def _tensor(name: str, values: NDArray[Any]) -> grpc.InferInput:
    tensor = grpc.InferInput(name, values.shape, np_to_triton_dtype(values.dtype))
    tensor.set_data_from_numpy(values)
    return tensor
