"""What the gateway needs of whatever runs the models: one protocol for all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from serving.jobs import Ask
from serving.repository import Bundle
from serving.stations import Station
from tilesight.manifest import Golden

Tensor = NDArray[np.generic]


@dataclass(frozen=True)
class Backend:
    """What runs a model: a name for answers and metrics, and the details for operators."""

    name: str
    details: dict[str, str | int]
    max_batch: int | None = None  # most rows of one run, where there is a limit
    # Where it runs something else than the served graph as it stands in the manifest.
    precision: str | None = None
    golden: Golden | None = None


class Runtime(Protocol):
    """Runs versions of models; two versions of one model can be loaded at a time.

    Every method stops when it is cancelled. A runtime in another process takes the deadline along.
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

    def station(self, bundle: Bundle[Any], lane: str) -> Station | None:
        """Where a crew of this process runs the version; None where another process runs it."""

    async def infer(
        self, bundle: Bundle[Any], inputs: Mapping[str, Tensor], outputs: Sequence[str], ask: Ask
    ) -> dict[str, NDArray[Any]]:
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
