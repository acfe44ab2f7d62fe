"""What a panel of the board is, and the queries that many of them share."""

from typing import NamedTuple

HERE = '{job=~"$job", instance=~"$instance"'
TILES = f'{HERE}, endpoint=~"/labels|/caption|/vqa"'
WINDOW = "[$__rate_interval]"


class Query(NamedTuple):
    """A line or several on a panel, and what they are called."""

    expr: str
    legend: str


class Panel(NamedTuple):
    """A picture of some queries, its unit as Grafana names it."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    about: str = ""
    kind: str = "timeseries"
    stacked: bool = False


def quantiles(metric: str, by: str, matchers: str) -> tuple[Query, ...]:
    """The median and the 99th percentile of a histogram."""
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    rate = f"sum by ({by}, le) (rate({metric}_bucket{matchers}{WINDOW}))"
    return tuple(
        Query(f"histogram_quantile({share}, {rate})", f"{name} {legend}")
        for share, name in ((0.5, "p50"), (0.99, "p99"))
    )


def rate(metric: str, by: str, matchers: str = f"{HERE}}}") -> str:
    """How often, a second."""
    return f"sum by ({by}) (rate({metric}{matchers}{WINDOW}))"
