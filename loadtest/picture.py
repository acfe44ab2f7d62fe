"""The plots that stand beside a scenario's report."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from loadtest.memory import MIB, Sample
from loadtest.trend import Trend, floors

if TYPE_CHECKING:
    from loadtest.lanes import Turn
    from loadtest.stage import Stage

matplotlib.use("Agg")


def overload_picture(stages: Sequence["Stage"], path: Path) -> None:
    """Goodput and p99 against what was offered, both in logarithmic scale of the load."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    goodput, latency = figure.subplots(1, 2)
    factors = [one.factor for one in stages]
    goodput.plot(factors, [one.ratio(per_core=True) * one.due for one in stages], "o")
    goodput.plot(factors, [one.ratio(per_core=False) * one.due for one in stages], "x")
    goodput.axhline(0.95, linestyle=":", color="grey")
    goodput.legend(["per core left", "raw", "0.95"])
    goodput.set(xscale="log", ylim=(0, None), xlabel="offered / capacity", ylabel="goodput / peak")
    latency.plot(factors, [one.summary.service_ms.get("p50") for one in stages], "o")
    latency.plot(factors, [one.summary.service_ms.get("p99") for one in stages], "x")
    latency.legend(["p50", "p99"])
    latency.set(xscale="log", ylim=(0, None), xlabel="offered / capacity", ylabel="accepted, ms")
    figure.savefig(path, dpi=120)


def memory_picture(samples: Sequence[Sample], trend: Trend | None, path: Path) -> None:
    """Memory over the requests, with the floor that was judged."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    requests = [one.requests for one in samples]
    axes.plot(requests, [one.rss / MIB for one in samples], color="lightgrey", label="resident")
    axes.plot(requests, [one.anonymous / MIB for one in samples], label="anonymous")
    if trend is not None:
        judged = samples[-trend.samples :]
        x, y = floors(judged)
        axes.plot(x * 10_000, y, "k.", label="floor that was judged")
        title = f"{trend.verdict}: {trend.slope.middle:+.3f} MiB for 10,000 requests"
        axes.set_title(f"{title} ({trend.slope.low:+.3f} to {trend.slope.high:+.3f})")
    axes.set(xlabel="requests", ylabel="MiB", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=120)


def lanes_picture(alone: Sequence["Turn"], beside: Sequence["Turn"], path: Path) -> None:
    """The part of the interactive requests that took longer than a time, alone and beside."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, turns in (("alone", alone), ("beside a backfill", beside)):
        ms = np.sort(np.concatenate([one.latencies for one in turns])) * 1e3
        axes.plot(ms, 1 - np.arange(len(ms)) / len(ms), label=name)
    axes.axhline(0.01, linestyle=":", color="grey")
    axes.set(xscale="log", yscale="log", xlabel="ms", ylabel="part that took longer")
    axes.legend()
    figure.savefig(path, dpi=120)
