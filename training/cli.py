"""The commands that fit and measure models: `tilesight train`, `tilesight evaluate`."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from training.tasks.base import Measurement


class Model(StrEnum):
    """The models that can be trained."""

    SIGNA = "signa"
    JTTS = "jtts"
    SPATIALNET_VIT = "spatialnet-vit"


def train(
    model: Annotated[Model, typer.Argument(help="The model to fit.")],
    data: Annotated[Path, typer.Option(help="Folder of the data set, or of several by name.")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    weights: Annotated[
        str | None,
        typer.Option(help="Backbone weights: a safetensors file, or torchvision's name."),
    ] = None,
    vectors: Annotated[
        Path | None,
        typer.Option(help="Label vectors in GloVe's format, for label_vectors: file (signa)."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Configuration; the model's committed one if absent.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="In place of the configuration's seed.", min=0, max=2**32 - 1)
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="In place of the configuration's number.", min=1)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run.")] = False,
) -> None:
    """Fit a model and measure it on the test split."""
    from training.config import default_config_path, read_config
    from training.fit import adjusted
    from training.fit import train as fit

    console = Console()
    resolved = adjusted(
        read_config(config or default_config_path(model.value)),
        model=model.value,
        seed=seed,
        epochs=epochs,
        weights=weights,
    )
    measurement = fit(
        resolved,
        data,
        weights,
        out,
        vectors=vectors,
        resume=resume,
        progress=console.is_terminal,
        say=console.print,
    )
    show(console, f"{model.value}, test split, seed {resolved.seed}", measurement)
    console.print(f"run folder: {out}")


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    data: Annotated[Path, typer.Option(help="Folder of the data set, or of several by name.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    weights: Annotated[
        str | None, typer.Option(help="Base weights, for the nearest-neighbour floor of captions.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="Another data set with the same labels in place of the run's (signa)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="Folder for a report with pictures, of the test part (signa)."),
    ] = None,
) -> None:
    """Measure a run's checkpoint on a part of its split, its floors beside it."""
    from tilesight.errors import ConfigError
    from training.datasets.splits import split_sha256
    from training.evaluate import evaluate as measure
    from training.evaluate import reported
    from training.run import read_run

    console = Console()
    if report is None:
        measurement = measure(run, data, split, weights, dataset)
    elif dataset is None:
        measurement = reported(run, data, split, report)
    else:
        raise ConfigError("--report: of the run's own data set; leave --dataset out")
    if as_json:
        console.print_json(json.dumps(measurement.as_json()))
        return
    config, provenance = read_run(run)
    name = dataset or provenance["split"]
    digest = split_sha256(name, split)
    show(console, f"{config.model}, {split} part of {name} ({digest[:12]})", measurement)


def study(
    model: Annotated[Literal["signa"], typer.Argument(help="The model that is studied.")],
    grid: Annotated[Path, typer.Argument(help="Study file: variants and seeds.")],
    data: Annotated[Path, typer.Option(help="Folder of the data set, or of several by name.")],
    out: Annotated[Path, typer.Option(help="Folder of the study; one that exists goes on.")],
    weights: Annotated[
        str | None,
        typer.Option(help="Backbone weights: a safetensors file, or torchvision's name."),
    ] = None,
    vectors: Annotated[
        Path | None, typer.Option(help="Label vectors in GloVe's format, for variants with a file.")
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Runs at once, each on its part of the cores.")
    ] = 1,
) -> None:
    """Fit variants of a model with several seeds, and compare them in one table."""
    from training.study import REPORT_NAME, read_study, run_study

    console = Console()
    run_study(
        read_study(grid, weights),
        data,
        weights,
        out,
        vectors=vectors,
        at_once=jobs,
        say=console.print,
    )
    console.print((out / REPORT_NAME).read_text(encoding="utf-8"), markup=False)
    console.print(f"written: {out / REPORT_NAME}")


def show(console: Console, title: str, measurement: "Measurement") -> None:
    """Prints the figures, those of each floor beside them."""
    tuned = {"tuned": measurement.tuned} if measurement.tuned else {}
    others = tuned | measurement.floors
    table = Table("figure", "model", *others, title=title, title_justify="left")
    for name, value in measurement.values.items():
        beside = [f"{other[name]:.4f}" if name in other else "" for other in others.values()]
        table.add_row(name, f"{value:.4f}", *beside)
    for column in table.columns[1:]:
        column.justify = "right"
    console.print(table)
    for name, note in measurement.notes.items():
        console.print(f"{name}: {note}", style="dim")
