"""The models that answer: loaded, checked, and exchanged for others while requests run."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
from numpy.typing import NDArray

from serving import answers
from serving.crew import RETRY_S
from serving.embedded import EmbeddedRuntime
from serving.errors import (
    BackendUnavailableError,
    NotReadyError,
    RequestError,
    not_a_number,
)
from serving.jobs import Ask
from serving.lanes import INTERACTIVE, Lanes
from serving.metrics import Metrics
from serving.repository import Bundle, Served, open_served
from serving.runtime import Runtime, Tensor
from serving.settings import Settings
from serving.snapshot import Snapshot
from serving.stations import Station
from serving.timing import Timing
from tilesight.errors import BundleError, TilesightError
from tilesight.golden import disagreement, golden_inputs
from tilesight.manifest import BATCH1_NAME
from tilesight.repository import Repository

log = logging.getLogger("tilesight.models")

# Longer than any run should take; a server that hangs must not be waited for without end.
_CANARY_S = 60.0


class Models:
    """The served models and the runtime behind them."""

    def __init__(
        self, settings: Settings, metrics: Metrics, lanes: Lanes, runtime: Runtime | None = None
    ) -> None:
        """Models whose bundles are verified and not yet loaded.

        Raises:
            BundleError: a bundle is missing or is not what its manifest promises.
        """
        self._settings = settings
        self._metrics = metrics
        self._snapshot = Snapshot(open_served(settings))
        self._runtime: Runtime = runtime or _runtime(settings, lanes)
        self._infos: dict[tuple[str, int], answers.Model] = {}
        # One change at a time: a promotion, or loading again what a server has lost.
        self._changing = anyio.Lock()
        self._obstacle: RequestError | None = NotReadyError("the models are still being loaded")

    @property
    def served(self) -> Served:
        """The models that the next request gets."""
        return self._snapshot.served

    @property
    def ready(self) -> bool:
        """Whether every model has answered its canary and nothing has happened since."""
        return self._obstacle is None

    @property
    def stamp(self) -> tuple[int, int] | None:
        """What changes with `repository.json`; None where there is none."""
        try:
            found = Repository(self._settings.model_repository).state_path.stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_ino

    def using(self) -> AbstractContextManager[Served]:
        """A block with the models of this moment, which stay loaded until its end."""
        return self._snapshot.used()

    def require_ready(self) -> None:
        """Returns where every model answers.

        Raises:
            NotReadyError: the models are still being loaded.
            BackendUnavailableError: whatever runs them does not answer.
        """
        if self._obstacle:
            raise type(self._obstacle)(str(self._obstacle), retry_after=RETRY_S)

    def suspend(self, reason: RequestError) -> None:
        """Refuses requests for this reason until the models are loaded again."""
        if str(reason) != str(self._obstacle):
            log.warning("not ready", extra={"reason": str(reason.__cause__ or reason)})
        self._obstacle = reason
        self._metrics.ready.set(0)

    async def start(self) -> None:
        """Loads the promoted version of every model and asks each about the golden tile.

        Raises:
            BundleError: a model cannot be loaded or does not answer as it should.
            BackendUnavailableError: whatever runs the models does not answer.
        """
        async with self._changing:
            served = await anyio.to_thread.run_sync(open_served, self._settings, self.served)
            await self._load(served.all())
            self._serve(served)
            self._resume()

    async def follow(self) -> bool:
        """Whether other versions were promoted and are served now; requests go on meanwhile.

        The versions before stay loaded until the last request that began with them is answered.

        Raises:
            TilesightError: the promoted versions cannot be served; those before them still are.
        """
        async with self._changing:
            before = self._snapshot
            wanted = await anyio.to_thread.run_sync(open_served, self._settings, self.served)
            added, dropped = _without(wanted, before.served), _without(before.served, wanted)
            if not added:
                return False
            try:
                await self._load(added)
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await self._unload(added)
                raise
            self._serve(wanted)
        await before.drained()
        async with self._changing:
            await self._unload(dropped)
        return True

    async def check(self) -> bool:
        """Whether the runtime still holds every model.

        Raises:
            BackendUnavailableError: it does not answer.
        """
        for bundle in self.served.all():
            if not await self._runtime.holds(bundle):
                return False
        return True

    async def restore(self) -> None:
        """Loads the served versions again, after the runtime has lost them or was away.

        Raises:
            TilesightError: they cannot be loaded.
        """
        async with self._changing:
            await self._load(self.served.all())
            self._serve(self.served)
            self._resume()

    async def close(self) -> None:
        """The models answer no more."""
        self._obstacle = NotReadyError("the gateway is stopping")
        self._metrics.ready.set(0)
        await self._runtime.close()

    def station(self, bundle: Bundle[Any], lane: str) -> Station | None:
        """Where a crew of this process runs the model; None where another process does."""
        return self._runtime.station(bundle, lane)

    async def infer(
        self, bundle: Bundle[Any], inputs: Mapping[str, Tensor], outputs: Sequence[str], ask: Ask
    ) -> dict[str, NDArray[Any]]:
        """The named outputs for all rows, asked for in batches of at most `max_batch`.

        Raises:
            ModelOutputError: a value is not a number.
            RequestError: the runtime does not answer, or not in time.
        """
        rows = len(next(iter(inputs.values())))
        limit = self._runtime.describe(bundle).max_batch or rows
        size = min(self._settings.max_batch, limit)
        parts = [
            await self._runtime.infer(
                bundle,
                {name: values[start : start + size] for name, values in inputs.items()},
                outputs,
                ask,
            )
            for start in range(0, rows, size)
        ]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in outputs}
        for name, values in joined.items():
            if values.dtype.kind == "f" and np.isnan(values).any():
                raise not_a_number(bundle.name, name)
        return joined

    def info(self, bundle: Bundle[Any]) -> answers.Model:
        """Which weights answer, and what runs them."""
        if known := self._infos.get(bundle.key):
            return known
        backend = self._runtime.describe(bundle)
        info = answers.Model(
            name=bundle.name,
            version=bundle.version,
            digest=bundle.manifest.digest,
            precision=backend.precision or bundle.manifest.graph.precision,
            backend=backend.name,
        )
        self._infos[bundle.key] = info
        return info

    def runtime_details(self, bundle: Bundle[Any]) -> dict[str, str | int]:
        """What an operator wants to know of whatever runs the model."""
        return self._runtime.describe(bundle).details

    async def _load(self, bundles: Iterable[Bundle[Any]]) -> None:
        for bundle in bundles:
            started = time.perf_counter()
            await self._runtime.load(bundle)
            self._infos.pop(bundle.key, None)
            await self._canary(bundle)
            self._metrics.canary()
            seconds = round(time.perf_counter() - started, 3)
            log.info("model loaded", extra={**_prefixed(self.info(bundle)), "seconds": seconds})

    async def _unload(self, bundles: Iterable[Bundle[Any]]) -> None:
        """Unloads what nobody asks any more; a runtime that is away has lost it anyway."""
        for bundle in bundles:
            fields = {"model_name": bundle.name, "model_version": bundle.version}
            try:
                await self._runtime.unload(bundle)
            except TilesightError as error:
                log.warning("model not unloaded", extra={**fields, "reason": str(error)})
            else:
                log.info("model unloaded", extra=fields)

    def _serve(self, served: Served) -> None:
        """From now on requests get these models, all of them at once."""
        if served is not self.served:
            self._snapshot = Snapshot(served)
        bundles = list(served.all())
        self._metrics.models(
            [self.info(bundle) for bundle in bundles],
            {bundle.name: self.runtime_details(bundle) for bundle in bundles},
        )

    def _resume(self) -> None:
        self._obstacle = None
        self._metrics.ready.set(1)

    async def _canary(self, bundle: Bundle[Any]) -> None:
        """Refuses a model that loads and then does not answer as its exporter saw it answer."""
        golden = golden_inputs(bundle.manifest)
        await self._answers_golden(bundle, golden)
        if BATCH1_NAME in bundle.manifest.files:
            # One row was answered by that graph. Of two for each session the first run takes two,
            # which the other graph answers.
            station = self.station(bundle, INTERACTIVE)
            count = 2 * station.plan.sessions if station else 2
            several = {name: np.repeat(values, count, axis=0) for name, values in golden.items()}
            await self._answers_golden(bundle, several)

    async def _answers_golden(self, bundle: Bundle[Any], inputs: Mapping[str, Tensor]) -> None:
        outputs = [spec.name for spec in bundle.manifest.outputs]
        try:
            ask = Ask(INTERACTIVE, time.monotonic() + _CANARY_S, Timing())
            with anyio.fail_after(_CANARY_S):
                # A crew of this process gets all rows at once, to share out.
                here = self.station(bundle, INTERACTIVE) is not None
                infer = self._runtime.infer if here else self.infer
                found = await infer(bundle, inputs, outputs, ask)
        except (RequestError, TimeoutError) as error:
            raise BackendUnavailableError(
                f"{bundle.name} version {bundle.version}: no answer to the golden tile: {error}"
            ) from error
        # ONNX Runtime raises its own classes, all of them straight from Exception.
        except Exception as error:
            raise BundleError(
                f"{bundle.graph}: does not answer the golden tile: {error}"
            ) from error
        first = {name: values[:1] for name, values in found.items()}
        golden = self._runtime.describe(bundle).golden or bundle.manifest.golden
        if problem := disagreement(golden, first):
            raise BundleError(f"{bundle.graph}: answers the golden tile otherwise: {problem}")


def _runtime(settings: Settings, lanes: Lanes) -> Runtime:
    if settings.runtime != "triton":
        return EmbeddedRuntime(settings, lanes)
    # Imported here: without Triton nobody needs its client.
    from serving.triton import TritonRuntime

    return TritonRuntime(settings)


def _without(served: Served, others: Served) -> list[Bundle[Any]]:
    """The versions that the others do not hold."""
    held = {bundle.key for bundle in others.all()}
    return [bundle for bundle in served.all() if bundle.key not in held]


def _prefixed(info: answers.Model) -> dict[str, Any]:
    """The fields under names that a log record does not use itself."""
    return {f"model_{name}": value for name, value in info.model_dump().items()}
