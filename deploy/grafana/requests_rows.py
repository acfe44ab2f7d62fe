"""The rows about requests: who asks, where the time goes, how full it is."""

from panels import HERE, TILES, WINDOW, Panel, Query, quantiles, rate


def traffic() -> tuple[Panel, ...]:
    """Who asks, and how it goes."""
    seconds = "tilesight_request_duration_seconds"
    return (
        Panel(
            "Requests with tiles",
            "reqps",
            (
                Query(
                    rate(f"{seconds}_count", "endpoint, status", f"{TILES}}}"),
                    "{{endpoint}} {{status}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Latency of what was answered, by lane",
            "s",
            quantiles(seconds, "endpoint, lane", f'{TILES}, status="200"}}'),
            "From the end of the request's header to the first byte of the answer.",
        ),
        Panel(
            "Not answered",
            "percentunit",
            (
                Query(
                    f'sum(rate({seconds}_count{TILES}, status=~"500|502|504"}}{WINDOW})) / '
                    f"sum(rate({seconds}_count{TILES}}}{WINDOW}))",
                    "failed",
                ),
                Query(
                    f'sum(rate({seconds}_count{TILES}, status=~"429|503"}}{WINDOW})) / '
                    f"sum(rate({seconds}_count{TILES}}}{WINDOW}))",
                    "refused",
                ),
            ),
        ),
        Panel(
            "Rejections by problem",
            "reqps",
            (Query(rate("tilesight_rejections_total", "type"), "{{type}}"),),
            "The end of the problem's type; docs/api.md explains each.",
            stacked=True,
        ),
    )


def stages() -> tuple[Panel, ...]:
    """Where the time goes."""
    seconds = "tilesight_stage_duration_seconds"
    mean = (
        f'sum by (stage) (rate({seconds}_sum{HERE}, stage!="total", model=~"$model"}}{WINDOW}))'
        f' / sum by (stage) (rate({seconds}_count{HERE}, stage!="total", model=~"$model"}}'
        f"{WINDOW}))"
    )
    return (
        Panel("Mean time by stage", "s", (Query(mean, "{{stage}}"),), stacked=True),
        Panel(
            "Stages",
            "s",
            quantiles(seconds, "stage", f'{HERE}, model=~"$model"}}'),
        ),
        Panel(
            "Total by model and version",
            "s",
            quantiles(seconds, "model, version, backend", f'{HERE}, stage="total"}}'),
        ),
    )


def queue() -> tuple[Panel, ...]:
    """How full it is."""
    return (
        Panel(
            "Tiles that wait or are worked on",
            "short",
            (Query(f"sum by (lane) (tilesight_queue_images{HERE}}})", "{{lane}}"),),
        ),
        Panel(
            "Age of the oldest tile",
            "s",
            (
                Query(f"max by (lane) (tilesight_queue_oldest_seconds{HERE}}})", "{{lane}}"),
                Query(f"max(tilesight_queue_limit_seconds{HERE}}})", "limit"),
            ),
        ),
        Panel(
            "Requests in flight",
            "short",
            (Query(f"sum by (lane) (tilesight_requests_in_flight{HERE}}})", "{{lane}}"),),
        ),
        Panel(
            "Rows of a run",
            "short",
            (
                Query(
                    f"{rate('tilesight_batch_rows_sum', 'model')} / "
                    f"{rate('tilesight_batch_rows_count', 'model')}",
                    "mean {{model}}",
                ),
            ),
            "Of models that run in this process; Triton's batches are in its own row.",
        ),
    )
