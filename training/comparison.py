"""Finished runs of several variants and seeds, compared: means, deviations and paired tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from training.cost import Cost

FIGURES = ("f1_samples", "map", "f1_macro", "f1_paper")
_RESAMPLES = 9999


@dataclass(frozen=True)
class Outcome:
    """One finished run: its figures, its floors, and each test tile's F1 at threshold 0.5."""

    values: Mapping[str, float]
    tile_f1: NDArray[np.float64]
    floors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A variant in the table; what is `None` needs more seeds, or is of the one against."""

    variant: str
    seeds: int
    values: Mapping[str, Sequence[float]]  # of each seed
    mean: Mapping[str, float]
    deviation: Mapping[str, float] | None
    difference: float | None  # of f1_samples, in points, the same seeds paired
    p_seeds: float | None
    p_tiles: float | None
    cost: Cost | None


def rows(
    outcomes: Mapping[str, Mapping[int, Outcome]],
    against: str,
    cost: Mapping[str, Cost] | None = None,
) -> list[Row]:
    """A row for each variant that has a finished run.

    `p_seeds` is the two-sided paired t-test of f1_samples over the seeds; with three seeds it sees
    large differences only. `p_tiles` is a two-sided paired permutation test over the test tiles,
    of each tile's F1 averaged over the seeds: whether these networks differ on tiles like these,
    not whether other seeds would.
    """
    found = []
    for name, runs in outcomes.items():
        if not runs:
            continue
        table = {f: np.array([one.values[f] for one in runs.values()]) for f in FIGURES}
        shared = sorted(set(runs) & set(outcomes.get(against, {}))) if name != against else []
        found.append(
            Row(
                variant=name,
                seeds=len(runs),
                values={f: values.tolist() for f, values in table.items()},
                mean={f: float(values.mean()) for f, values in table.items()},
                deviation={f: float(values.std(ddof=1)) for f, values in table.items()}
                if len(runs) > 1
                else None,
                **_tested(runs, outcomes[against], shared),
                cost=(cost or {}).get(name),
            )
        )
    return found


def _tested(
    runs: Mapping[int, Outcome], others: Mapping[int, Outcome], shared: Sequence[int]
) -> dict[str, float | None]:
    if not shared:
        return {"difference": None, "p_seeds": None, "p_tiles": None}
    ours, theirs = (
        np.array([of[seed].values["f1_samples"] for seed in shared]) for of in (runs, others)
    )
    tiles = np.mean([runs[seed].tile_f1 - others[seed].tile_f1 for seed in shared], axis=0)
    over_seeds = stats.ttest_rel(ours, theirs).pvalue if len(shared) > 1 else None
    return {
        "difference": 100 * float((ours - theirs).mean()),
        "p_seeds": None if over_seeds is None or np.isnan(over_seeds) else float(over_seeds),
        "p_tiles": permuted(tiles),
    }


def permuted(differences: NDArray[np.float64]) -> float:
    """The two-sided p of a paired permutation test: signs of the differences flipped at random."""
    if not differences.any():
        return 1.0
    result = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=_RESAMPLES,
        random_state=0,
    )
    return float(result.pvalue)
