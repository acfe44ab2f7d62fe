"""A certificate in Markdown."""

import math
from collections.abc import Sequence

from export.certificate import Certificate, Form, Worst
from export.report_facts import furthest, gap, most_different, points_lost

_NONE = "-"


def report_text(certificate: Certificate, picture: str) -> str:
    """The report; `picture` is the name of the file that it shows."""
    parts = [
        _introduction(certificate),
        _gates(certificate),
        "## Forms",
        _forms(certificate),
        _reasons(certificate),
        f"![Speed, {certificate.task_metric} and worst tiles]({picture})",
        "## Outputs against torch",
        _differences(certificate),
        "## Decisions against torch",
        _decisions(certificate),
        "## Figures on these tiles",
        _figures(certificate),
        "## Milliseconds a tile",
        "The median of the repeats, and half of the distance between their quartiles.",
        _speeds(certificate),
        *(part for worst in furthest(certificate) for part in _worst(worst)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _introduction(certificate: Certificate) -> str:
    software = ", ".join(f"{name} {version}" for name, version in certificate.software.items())
    machine = ", ".join(f"{name} {value}" for name, value in certificate.machine.items())
    return (
        f"# Certificate of {certificate.model}, version {certificate.version}\n\n"
        "Each form that ran was compared, from its written file, with the torch network it was "
        f"made from: on {certificate.tiles} tiles of `{certificate.split}` (list "
        f"`{certificate.split_sha256[:12]}`).\n\n"
        f"- Software: {software}\n"
        f"- Machine: {machine}\n"
        f"- Task metric: `{certificate.task_metric}`\n"
        f"- ONNX weights stored as float16: {certificate.float16_share:.0%}"
    )


def _gates(certificate: Certificate) -> str:
    gates = certificate.gates
    return (
        "## Gates\n\n"
        f"- float32 forms: no output may be further than {_number(gates.max_difference)} from "
        "torch's, no decision may differ\n"
        f"- int8: at most {_number(gates.max_metric_loss)} points (hundredths) of "
        f"`{certificate.task_metric}` may be lost; it is served when its best "
        f"throughput is at least {_number(gates.min_speedup)} times the float32 graph's\n"
        f"- batch1: kept when it answers one tile at least {_number(gates.min_batch1_speedup)} "
        "times as fast as the served graph\n"
        "- openvino: kept when it loses no more than int8 may; a gateway runs only what was kept"
    )


def _forms(certificate: Certificate) -> str:
    rows = [
        (
            name,
            f"**{form.verdict}**",
            f"`{form.file}`" if form.file else _NONE,
            f"{form.bytes / 1e6:.1f}" if form.bytes else _NONE,
            *_largest(form),
            _differing(form),
            _metric(form, certificate.task_metric),
            _points(points_lost(certificate, form)),
            *_fastest(form),
        )
        for name, form in certificate.forms.items()
    ]
    header = (
        "Form",
        "Verdict",
        "File",
        "MB",
        "Largest difference",
        "Mean of that output",
        "Decisions that differ",
        certificate.task_metric,
        "Points lost",
        "Fastest, ms a tile",
        "at batch",
    )
    return _table(header, rows)


def _largest(form: Form) -> tuple[str, str]:
    """The largest difference with its output's name, and the mean of the same output."""
    if not form.differences:
        return _NONE, _NONE
    output, found = max(form.differences.items(), key=lambda item: item[1].maximum)
    return f"{_number(found.maximum)} ({output})", _number(found.mean)


def _differing(form: Form) -> str:
    if not form.decisions:
        return _NONE
    differing = sum(decision.differing for decision in form.decisions.values())
    return f"{differing} of {sum(decision.compared for decision in form.decisions.values())}"


def _metric(form: Form, name: str) -> str:
    return f"{form.metrics[name]:.4f}" if name in form.metrics else _NONE


def _points(lost: float | None) -> str:
    # Adding zero turns -0.00 into 0.00.
    return _NONE if lost is None else f"{round(lost, 2) + 0:.2f}"


def _fastest(form: Form) -> tuple[str, str]:
    if not form.speed:
        return _NONE, _NONE
    best = min(form.speed, key=lambda speed: speed.ms_per_tile)
    return f"{best.ms_per_tile:.2f}", str(best.batch)


def _reasons(certificate: Certificate) -> str:
    return "\n".join(
        f"- {name}, {form.verdict}: {_line('; '.join(form.reasons))}"
        for name, form in certificate.forms.items()
        if form.reasons
    )


def _differences(certificate: Certificate) -> str:
    rows = [
        (
            name,
            output,
            _number(found.maximum),
            _number(found.mean),
            _NONE if found.limit is None else _number(found.limit),
            found.worst,
        )
        for name, form in certificate.forms.items()
        for output, found in form.differences.items()
    ]
    return _table(("Form", "Output", "Maximum", "Mean", "Limit", "Worst tile"), rows)


def _decisions(certificate: Certificate) -> str:
    rows = [
        (name, what, str(found.compared), str(found.differing))
        for name, form in certificate.forms.items()
        for what, found in form.decisions.items()
    ]
    return _table(("Form", "Decision", "Compared", "Differ"), rows)


def _figures(certificate: Certificate) -> str:
    measured = {name: form for name, form in certificate.forms.items() if form.metrics}
    metrics = dict.fromkeys(metric for form in measured.values() for metric in form.metrics)
    rows = [(metric, *(_metric(form, metric) for form in measured.values())) for metric in metrics]
    return _table(("Figure", *measured), rows)


def _speeds(certificate: Certificate) -> str:
    timed = {
        name: {speed.batch: f"{speed.ms_per_tile:.2f} ± {speed.spread:.2f}" for speed in form.speed}
        for name, form in certificate.forms.items()
        if form.speed
    }
    batches = sorted({batch for of_form in timed.values() for batch in of_form})
    rows = [
        (name, *(of_form.get(batch, _NONE) for batch in batches)) for name, of_form in timed.items()
    ]
    return _table(("Form", *(f"batch {batch}" for batch in batches)), rows)


def _worst(worst: Worst) -> tuple[str, str]:
    rows = [
        (name, _number(expected), _number(found), _number(gap(expected, found)))
        for name, expected, found in most_different(worst)
    ]
    return (
        f"## Where {worst.form} is furthest from torch: {_line(worst.output)} of "
        f"{_line(worst.tile)}",
        _table(("Value", "torch", worst.form, "Difference"), rows),
    )


def _number(value: float) -> str:
    """Three digits that count, without an exponent where people would write none."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e6 else f"{value:.1e}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, or a line that says that it would be empty."""
    lines = [f"| {' | '.join(_cell(text) for text in row)} |" for row in (header, *rows)]
    if len(lines) == 1:
        return "None was measured."
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def _cell(text: str) -> str:
    """The text on one line, with nothing that ends a cell."""
    return _line(text).replace("|", "\\|")


def _line(text: str) -> str:
    return " ".join(text.split())
