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
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
import yaml
from pydantic import Field, ValidationError, model_validator
from sklearn.metrics import f1_score

from tilesight.errors import ConfigError
from tilesight.files import write_text, written_whole
from tilesight.manifest import Strict
from training import run
from training.comparison import Outcome, Row, rows
from training.config import SignaRun, default_config_path
from training.cost import costs
from training.datasets.folders import set_folder
from training.datasets.splits import split_sha256
from training.fit import adjusted
from training.jobs import Job, fitted
from training.label_figures import HALF
from training.reports import study_report
from training.tasks import signa

JSON_NAME, REPORT_NAME = "study.json", "study.md"
_PREDICTIONS = "predictions.npz"


class StudyFile(Strict):
    """What a study file holds."""

    title: str
    against: str = Field(description="the variant that the others are tested against")
    seeds: list[int] = Field(min_length=1)
    base: str | None = Field(default=None, description="a configuration; SIGNA's if absent")
    common: dict[str, Any] = Field(default={}, description="what is changed for all variants")
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

    file: str
    title: str
    against: str
    seeds: Sequence[int]
    variants: Mapping[str, Mapping[int, SignaRun]]

    @property
    def first(self) -> dict[str, SignaRun]:
        """Each variant's configuration with the first seed."""
        return {name: configs[self.seeds[0]] for name, configs in self.variants.items()}

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
        file = StudyFile.model_validate(_content(path))
    except ValidationError as error:
        raise ConfigError(f"{path}: {_told(error)}") from None
    source = path.parent / file.base if file.base else default_config_path("signa")
    base = _content(source)
    if not isinstance(base, Mapping):
        raise ConfigError(f"{source}: not a configuration: no keys")
    common = merged(base, file.common)
    _checked(common, f"{path}: common")
    variants: dict[str, dict[int, SignaRun]] = {}
    for name, changes in file.variants.items():
        config = _checked(merged(common, changes), f"{path}: variants.{name}")
        variants[name] = {
            seed: _signa(adjusted(config, model="signa", seed=seed, epochs=None, weights=weights))
            for seed in file.seeds
        }
    study = Study(path.name, file.title, file.against, file.seeds, variants)
    datasets = {name: config.dataset for name, config in study.first.items()}
    for name, dataset in datasets.items():
        if dataset != datasets[study.against]:
            raise ConfigError(
                f"{path}: variants.{name}: dataset: {dataset}, {study.against} has "
                f"{datasets[study.against]}; what is compared is measured on the same tiles"
            )
    return study


def _content(path: Path) -> Any:  # noqa: ANN401 (what YAML holds is checked by the models)
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None


def _checked(content: Mapping[str, Any], where: str) -> SignaRun:
    try:
        return SignaRun.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_told(error)}") from None


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


def run_study(
    study: Study,
    data: Path,
    weights: str | None,
    out: Path,
    *,
    vectors: Path | None = None,
    at_once: int = 1,
    progress: bool = False,
    say: Callable[[str], None] = lambda _line: None,
) -> list[Row]:
    """Runs what is not finished yet, so many at once, and returns the table.

    `study.json`, `study.md` and `study.png` hold it, anew after each run.

    Raises:
        ConfigError: a finished run has another configuration.
        TilesightError: as `training.fit.train` raises it.
    """
    jobs = [
        Job(
            variant=name,
            seed=seed,
            config=config,
            folder=out / "runs" / name / f"seed-{seed}",
            data=set_folder(config.dataset, data),
            weights=weights,
            vectors=None if config.architecture.learned_vectors else vectors,
        )
        for name, seed, config in study.runs()
    ]
    finished = [job for job in jobs if job.finished]
    for job in finished:
        _check_same(job)
    left = [job for job in jobs if not job.finished]
    outcomes: dict[str, dict[int, Outcome]] = {name: {} for name in study.variants}
    for number, job in enumerate(chain(finished, fitted(left, at_once, progress, say)), start=1):
        outcomes[job.variant][job.seed] = _outcome(job)
        _write(study, outcomes, rows(outcomes, study.against), out, len(jobs) - number)
    table = rows(outcomes, study.against, costs(study.first))
    _write(study, outcomes, table, out, 0)
    return table


def _check_same(job: Job) -> None:
    """Raises a ConfigError where the finished run is one of another configuration."""
    finished, _ = run.read_run(job.folder)
    if finished != job.config:
        raise ConfigError(
            f"{job.folder}: finished with another configuration than the study now has; take "
            "another --out, or remove the folder"
        )


def _outcome(job: Job) -> Outcome:
    """The figures of a finished run; its predictions are kept, they take longer than the rest."""
    measured = json.loads((job.folder / run.METRICS).read_text(encoding="utf-8"))
    path = job.folder / _PREDICTIONS
    if not path.is_file():
        config = job.config
        part = signa.read_part(job.data, "test", config.image_size, config.dataset)
        _, network = signa.load(job.folder, config)
        with written_whole(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, truth=part.truth, scores=signa.predict(network, part.tiles))
    with np.load(path) as kept:
        truth, scores = kept["truth"], kept["scores"]
    tile_f1 = [
        f1_score(true, found, zero_division=0)
        for true, found in zip(truth, scores >= HALF, strict=True)
    ]
    return Outcome(measured["values"], np.array(tile_f1), measured["floors"])


def _write(
    study: Study,
    outcomes: Mapping[str, Mapping[int, Outcome]],
    table: Sequence[Row],
    out: Path,
    left: int,
) -> None:
    config = study.first[study.against]
    floors = next((one.floors for runs in outcomes.values() for one in runs.values()), {})
    facts = {
        "title": study.title,
        "file": study.file,
        "dataset": config.dataset,
        "test_sha256": split_sha256(config.dataset, "test"),
        "epochs": sorted({one.fit.epochs for one in study.first.values()}),
        "image_sizes": sorted({one.image_size for one in study.first.values()}),
        "against": study.against,
        "seeds": list(study.seeds),
        "runs_left": left,
        "rows": [asdict(one) for one in table],
        "floors": floors,
    }
    out.mkdir(parents=True, exist_ok=True)
    study_report.draw(facts, out / study_report.PICTURE)
    write_text(out / JSON_NAME, json.dumps(facts, indent=1) + "\n")
    write_text(out / REPORT_NAME, study_report.study_text(facts))
