"""The commands that fit and measure models: `tilesight train`, `tilesight evaluate`."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    data: Annotated[Path, typer.Option(help="UCM folder: images, multilabels.tsv, ...")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    weights: Annotated[
        str | None,
        typer.Option(help="MobileNetV2 weights: a safetensors file, or torchvision's name."),
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
        resume=resume,
        progress=console.is_terminal,
        say=console.print,
    )
    show(console, f"{model.value}, test split, seed {resolved.seed}", measurement)
    console.print(f"run folder: {out}")


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    data: Annotated[Path, typer.Option(help="UCM folder.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    weights: Annotated[
        str | None, typer.Option(help="Base weights, for the nearest-neighbour floor of captions.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a run's checkpoint on a part of its split, its floors beside it."""
    from training.evaluate import evaluate as measure
    from training.run import SPLITS, read_run

    console = Console()
    measurement = measure(run, data, split, weights)
    if as_json:
        console.print_json(json.dumps(measurement.as_json()))
        return
    config, provenance = read_run(run)
    name = SPLITS[config.model]
    digest = provenance["split_sha256"][split]
    show(console, f"{config.model}, {split} part of {name} ({digest[:12]})", measurement)


def show(console: Console, title: str, measurement: "Measurement") -> None:
    """Prints the figures, those of each floor beside them."""
    floors = measurement.floors
    table = Table("figure", "model", *floors, title=title, title_justify="left")
    for name, value in measurement.values.items():
        beside = [f"{floor[name]:.4f}" if name in floor else "" for floor in floors.values()]
        table.add_row(name, f"{value:.4f}", *beside)
    for column in table.columns[1:]:
        column.justify = "right"
    console.print(table)
    for name, note in measurement.notes.items():
        console.print(f"{name}: {note}", style="dim")
