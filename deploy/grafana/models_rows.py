"""The rows about what answers: the models, what they say, the processes, Triton."""

from panels import HERE, WINDOW, Panel, Query, quantiles


def models() -> tuple[Panel, ...]:
    """What answers."""
    return (
        Panel(
            "Models",
            "short",
            (
                Query(
                    "max by (name, version, precision, backend, sessions, threads, batch, digest) "
                    f"(tilesight_model_info{HERE}}})",
                    "",
                ),
            ),
            kind="table",
        ),
        Panel(
            "Ready, and how long ago the models answered their golden tiles",
            "short",
            (
                Query(f"min by (instance) (tilesight_ready{HERE}}})", "ready {{instance}}"),
                Query(
                    f"(time() - min(tilesight_canary_success_timestamp_seconds{HERE}}} > 0))"
                    " / 3600",
                    "golden tiles, hours ago",
                ),
                Query(
                    f"sum(increase(tilesight_follow_failures_total{HERE}}}[1h]))",
                    "promotions that failed, last hour",
                ),
            ),
        ),
    )


def drift() -> tuple[Panel, ...]:
    """What the models say, beside what they said."""
    here = f'{HERE}, model=~"$model"}}'
    return (
        Panel(
            "Share of the tiles on which a label is seen",
            "percentunit",
            (
                Query(
                    f"sum by (model, label) (increase(tilesight_label_present_total{here}[1h])) / "
                    f"sum by (model, label) (increase(tilesight_label_score_count{here}[1h]))",
                    "{{model}} {{label}}",
                ),
            ),
        ),
        Panel(
            "Today less the last week",
            "percentunit",
            (
                Query(
                    "tilesight:label_present:ratio1d - tilesight:label_present:ratio7d",
                    "{{model}} {{label}}",
                ),
            ),
            "Recorded by deploy/prometheus/rules.yaml.",
        ),
        Panel(
            "Mean score",
            "percentunit",
            (
                Query(
                    f"sum by (model, label) (increase(tilesight_label_score_sum{here}[1h])) / "
                    f"sum by (model, label) (increase(tilesight_label_score_count{here}[1h]))",
                    "{{model}} {{label}}",
                ),
            ),
        ),
        Panel(
            "Scores of all labels",
            "short",
            (Query(f"sum by (le) (increase(tilesight_label_score_bucket{here}[1h]))", "{{le}}"),),
            kind="heatmap",
        ),
    )


def process() -> tuple[Panel, ...]:
    """The processes themselves."""
    return (
        Panel(
            "Cores in use",
            "short",
            (
                Query(
                    f"sum by (instance) (rate(process_cpu_seconds_total{HERE}}}{WINDOW}))",
                    "{{instance}}",
                ),
            ),
        ),
        Panel(
            "Memory",
            "bytes",
            (Query(f"sum by (instance) (process_resident_memory_bytes{HERE}}})", "{{instance}}"),),
        ),
        Panel(
            "Lag of the event loop",
            "s",
            quantiles("tilesight_event_loop_lag_seconds", "instance", f"{HERE}}}"),
        ),
        Panel(
            "Workers and open files",
            "short",
            (
                Query(f"sum(tilesight_workers{HERE}}})", "workers"),
                Query(f"sum(process_open_fds{HERE}}})", "open files"),
            ),
        ),
    )


def triton() -> tuple[Panel, ...]:
    """What Triton says of itself, where it runs the models."""
    runs = "sum by (model, version) (rate(nv_inference_exec_count[$__rate_interval]))"

    def mean(part: str) -> Query:
        return Query(
            f"sum by (model) (rate(nv_inference_{part}_duration_us[$__rate_interval])) / "
            "sum by (model) (rate(nv_inference_request_success[$__rate_interval])) / 1e6",
            f"{part} {{{{model}}}}",
        )

    return (
        Panel(
            "Triton: rows",
            "short",
            (
                Query(
                    "sum by (model, version) (rate(nv_inference_count[$__rate_interval]))",
                    "rows/s {{model}} {{version}}",
                ),
                Query(
                    "sum by (model, version) (rate(nv_inference_count[$__rate_interval])) / "
                    + runs,
                    "rows a run {{model}} {{version}}",
                ),
            ),
        ),
        Panel(
            "Triton: mean time",
            "s",
            (mean("queue"), mean("compute_infer")),
        ),
        Panel(
            "Triton: failures and waiting",
            "short",
            (
                Query(
                    "sum by (model, reason) (rate(nv_inference_request_failure[$__rate_interval]))",
                    "{{reason}} {{model}}",
                ),
                Query("sum by (model) (nv_inference_pending_request_count)", "waiting {{model}}"),
            ),
        ),
    )
