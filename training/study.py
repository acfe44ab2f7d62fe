"""A study: variants of SIGNA and its rivals, each fitted with several seeds, in one table.

A study file names what differs from a base configuration:

    title: SIGNA and its rivals
    against: plain
    seeds: [42, 43, 44]
    variants:
      plain: {architecture: {method: plain}}
      signa: {}

Each run has a folder of its own, `runs/<variant>/seed-<seed>`; finished ones are not run again,
a broken one goes on where it was, and the table is written anew after each. All variants of a seed
come before the next seed, so that a study that is cut short compares like with like.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator
from scipy import stats
from sklearn.metrics import f1_score

from tilesight.errors import ConfigError
from tilesight.files import write_text, written_whole
from tilesight.manifest import Strict
from training import run
from training.config import SignaRun, default_config_path
from training.cost import Cost, costs
from training.fit import LAST, adjusted, train
from training.label_figures import HALF
from training.tasks import signa

FIGURES = ("f1_samples", "map", "f1_macro", "f1_paper")
_PREDICTIONS = "predictions.npz"
_RESAMPLES = 9999


class StudyFile(Strict):
    """What a study file holds."""

    title: str
    against: str = Field(description="the variant that the others are tested against")
    seeds: list[int] = Field(min_length=1)
    base: str | None = Field(default=None, description="a configuration; SIGNA's if absent")
    epochs: int | None = Field(default=None, ge=1, description="in place of the base's")
    variants: dict[str, dict[str, Any]] = Field(min_length=1)

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.against not in self.variants:
            raise ValueError(
                f"against: {self.against}, the variants are {', '.join(self.variants)}"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {self.seeds}, one of them twice")
        return self


@dataclass(frozen=True)
class Study:
    """The configurations that are to be run: by variant, then by seed."""

    title: str
    against: str
    seeds: Sequence[int]
    variants: Mapping[str, Mapping[int, SignaRun]]

    def runs(self) -> list[tuple[str, int, SignaRun]]:
        """All runs in their order."""
        return [
            (name, seed, configs[seed])
            for seed in self.seeds
            for name, configs in self.variants.items()
        ]


def read_study(path: Path, weights: str | None = None) -> Study:
    """The study of a file, every configuration checked before the first run.

    Raises:
        ConfigError: no such file, not YAML, an unknown key or a value that is not allowed; the
            variant is named.
    """
    try:
        file = StudyFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: {_told(error)}") from None
    base = path.parent / file.base if file.base else default_config_path("signa")
    content = yaml.safe_load(base.read_text(encoding="utf-8"))
    variants: dict[str, dict[int, SignaRun]] = {}
    for name, changes in file.variants.items():
        try:
            config = SignaRun.model_validate(merged(content, changes))
        except ValidationError as error:
            raise ConfigError(f"{path}: variants.{name}: {_told(error)}") from None
        variants[name] = {
            seed: _signa(
                adjusted(config, model="signa", seed=seed, epochs=file.epochs, weights=weights)
            )
            for seed in file.seeds
        }
    return Study(file.title, file.against, file.seeds, variants)


def _signa(config: object) -> SignaRun:
    assert isinstance(config, SignaRun)
    return config


def _told(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, one['loc']))}: {one['msg']}".removeprefix(": ")
        for one in error.errors()
    )


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The base with the changes in their places, level by level."""
    found = dict(base)
    for key, value in changes.items():
        inner = found.get(key)
        both = isinstance(value, Mapping) and isinstance(inner, Mapping)
        found[key] = merged(inner, value) if both else value  # type: ignore[arg-type]
    return found


# --- What came of the runs


@dataclass(frozen=True)
class Outcome:
    """One finished run: its figures, and each test tile's F1 at threshold 0.5."""

    values: Mapping[str, float]
    tile_f1: NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """A variant in the table; what is `None` needs more seeds, or is of the one against."""

    variant: str
    seeds: int
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


# --- Running


