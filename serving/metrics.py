"""What Prometheus sees: durations in seconds, rejections by type, the models behind the answers."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.answers import Model

_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip


class Metrics:
    """The gateway's instruments in a registry of their own, so that two gateways never share."""

    def __init__(self) -> None:
        """Instruments that have seen nothing yet."""
        self.registry = CollectorRegistry()
        self._requests = Histogram(
            "tilesight_request_duration_seconds",
            "From the first byte of the request's header to the first byte of the answer.",
            ["endpoint", "status"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._stages = Histogram(
            "tilesight_stage_duration_seconds",
            "Time in one stage: decode and postprocess a request, queue and infer a batch.",
            ["stage", "model"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._rejections = Counter(
            "tilesight_rejections_total",
            "Requests answered with a problem, by the type of the problem.",
            ["type"],
            registry=self.registry,
        )
        self._models = Gauge(
            "tilesight_model_info",
            "1 for each model that is served.",
            ["name", "version", "digest", "precision", "backend"],
            registry=self.registry,
        )
        self._follow_failures = Counter(
            "tilesight_follow_failures_total",
            "Promotions that could not be served; the versions before them went on answering.",
            registry=self.registry,
        )
        self.ready = Gauge(
            "tilesight_ready", "1 once every model answered its canary.", registry=self.registry
        )
        self.in_flight = Gauge(
            "tilesight_requests_in_flight", "Requests with tiles now held.", registry=self.registry
        )

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Counts an answered request."""
        self._requests.labels(endpoint, str(status)).observe(seconds)

    def stage(self, stage: str, model: str, seconds: float) -> None:
        """Counts the time that one stage took for one model."""
        self._stages.labels(stage, model).observe(seconds)

    def rejection(self, slug: str) -> None:
        """Counts a problem."""
        self._rejections.labels(slug).inc()

    def models(self, infos: Iterable[Model]) -> None:
        """Announces the models that are served, in place of those before them."""
        self._models.clear()
        for info in infos:
            self._models.labels(**info.model_dump()).set(1)

    def follow_failure(self) -> None:
        """Counts a promotion that could not be served."""
        self._follow_failures.inc()

    def page(self) -> bytes:
        """All of it in the text format of Prometheus."""
        return generate_latest(self.registry)
