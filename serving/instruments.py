"""The instruments of the gateway: their names, labels and buckets, and nothing else."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Instruments:
    """All that is counted; docs/metrics.md has each name with its meaning.

    The mode of a gauge says what becomes of the values of several workers.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        """Instruments that have seen nothing yet."""
        self.request_seconds = Histogram(
            "tilesight_request_duration_seconds",
            "From the end of the request's header to the first byte of the answer.",
            ["endpoint", "status", "lane"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "tilesight_stage_duration_seconds",
            "Time of an answered request with tiles in one stage, and in all: total.",
            ["stage", "model", "version", "backend"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_rows = Histogram(
            "tilesight_batch_rows",
            "Rows of one run of a model.",
            ["model"],
            buckets=_ROWS,
            registry=registry,
        )
        self.rejections = Counter(
            "tilesight_rejections_total",
            "Requests answered with a problem, by the type of the problem.",
            ["type"],
            registry=registry,
        )
        self.follow_failures = Counter(
            "tilesight_follow_failures_total",
            "Promotions that could not be served; the versions before them went on answering.",
            registry=registry,
        )
        self.loop_lag = Histogram(
            "tilesight_event_loop_lag_seconds",
            "How much later than asked for the event loop woke a timer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._gauges(registry)

    def _gauges(self, registry: CollectorRegistry) -> None:
        self.queue_images = Gauge(
            "tilesight_queue_images",
            "Tiles that wait or are worked on.",
            ["lane"],
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.queue_oldest = Gauge(
            "tilesight_queue_oldest_seconds",
            "How long the tile has waited that waits longest.",
            ["lane"],
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.lane_requests = Gauge(
            "tilesight_requests_in_flight",
            "Requests with tiles that are held now.",
            ["lane"],
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.canary = Gauge(
            "tilesight_canary_success_timestamp_seconds",
            "When a model last answered its golden tile, in seconds since 1970.",
            multiprocess_mode="livemin",
            registry=registry,
        )
        self.ready = Gauge(
            "tilesight_ready",
            "1 once every model answered its canary, until SIGTERM.",
            multiprocess_mode="livemin",
            registry=registry,
        )
        Gauge(
            "tilesight_workers",
            "Processes that serve.",
            multiprocess_mode="livesum",
            registry=registry,
        ).set(1)
        self.deadline = Gauge(
            "tilesight_deadline_seconds",
            "What a request gets that names no deadline of its own.",
            multiprocess_mode="max",
            registry=registry,
        )
        self.queue_limit = Gauge(
            "tilesight_queue_limit_seconds",
            "How long the oldest tile may wait before others are refused.",
            multiprocess_mode="max",
            registry=registry,
        )
