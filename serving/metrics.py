"""What Prometheus sees of the gateway; docs/metrics.md has every name with its meaning."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from prometheus_client import (
    CollectorRegistry,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from serving.answers import Model
from serving.collectors import Build, Models, Processes
from serving.drift import Drift
from serving.instruments import Instruments
from serving.sharing import Shared
from serving.timing import LaneState, Timing

_STAGES = ("admission", "decode", "queue", "infer", "postprocess", "total")
_NO_LANES: tuple[LaneState, ...] = ()
# When each series began is of no use here and would double the page.
disable_created_metrics()  # type: ignore[no-untyped-call]

Observer = Callable[[float], None]


class Metrics:
    """The gateway's instruments in a registry of their own, so that two gateways never share.

    A child of an instrument is looked up once and kept: that is what makes a request cheap.
    """

    def __init__(self, shared: Shared | None = None) -> None:
        """Instruments that have seen nothing yet; with `shared` they count for all workers.

        `shared` must have been installed before.
        """
        registry = CollectorRegistry()
        self._exposed = registry if shared is None else _of_all(shared)
        self._drift = Drift(shared)
        self._models = Models()
        for collector in (self._drift, self._models, Build()):
            self._exposed.register(collector)
        if shared is None:
            ProcessCollector(registry=registry)
        self._lanes: Callable[[], Iterable[LaneState]] = lambda: _NO_LANES
        self._requests: dict[tuple[str, int, str], Observer] = {}
        self._stages: dict[tuple[str, int, str], tuple[Observer, ...]] = {}
        self._rows: dict[str, Observer] = {}
        self._refusals: dict[str, Callable[[], None]] = {}
        self._told = Instruments(registry)
        self.ready = self._told.ready

    def request(self, endpoint: str, status: int, seconds: float, lane: str = "") -> None:
        """Counts an answered request."""
        key = endpoint, status, lane
        observe = self._requests.get(key)
        if observe is None:
            observe = self._told.request_seconds.labels(endpoint, str(status), lane).observe
            self._requests[key] = observe
        observe(seconds)

    def stages(self, timing: Timing, total_s: float) -> None:
        """Counts where the time of an answered request went; nothing if no model answered it."""
        model = timing.model
        if model is None:
            return
        key = model.name, model.version, model.backend
        found = self._stages.get(key)
        if found is None:
            found = tuple(self._told.stage_seconds.labels(one, *key).observe for one in _STAGES)
            self._stages[key] = found
        admission, decode, queue, infer, postprocess, total = found
        admission(timing.admission)
        decode(timing.decode)
        queue(timing.queue)
        infer(timing.infer)
        postprocess(timing.postprocess)
        total(total_s)

    def batch(self, model: str, rows: int) -> None:
        """Counts a run of the model."""
        observe = self._rows.get(model)
        if observe is None:
            observe = self._rows[model] = self._told.batch_rows.labels(model).observe
        observe(rows)

    def scores(
        self,
        model: str,
        labels: Sequence[str],
        scores: NDArray[Any],
        thresholds: ArrayLike = np.inf,
    ) -> None:
        """Counts (N, L) or (L,) scores of the labels, and which reach the (L,) thresholds.

        It is cheapest where `labels` and `thresholds` are the same objects each time.
        """
        self._drift.add(model, labels, scores, thresholds)

    def rejection(self, slug: str) -> None:
        """Counts a problem."""
        count = self._refusals.get(slug)
        if count is None:
            count = self._refusals[slug] = self._told.rejections.labels(slug).inc
        count()

    def models(
        self,
        infos: Iterable[Model],
        details: Mapping[str, Mapping[str, str | int]] | None = None,
    ) -> None:
        """Announces the models that are served, in place of those before them.

        `details` has, by the name of the model, how it is run: threads, sessions, batch.
        """
        self._models.replace(infos, details or {})

    def limits(self, deadline_s: float, max_queue_s: float) -> None:
        """Announces what latency and age are measured against."""
        self._told.deadline.set(deadline_s)
        self._told.queue_limit.set(max_queue_s)

    def canary(self) -> None:
        """Notes that the models have just answered their golden tiles."""
        self._told.canary.set(time.time())

    def follow_failure(self) -> None:
        """Counts a promotion that could not be served."""
        self._told.follow_failures.inc()

    def loop_lag(self, seconds: float) -> None:
        """Counts by how much the event loop was late."""
        self._told.loop_lag.observe(seconds)

    def queues(self, source: Callable[[], Iterable[LaneState]]) -> None:
        """Lanes are told as `source` says at that moment; it is called in the event loop."""
        self._lanes = source

    def publish(self) -> None:
        """Puts what is only known at this moment where a scrape of any worker finds it."""
        self._drift.fold()
        for state in self._lanes():
            self._told.queue_images.labels(state.lane).set(state.images)
            self._told.queue_oldest.labels(state.lane).set(state.oldest_s)
            self._told.lane_requests.labels(state.lane).set(state.in_flight)

    def page(self) -> bytes:
        """All of it in the text format of Prometheus."""
        return generate_latest(self._exposed)


def _of_all(shared: Shared) -> CollectorRegistry:
    """A registry that tells the counts of all workers."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(shared.folder))  # type: ignore[no-untyped-call]
    registry.register(Processes(shared))
    return registry
