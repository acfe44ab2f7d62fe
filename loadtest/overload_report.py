"""What has to hold of the stages of an overload, and their table."""

import statistics
from collections import Counter
from collections.abc import Sequence

from loadtest.scenario import Check, spread
from loadtest.stage import REFUSALS, Stage

_GOODPUT = 0.95
_MEMORY_GROWTH_MB = 64.0


def criteria(stages: Sequence[Stage], deadline_s: float) -> list[Check]:
    """What has to hold of the open loops, by factor."""
    checks = []
    for factor in sorted({one.factor for one in stages}):
        some = [one for one in stages if one.factor == factor]
        ratios = [one.ratio(per_core=True) for one in some]
        what = "of offered" if factor < 1 else "of peak, per core left"
        checks.append(
            Check(
                f"{factor:g}x: goodput {what}",
                spread(ratios),
                f">= {_GOODPUT}",
                statistics.median(ratios) >= _GOODPUT,
            )
        )
    slowest = max(one.summary.service_ms.get("p99", 0.0) for one in stages)
    statuses: Counter[str] = Counter()
    for one in stages:
        statuses.update(one.summary.statuses)
    others = {
        status: count
        for status, count in statuses.items()
        if not status.startswith("2") and status not in REFUSALS
    }
    bare = sum(one.without_retry_after for one in stages)
    return [
        *checks,
        Check(
            "p99 of what was accepted, worst stage",
            f"{slowest:.0f} ms",
            f"<= {1e3 * deadline_s:.0f} ms",
            slowest <= 1e3 * deadline_s,
        ),
        Check(
            "answers other than 200, 429, 503",
            str(others or "none"),
            "none",
            not others,
        ),
        Check("429 and 503 without Retry-After", str(bare), "0", not bare),
        _memory(stages),
    ]


def _memory(stages: Sequence[Stage]) -> Check:
    """The first stage may still take what it needs; later ones have nothing more to take."""
    sizes = [one.rss_mb for one in stages if one.rss_mb]
    if not sizes:
        return Check("memory under overload", "no process on this machine", "", None)
    before, most, after = sizes[0][0], max(one[1] for one in sizes), sizes[-1][2]
    return Check(
        "memory: before, most, after",
        f"{before:.0f}, {most:.0f}, {after:.0f} MiB",
        f"<= before + {_MEMORY_GROWTH_MB:.0f}",
        most <= before + _MEMORY_GROWTH_MB,
    )


def rows(stages: Sequence[Stage]) -> list[dict[str, object]]:
    """A line for each open loop."""
    return [_row(one) for one in stages]


def _row(one: Stage) -> dict[str, object]:
    summary, share = one.summary, one.share
    refused = {s: n for s, n in summary.statuses.items() if not s.startswith("2")}
    return {
        "load": f"{one.factor:g}x",
        "asked/s": f"{one.factor * one.capacity:.0f}",
        "offered/s": f"{summary.offered_rps:.0f}",
        "peak/s": f"{one.capacity:.0f}",
        "raw/s": f"{one.raw:.0f}",
        "raw/peak": f"{one.ratio(per_core=False):.2f}",
        "per core/peak": f"{one.ratio(per_core=True):.2f}",
        "p50, p99 ms": _pair(summary.service_ms),
        "refused p50, p99 ms": _pair(summary.refused_ms),
        "refused": ", ".join(f"{status}: {count}" for status, count in refused.items()) or "-",
        "cores server+load+rest": (
            f"{share.server:.2f}+{share.generator:.2f}+{share.others:.2f}" if share else "-"
        ),
    }


def refusals(stages: Sequence[Stage], floor_ms: float | None) -> list[dict[str, object]]:
    """CPU for a refusal, and what is left of the peak where each costs as little as it can.

    Args:
        stages: the open loops.
        floor_ms: what a server takes that does nothing else.
    """
    found: list[dict[str, object]] = []
    for factor in sorted({one.factor for one in stages}):
        some = [one for one in stages if one.factor == factor]
        costs = [one.refusal_ms for one in some if one.refusal_ms is not None]
        if not costs or floor_ms is None:
            continue
        bounds = [
            1 - floor_ms / 1e3 * one.refused_rps / one.share.left for one in some if one.share
        ]
        found.append(
            {
                "load": f"{factor:g}x",
                "refused/s": spread([one.refused_rps for one in some], 0),
                "gateway, ms": spread(costs, 3),
                "only refusing, ms": f"{floor_ms:.3f}",
                "so at most of the peak": spread(bounds),
            }
        )
    return found


def _pair(figures: dict[str, float]) -> str:
    return f"{figures['p50']:.1f}, {figures['p99']:.1f}" if figures else "-"
