"""What the gateway needs of whatever runs the models: four methods, two implementations."""

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
    queue_s: float
    infer_s: float


@dataclass(frozen=True)
class Backend:
    """What runs a model: a name for answers and metrics, and the details for operators."""

    name: str
    details: dict[str, str | int]


class Runtime(Protocol):
    """Runs the models of the repository."""

    def load(self, bundle: Bundle[Any]) -> None:
        """After it the bundle's model can be run.

        Raises:
            BundleError: the graph cannot be loaded or is not what the manifest says.
        """

    async def infer(
        self, model: str, inputs: Mapping[str, Tensor], outputs: Sequence[str]
    ) -> Inference:
        """The named outputs for one batch."""

    def describe(self, model: str) -> Backend:
        """What runs this model."""

    def close(self) -> None:
        """After it no model can be run."""