def run_study(
    study: Study,
    data: Path,
    weights: str | None,
    out: Path,
    *,
    vectors: Path | None = None,
    progress: bool = False,
    say: Callable[[str], None] = lambda _line: None,
) -> list[Row]:
    """Runs what is not finished yet and returns the table; `study.json` and `study.md` hold it.

    Raises:
        TilesightError: as `training.fit.train` raises it.
    """
    outcomes: dict[str, dict[int, Outcome]] = {name: {} for name in study.variants}
    all_runs = study.runs()
    for number, (name, seed, config) in enumerate(all_runs, start=1):
        folder = out / "runs" / name / f"seed-{seed}"
        if not (folder / run.METRICS).is_file():
            say(f"run {number} of {len(all_runs)}: {name}, seed {seed}")
            wanted = vectors if not config.architecture.learned_vectors else None
            train(
                config,
                data,
                weights,
                folder,
                vectors=wanted,
                resume=(folder / LAST).is_file(),
                progress=progress,
                say=say,
            )
        outcomes[name][seed] = _outcome(folder, config, data)
        _write(study, rows(outcomes, study.against), out, len(all_runs) - number)
    cost = costs({name: next(iter(configs.values())) for name, configs in study.variants.items()})
    table = rows(outcomes, study.against, cost)
    _write(study, table, out, 0)
    return table


def _outcome(folder: Path, config: SignaRun, data: Path) -> Outcome:
    """The figures of a finished run; its predictions are kept, they take longer than the rest."""
    measured = json.loads((folder / run.METRICS).read_text(encoding="utf-8"))
    path = folder / _PREDICTIONS
    if not path.is_file():
        part = signa.read_part(data, "test", config.image_size, config.dataset)
        _, network = signa.load(folder, config)
        with written_whole(path) as temporary, temporary.open("wb") as file:
            np.savez(file, truth=part.truth, scores=signa.predict(network, part.tiles))
    with np.load(path) as kept:
        truth, scores = kept["truth"], kept["scores"]
    tile_f1 = [
        f1_score(true, found, zero_division=0)
        for true, found in zip(truth, scores >= HALF, strict=True)
    ]
    return Outcome(measured["values"], np.array(tile_f1))


def _write(study: Study, table: Sequence[Row], out: Path, left: int) -> None:
    content = {
        "title": study.title,
        "against": study.against,
        "seeds": list(study.seeds),
        "runs_left": left,
        "rows": [asdict(one) for one in table],
    }
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "study.json", json.dumps(content, indent=1) + "\n")
    write_text(out / "study.md", written(study, table, left))


def written(study: Study, table: Sequence[Row], left: int) -> str:
    """The table in Markdown."""
    head = ["variant", "seeds", *FIGURES, f"points above {study.against}", "p, seeds", "p, tiles"]
    with_cost = any(one.cost for one in table)
    if with_cost:
        head += ["parameters", "MACs", f"ms a tile (x {study.against})"]
    lines = [
        f"# {study.title}",
        "",
        f"{left} runs are left." if left else "All runs are finished.",
        "",
        "| " + " | ".join(head) + " |",
        "| " + " | ".join("---" for _ in head) + " |",
    ]
    plain = next((one.cost for one in table if one.variant == study.against), None)
    for one in table:
        cells = [one.variant, str(one.seeds)]
        cells += [_figure(one, name) for name in FIGURES]
        cells += ["-" if one.difference is None else f"{one.difference:+.2f}"]
        cells += ["-" if p is None else f"{p:.3f}" for p in (one.p_seeds, one.p_tiles)]
        if with_cost:
            cells += _cost(one.cost, plain)
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Mean and deviation over the seeds, test part, threshold 0.5. p over seeds: paired t-test; "
        "p over tiles: paired permutation test of each tile's F1, averaged over the seeds.",
    ]
    return "\n".join(lines) + "\n"


def _figure(row: Row, name: str) -> str:
    deviation = f" ± {row.deviation[name]:.4f}" if row.deviation else ""
    return f"{row.mean[name]:.4f}{deviation}"


def _cost(cost: Cost | None, plain: Cost | None) -> list[str]:
    if cost is None:
        return ["-"] * 3
    times = f" ({cost.ms / plain.ms:.2f})" if plain else ""
    return [f"{cost.parameters:,}", f"{cost.macs / 1e6:,.1f} M", f"{cost.ms:.2f}{times}"]
