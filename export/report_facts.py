"""What a report picks from a certificate."""

import math

from export.certificate import Certificate, Form, Worst

# Values of a tile that are shown, those that differ most.
_SHOWN = 12


def points_lost(certificate: Certificate, form: Form) -> float | None:
    """Points (hundredths) of the task metric that torch has more; None if one has no figure."""
    metric = certificate.task_metric
    reference = certificate.forms.get("torch")
    if reference is None or metric not in reference.metrics or metric not in form.metrics:
        return None
    return 100 * (reference.metrics[metric] - form.metrics[metric])


def furthest(certificate: Certificate) -> list[Worst]:
    """The worst tiles, the largest difference first; forms that answer as torch does are left out.

    Their "worst" tile is just the first one.
    """
    gaps = {worst.form: max(_gaps(worst), default=0.0) for worst in certificate.worst}
    differing = [worst for worst in certificate.worst if gaps[worst.form] > 0]
    return sorted(differing, key=lambda worst: gaps[worst.form], reverse=True)


def most_different(worst: Worst) -> list[tuple[str, float, float]]:
    """Name, torch's value and the form's, of the values that differ most, the largest first."""
    values = zip(_gaps(worst), worst.names, worst.expected, worst.found, strict=True)
    ordered = sorted(values, key=lambda value: value[0], reverse=True)
    return [value[1:] for value in ordered[:_SHOWN]]


def gap(expected: float, found: float) -> float:
    """The difference; none between the same infinities, infinite where one is no number."""
    if expected == found:
        return 0.0
    difference = abs(expected - found)
    return math.inf if math.isnan(difference) else difference


def _gaps(worst: Worst) -> list[float]:
    return [gap(*pair) for pair in zip(worst.expected, worst.found, strict=True)]
