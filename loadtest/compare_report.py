"""The table of a comparison, as Markdown, made of its cells."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtest.cells import ABOUT, read_cells
from loadtest.lineup import SETTINGS
from loadtest.ratios import BARE, Figures, Spread

REPORT = "report.md"
TITLES = {
    BARE: "bare decode + session loop",
    "gateway": "**this gateway**",
    "fastapi_torch": "FastAPI + torch eager",
    "fastapi_onnxruntime": "FastAPI + ONNX Runtime",
    "litserve": "LitServe",
    "bentoml": "BentoML",
    "gateway_processes": "this gateway, a process a core",
    "gateway_single_rows": "this gateway without batches",
    "gateway_triton": "this gateway over Triton",
    "gateway_openvino": "this gateway with OpenVINO",
}
GATEWAY = "gateway"
_PROCESSES = "gateway_processes"
_OPENVINO = "gateway_openvino"
_BUSY = 0.8  # of the capacity: where a server should still be at ease


def write_report(folder: Path) -> Path:
    """The path of `report.md`, written from what lies in the folder."""
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    path = folder / REPORT
    path.write_text(markdown(Figures(list(read_cells(folder))), about, settings), encoding="utf-8")
    return path


def markdown(figures: Figures, about: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The whole report."""
    subjects = figures.subjects()
    sections = [
        f"# {about['endpoint']}, {about['model']} {about['precision']}: the limit and the peers",
        _about(figures, about),
        "## At saturation",
        _saturation(figures, subjects),
        _legend(about),
        "## What was wanted",
        _wanted(figures, about, settings),
        "## Closed loop: answers a second",
        _closed(figures, subjects, ("goodput_rps",), 0),
        "## Closed loop: p50 / p99, ms",
        _latencies(figures, subjects, "closed"),
        "## Open loop: offered and answered a second",
        _offered(figures, subjects),
        "## Open loop: p50 / p99, ms, counted from when a request was due",
        _latencies(figures, subjects, "open"),
        "## Settings",
        _settings(settings),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _about(figures: Figures, about: Mapping[str, Any]) -> str:
    foreign = figures.foreign()
    lines = [
        f"- {about['cpu']}, {about['cores']} cores; server and load share them",
        f"- {about['tiles']}; graph sha256 {about['graph_sha256'][:12]}; {about['versions']}",
        f"- {about['repeats']} repeats of {about['seconds']:g} s a cell (open loop: 1.5 times), "
        "everybody in turn; ratios are formed within a round, then median (least-greatest)",
    ]
    if foreign is not None:
        lines.append(f"- cores used by others meanwhile: {foreign.text()}")
    return "\n".join(lines)


def _saturation(figures: Figures, subjects: Sequence[str]) -> str:
    rows = []
    busy = min(figures.levels(GATEWAY, "open"), key=lambda one: abs(one - _BUSY), default=_BUSY)
    for subject in subjects:
        level = figures.saturation(subject)
        if level is None:
            continue
        if subject == BARE:  # the same at every level: that of the gateway's rounds
            level = figures.saturation(GATEWAY) or level
        rate = figures.figure(subject, "closed", level, "goodput_rps")
        rows.append(
            [
                TITLES[subject],
                "-" if subject == BARE else f"{level:g}",
                _text(rate, 0),
                "1" if subject == BARE else _text(figures.efficiency(subject)),
                "" if subject in (GATEWAY, BARE) else _text(figures.times(GATEWAY, subject)),
                _text(figures.cpu(subject)),
                "1" if subject == BARE else _text(figures.by_cpu(subject)),
                _text(figures.figure(subject, "open", busy, "latency_ms", "p99"), 1),
                _text(figures.figure(subject, "closed", level, "rss_mib"), 0),
            ]
        )
    head = ["", "connections", "answers/s", "of the bare loop", "gateway: times as many",
            "CPU ms/answer", "bare loop's CPU over it", f"p99 ms at {busy:.0%}",
            "RSS MiB"]  # fmt: skip
    return _table(head, rows)


def _legend(about: Mapping[str, Any]) -> str:
    notes = [
        "Each at the number of connections at which it does best; p99 in the open loop, all at the "
        "same offered load. CPU is of all processes of a server, without the load generator's. RSS "
        "counts shared pages for each process."
    ]
    notes += [
        f"Not measured: {TITLES.get(name, name)}: {why}" for name, why in about["left_out"].items()
    ]
    return "\n\n".join(notes)


def _wanted(figures: Figures, about: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    rows = []

    def row(what: str, found: Spread | None, limit: float | None, sign: str = "") -> None:
        if found is not None and limit is None:
            rows.append([what, found.text(), "-", "-"])
        elif found is not None and limit is not None:
            holds = found.median >= limit if sign == ">=" else found.median <= limit
            rows.append([what, found.text(), f"{sign} {limit:g}", "yes" if holds else "**no**"])

    row("served / bare loop at saturation", figures.efficiency(GATEWAY), 0.95, ">=")
    plan = settings.get(GATEWAY, {}).get("setting", {})
    threads = plan.get("threads", 1)
    for count in figures.levels(BARE, "one"):
        alike = count == threads
        how = f"{count:g} threads a run{', as the gateway has it' if alike else ''}"
        what = f"p50 added at one connection, ms (bare loop with {how})"
        row(what, figures.added_p50(GATEWAY, count), 1.5 if alike else None, "<=")
    for subject, limit in _limits(about["precision"]).items():
        row(f"times {TITLES[subject]}", figures.times(GATEWAY, subject), limit, ">=")
    row("a process a core: served / bare loop", figures.efficiency(_PROCESSES), 0.95, ">=")
    with_processes = figures.times(_PROCESSES, "fastapi_onnxruntime")
    row("a process a core: times FastAPI + ONNX Runtime", with_processes, 1.05, ">=")
    row("times itself without batches", figures.times(GATEWAY, "gateway_single_rows"), 1.0, ">=")
    row(
        "with OpenVINO: served / bare loop of ONNX Runtime",
        figures.efficiency(_OPENVINO),
        0.95,
        ">=",
    )
    for subject, limit in (_limits(about["precision"]) | {"fastapi_torch": 8.0}).items():
        found = figures.times(_OPENVINO, subject)
        row(f"with OpenVINO: times {TITLES[subject]}", found, limit, ">=")
    for kind in ("closed", "open"):
        found = figures.p99_over(GATEWAY, "fastapi_onnxruntime", kind)
        row(f"p99 over that of FastAPI + ONNX Runtime, {kind} loop", found, 1.0, "<=")
    return _table(["", "found", "wanted", "holds"], rows)


def _limits(precision: str) -> dict[str, float]:
    torch = 8.0 if precision == "int8" else 4.5
    return {
        "fastapi_torch": torch,
        "litserve": 1.25,
        "bentoml": 1.25,
        "fastapi_onnxruntime": 1.05,
    }


def _closed(figures: Figures, subjects: Sequence[str], path: tuple[str, ...], digits: int) -> str:
    return _by_level(
        figures,
        subjects,
        "closed",
        lambda subject, level: _text(figures.figure(subject, "closed", level, *path), digits),
    )


def _latencies(figures: Figures, subjects: Sequence[str], kind: str) -> str:
    def cell(subject: str, level: float) -> str:
        middle = figures.figure(subject, kind, level, "latency_ms", "p50")
        tail = figures.figure(subject, kind, level, "latency_ms", "p99")
        return f"{middle.median:.1f} / {tail.median:.1f}" if middle and tail else "-"

    return _by_level(figures, subjects, kind, cell)


def _offered(figures: Figures, subjects: Sequence[str]) -> str:
    def cell(subject: str, level: float) -> str:
        offered = figures.figure(subject, "open", level, "offered_rps")
        answered = figures.figure(subject, "open", level, "goodput_rps")
        return f"{offered.median:.0f} / {answered.median:.0f}" if offered and answered else "-"

    return _by_level(figures, subjects, "open", cell)


def _by_level(
    figures: Figures, subjects: Sequence[str], kind: str, cell: Callable[[str, float], str]
) -> str:
    measured = [subject for subject in subjects if figures.levels(subject, kind)]
    levels = sorted({level for one in measured for level in figures.levels(one, kind)})
    if not levels:
        return ""
    unit = "connections" if kind == "closed" else "of the gateway's capacity"
    names = [f"{level:g}" if kind == "closed" else f"{level:.0%}" for level in levels]
    rows = [[TITLES[one], *(cell(one, level) for level in levels)] for one in measured]
    return _table([unit, *names], rows)


def _settings(settings: Mapping[str, Any]) -> str:
    lines = []
    for subject, found in settings.items():
        setting = found["setting"]
        text = setting if isinstance(setting, str) else json.dumps(setting)
        lines.append(f"- {TITLES.get(subject, subject)}: `{text}`")
        for tried in found.get("tried", []):
            lines.append(
                f"  - {tried['relative']:.2f} of the bare loop: `{json.dumps(tried['setting'])}`"
            )
    return "\n".join(lines)


def _text(found: Spread | None, digits: int = 2) -> str:
    return "-" if found is None else found.text(digits)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
