"""What the gateway needs of whatever runs the models: one protocol, two implementations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from serving.repository import Bundle

Tensor = NDArray[np.generic]


@dataclass(frozen=True)
class Inference:
    """The tensors that a model returned, by name, and where the time went."""

    outputs: dict[str, NDArray[Any]]
    queue_s: float | None  # unknown where another process queues
    infer_s: float


@dataclass(frozen=True)
class Backend:
    """What runs a model: a name for answers and metrics, and the details for operators."""

    name: str
    details: dict[str, str | int]
    max_batch: int | None = None  # most rows of one run, where there is a limit


class Runtime(Protocol):
    """Runs versions of models; two versions of one model can be loaded at a time.

    Every method stops when it is cancelled. A runtime in another process takes the deadline of the
    cancel scope around the call along.
    """

    async def load(self, bundle: Bundle[Any]) -> None:
        """After it the version can be run; what is loaded already is only checked.

        Raises:
            BundleError: the graph cannot be loaded or is not what the manifest says.
            ConfigError: a setting stands in the way.
            BackendUnavailableError: whoever runs the models does not answer.
        """

    async def unload(self, bundle: Bundle[Any]) -> None:
        """After it the version cannot be run; the model's other versions are untouched."""

    async def infer(
        self, bundle: Bundle[Any], inputs: Mapping[str, Tensor], outputs: Sequence[str]
    ) -> Inference:
        """The named outputs for one batch.

        Raises:
            DeadlineError: the answer did not come in time.
            OverloadedError: too many others wait for this model.
            BackendUnavailableError: whoever runs the models does not answer.
        """

    async def holds(self, bundle: Bundle[Any]) -> bool:
        """Whether the version is still loaded.

        Raises:
            BackendUnavailableError: whoever runs the models does not answer.
        """

    def describe(self, bundle: Bundle[Any]) -> Backend:
        """What runs this version."""

    async def close(self) -> None:
        """After it no model can be run."""
