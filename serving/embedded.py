"""Models inside the process: in ONNX Runtime, and where it was allowed and is faster, OpenVINO."""

import ctypes
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from serving import autotune, heap, ways
from serving.jobs import Ask, Job
from serving.lanes import BACKFILL, INTERACTIVE, Lanes
from serving.repository import Bundle
from serving.runtime import Backend, Tensor
from serving.sessions import CUDA, FATAL_ONLY, Session
from serving.settings import Settings
from serving.stations import Plan, Station
from serving.ways import Way
from tilesight.errors import ConfigError

log = logging.getLogger("tilesight.runtime")

# A GPU runs one batch after the other; the second run hides the copies of the first.
_CUDA_SESSIONS = 2
_MODELS = 4


@dataclass(frozen=True)
class _Loaded:
    """A version, how it is run, and where."""

    way: Way
    provider: str
    stations: Mapping[str, Station]


class EmbeddedRuntime:
    """A station a version in each lane, worked by the lanes' crews."""

    def __init__(self, settings: Settings, lanes: Lanes) -> None:
        """A runtime without models; finds out which device it can use.

        Raises:
            ConfigError: the GPU was asked for and cannot be used.
        """
        self._settings = settings
        self._lanes = lanes
        self._loaded: dict[tuple[str, int], _Loaded] = {}
        self._plans: dict[str, Plan] = {}
        self._cache = autotune.Cache(autotune.cache_folder(settings.cache_dir))
        self._cuda, reason = (
            _cuda_usable() if settings.device != "cpu" else (False, "not asked for")
        )
        if settings.device == "cuda" and not self._cuda:
            raise ConfigError(f"TILESIGHT_DEVICE: cuda: {reason}")
        self._required = settings.device == "cuda"
        if not self._cuda:
            log.info("runs on the CPU", extra={"cores": lanes.cores, "no_gpu": reason})

    async def load(self, bundle: Bundle[Any]) -> None:
        """Opens the sessions in a worker thread and holds their tensors against the manifest."""
        if bundle.key in self._loaded:
            return
        loaded = await anyio.to_thread.run_sync(self._open, bundle)
        self._loaded[bundle.key] = loaded
        for lane, station in loaded.stations.items():
            self._lanes[lane].crew.open(station)

    async def unload(self, bundle: Bundle[Any]) -> None:
        """Frees the sessions; a run that still uses one ends first."""
        if loaded := self._loaded.pop(bundle.key, None):
            for lane, station in loaded.stations.items():
                self._lanes[lane].crew.shut(station)
            del loaded, station
            await anyio.to_thread.run_sync(heap.give_back)

    def station(self, bundle: Bundle[Any], lane: str) -> Station:
        """Where the lane's crew runs the version."""
        return self._loaded[bundle.key].stations[lane]

    async def infer(
        self, bundle: Bundle[Any], inputs: Mapping[str, Tensor], outputs: Sequence[str], ask: Ask
    ) -> dict[str, NDArray[Any]]:
        """The named outputs for one batch, run together with whatever else waits."""
        count = len(next(iter(inputs.values())))
        rows = [{name: values[row] for name, values in inputs.items()} for row in range(count)]
        job = Job(self.station(bundle, ask.lane), outputs, rows, ask)
        results = await self._lanes[ask.lane].crew.finish(job)
        return {name: np.stack([row[name] for row in results]) for name in outputs}

    async def holds(self, bundle: Bundle[Any]) -> bool:
        """Whether there are sessions; nobody takes them away."""
        return bundle.key in self._loaded

    def describe(self, bundle: Bundle[Any]) -> Backend:
        """The provider that the session really got, and how it is run."""
        loaded = self._loaded[bundle.key]
        way, plan = loaded.way, loaded.stations[INTERACTIVE].plan
        device = loaded.provider.removesuffix("ExecutionProvider").lower()
        return Backend(
            f"{way.library}-{device}",
            {
                "runtime": "embedded",
                way.library: way.version,
                "provider": loaded.provider,
                "sessions": plan.sessions,
                "threads": plan.threads,
                "batch": plan.batch,
                "lone_threads": max(plan.lone, plan.threads),
            },
            precision=way.precision,
            golden=way.golden,
        )

    async def close(self) -> None:
        """Ends the crews, then frees the sessions."""
        await anyio.to_thread.run_sync(self._lanes.close)
        self._loaded.clear()

    # --- In a worker thread

    def _open(self, bundle: Bundle[Any]) -> _Loaded:
        possible = {way.name: way for way in self._ways(bundle)}
        plan = self._plan(bundle, possible)
        way = possible[plan.way]
        sessions = way.open(plan.threads, plan.sessions)
        self._check_device(bundle, sessions[0])
        lone = way.open(plan.lone, 1)[0] if plan.lone > plan.threads else None
        behind = sessions
        if plan.threads > 1 or way.library != "onnxruntime":
            # A pool of threads keeps the priority of the thread that made it, and the runs of
            # OpenVINO take turns: a person's would wait for a backfill's.
            nice = self._lanes[BACKFILL].crew.nice
            with ThreadPoolExecutor(1, initializer=_stand_back, initargs=(nice,)) as standing_back:
                behind = standing_back.submit(way.open, plan.threads, plan.sessions).result()
        stations = {
            INTERACTIVE: Station(bundle.name, plan, sessions, lone),
            BACKFILL: Station(bundle.name, plan, behind),
        }
        return _Loaded(way, sessions[0].provider, stations)

    def _ways(self, bundle: Bundle[Any]) -> list[Way]:
        found = [ways.onnxruntime(bundle, self._cuda)]
        if self._settings.runtime == "openvino":
            found += ways.openvino(bundle)
        return found

    def _plan(self, bundle: Bundle[Any], possible: Mapping[str, Way]) -> Plan:
        """As set, as found before, as the version before had it, or measured now."""
        settings, cores = self._settings, self._lanes.cores
        # Where nobody measures it is the graph that the export chose to serve.
        untuned = autotune.untuned(next(iter(possible)), cores, settings.max_batch)
        if settings.sessions or settings.threads:
            threads = settings.threads or max(1, cores // (settings.sessions or cores))
            sessions = settings.sessions or max(1, cores // threads)
            return Plan(untuned.way, sessions, threads, untuned.batch)
        if self._cuda:
            return Plan(untuned.way, _CUDA_SESSIONS, 1, settings.max_batch, apart=False)
        if not settings.autotune_s:
            return untuned
        key = autotune.cache_key(bundle, possible.values(), cores, settings.max_batch)
        known = self._cache.get(key)
        if known is None:
            before = self._plans.get(bundle.name)
            if before and before.way in possible:
                # Requests are being answered: to measure now would hurt them, and say little.
                return before
            known = self._measured(bundle, possible, key)
        self._plans[bundle.name] = known
        return known

    def _measured(self, bundle: Bundle[Any], possible: Mapping[str, Way], key: str) -> Plan:
        """The plan that is fastest here; another worker may have found it meanwhile."""
        settings = self._settings
        with self._cache.alone():
            if known := self._cache.get(key):
                return known
            found, rate = autotune.tuned(
                bundle,
                possible.values(),
                self._lanes.cores,
                settings.max_batch,
                settings.autotune_s / _MODELS,
            )
            log.info(
                "plan found",
                extra={"model": bundle.name, "plan": str(found), "rows_s": round(rate)},
            )
            self._cache.keep(key, found)
        return found

    def _check_device(self, bundle: Bundle[Any], session: Session) -> None:
        """Says so where the GPU was asked for and the session runs on the CPU all the same."""
        if self._cuda and session.provider != CUDA:
            if self._required:
                raise ConfigError(f"TILESIGHT_DEVICE: cuda: {bundle.name} cannot run on the GPU")
            log.warning(
                "runs on the CPU although there is a GPU: the CUDA libraries cannot be loaded",
                extra={"model": bundle.name},
            )


def _stand_back(nice: int) -> None:
    """This thread, and those that it starts, stand back behind others."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)


def _cuda_usable() -> tuple[bool, str]:
    """Whether to ask for the GPU, and if not, why; asking in vain prints pages of warnings."""
    ort.set_default_logger_severity(FATAL_ONLY)
    if CUDA not in ort.get_available_providers():
        return False, "this ONNX Runtime is built without CUDA"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False, "no NVIDIA driver"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return False, "the NVIDIA driver does not answer"
    if count.value == 0:
        return False, "no NVIDIA device"
    ort.preload_dlls()
    return True, ""
