"""What a load saw: when each request was due, sent and answered, and the figures made of that."""

import time
from array import array
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNANSWERED = 0
"""The status of a request that got no answer; `Outcome.errors` says why."""


@dataclass(slots=True)
class Outcome:
    """Four numbers a request, in the order of the answers; times in seconds of `perf_counter`."""

    started: float = 0.0
    warmup_s: float = 0.0
    seconds: float = 0.0
    cpu_s: float = 0.0  # of the process that made the load, while it made it
    intended: "array[float]" = field(default_factory=lambda: array("d"))
    sent: "array[float]" = field(default_factory=lambda: array("d"))
    done: "array[float]" = field(default_factory=lambda: array("d"))
    status: "array[int]" = field(default_factory=lambda: array("H"))
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, intended: float, sent: float, status: int) -> None:
        """An answer that came just now."""
        self.intended.append(intended)
        self.sent.append(sent)
        self.done.append(time.perf_counter())
        self.status.append(status)

    def summary(self) -> "Summary":
        """The figures of the window: what was due in it, and what was answered in it."""
        begin, end = self.started + self.warmup_s, self.started + self.warmup_s + self.seconds
        intended, done = np.frombuffer(self.intended), np.frombuffer(self.done)
        status = np.frombuffer(self.status, dtype=np.uint16)
        due = (intended >= begin) & (intended < end)
        answered = (done >= begin) & (done < end)
        good = (status >= 200) & (status < 300)
        # A request that never came back has waited at least until the end: leaving it out would
        # make a server look the better the more it loses.
        served = due & (good | (status == UNANSWERED))
        late = np.frombuffer(self.sent)[due] - intended[due]
        return Summary(
            seconds=self.seconds,
            requests=int(due.sum()),
            offered_rps=int(due.sum()) / self.seconds,
            throughput_rps=int((answered & (status != UNANSWERED)).sum()) / self.seconds,
            goodput_rps=int((answered & good).sum()) / self.seconds,
            latency_ms=percentiles((done - intended)[served]),
            service_ms=percentiles((done - np.frombuffer(self.sent))[due & good]),
            refused_ms=percentiles((done - intended)[due & (status >= 400)]),
            send_delay_ms=percentiles(late),
            statuses={str(one): int(n) for one, n in Counter(status[due].tolist()).items()},
            errors=dict(self.errors),
            answers=int(good.sum()),
            client_cpu_us=1e6 * self.cpu_s / max(1, len(status)),
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one load; latencies count from when a request was due, in milliseconds."""

    seconds: float
    requests: int
    offered_rps: float
    throughput_rps: float  # answers of any status
    goodput_rps: float  # answers 2xx
    latency_ms: dict[str, float]  # of 2xx, and of what was never answered, as long as it was waited
    service_ms: dict[str, float]  # of 2xx, from the moment of sending
    refused_ms: dict[str, float]  # of 4xx and 5xx
    send_delay_ms: dict[str, float]  # until a connection was free
    statuses: dict[str, int]  # "0" was not answered
    errors: dict[str, int]
    answers: int  # 2xx of the whole load, warm-up and end included
    client_cpu_us: float  # a request

    def as_json(self) -> dict[str, Any]:
        """What `json.dumps` takes and `Summary(**...)` gives back."""
        return asdict(self)


_RANKS = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9}


def percentiles(seconds: NDArray[np.float64]) -> dict[str, float]:
    """mean, p50, p90, p99, p999 and max in milliseconds; empty where there is nothing."""
    if not len(seconds):
        return {}
    values = np.percentile(seconds, list(_RANKS.values())) * 1e3
    figures = dict(zip(_RANKS, values.tolist(), strict=True))
    return {"mean": float(seconds.mean() * 1e3), **figures, "max": float(seconds.max() * 1e3)}
