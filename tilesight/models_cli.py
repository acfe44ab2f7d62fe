"""The commands that say and change which versions are served: `tilesight models`."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tilesight.models_report import Comparison, Entry, compare, entries
from tilesight.repository import Change, Repository

# What a table needs to be read without folded words; a terminal or COLUMNS says otherwise.
_WIDTH = 100
_HASH = 12
_COMMIT = 7

models = typer.Typer(
    no_args_is_help=True, help="Versions of the models: what they are worth, which are served."
)

Root = Annotated[
    Path,
    typer.Option("--repository", envvar="TILESIGHT_MODEL_REPOSITORY", help="Folder of the models."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_DEFAULT = Path("model_repository")


@models.command("list")
def list_(repository: Root = _DEFAULT, as_json: AsJson = False) -> None:
    """Show every version of every model, and which of them are served."""
    found = entries(Repository(repository))
    if as_json:
        typer.echo(json.dumps([entry.model_dump(mode="json") for entry in found], indent=2))
    else:
        _show_entries(found)


@models.command()
def promote(
    targets: Annotated[
        list[str], typer.Argument(metavar="MODEL[@VERSION]...", help="Without one: the highest.")
    ],
    repository: Root = _DEFAULT,
) -> None:
    """Serve these versions from now on, all at once; a question head brings its encoder along."""
    kept = Repository(repository)
    wanted: dict[str, int] = {}
    for name, version in map(_target, targets):
        if name in wanted:
            raise typer.BadParameter(f"{name} is named twice")
        wanted[name] = version or _highest(kept, name)
    _show_changes(kept.promote(wanted), wanted)


@models.command()
def rollback(
    names: Annotated[list[str], typer.Argument(metavar="MODEL...")],
    repository: Root = _DEFAULT,
) -> None:
    """Serve again what was served before; encoder and question head go back together."""
    _show_changes(Repository(repository).rollback(names), {})


@models.command()
def remove(
    targets: Annotated[list[str], typer.Argument(metavar="MODEL@VERSION...")],
    repository: Root = _DEFAULT,
) -> None:
    """Delete versions that are not served."""
    kept = Repository(repository)
    for name, version in [_full_target(target) for target in targets]:
        kept.remove(name, version)
        typer.echo(f"{name}@{version}: removed")


@models.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="MODEL@VERSION")],
    second: Annotated[str, typer.Argument(metavar="MODEL@VERSION")],
    repository: Root = _DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Compare the figures and the lineage of two versions."""
    found = compare(Repository(repository), _full_target(first), _full_target(second))
    if as_json:
        typer.echo(json.dumps(found.model_dump(mode="json"), indent=2))
    else:
        _show_comparison(found)


@models.command()
def configure(
    instances: Annotated[int | None, typer.Option(help="Copies of a model.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of a copy.")] = None,
    max_batch_size: Annotated[int | None, typer.Option(help="Rows that run together.")] = None,
    max_queue_delay_us: Annotated[
        int | None, typer.Option(help="Longest wait for a fuller batch.")
    ] = None,
    max_queue_size: Annotated[
        int | None, typer.Option(help="Requests that wait; one more is refused.")
    ] = None,
    queue_timeout_us: Annotated[
        int | None, typer.Option(help="Longest wait of a request without a time of its own.")
    ] = None,
    repository: Root = _DEFAULT,
) -> None:
    """Change how Triton runs the models, and write every config.pbtxt again."""
    fields = {
        "instances": instances,
        "threads": threads,
        "max_batch_size": max_batch_size,
        "max_queue_delay_us": max_queue_delay_us,
        "max_queue_size": max_queue_size,
        "queue_timeout_us": queue_timeout_us,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    for name, value in Repository(repository).configure(**given).model_dump().items():
        typer.echo(f"{name}: {value}")


def _target(text: str) -> tuple[str, int | None]:
    """The model and the version of MODEL@VERSION; no version where only a model is named."""
    name, at, version = text.partition("@")
    if not at:
        return name, None
    if not (version.isascii() and version.isdigit() and version[0] != "0"):
        raise typer.BadParameter(f"{text!r}: {version!r} is no version (1, 2, ...)")
    return name, int(version)


def _full_target(text: str) -> tuple[str, int]:
    name, version = _target(text)
    if version is None:
        raise typer.BadParameter(f"{text!r}: a version is needed, as in {name}@1")
    return name, version


def _highest(repository: Repository, name: str) -> int:
    versions = repository.versions(name)
    if not versions:
        raise typer.BadParameter(f"{repository.model_folder(name)}: no version of this model")
    return versions[-1]


def _show_changes(changes: Sequence[Change], wanted: dict[str, int]) -> None:
    for name, before, after in changes:
        what = f"{before} -> {after}" if before != after else f"{after}, promoted by name now"
        typer.echo(f"{name}: {what}")
    for name, version in wanted.items():
        if name not in {change.name for change in changes}:
            typer.echo(f"{name}: {version}, as before")


def _console() -> Console:
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDTH
    return console


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1), pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _show_entries(found: Sequence[Entry]) -> None:
    console = _console()
    table = _table("version", "served", "file", "figures", "measured on", "commit")
    for column in (0, 3):
        table.columns[column].no_wrap = True
    for entry in found:
        table.add_row(*_cells(entry))
    console.print(table)
    for entry in found:
        if entry.problem:
            console.print(Text(f"{entry.name}@{entry.version}: {entry.problem}", style="red"))


def _cells(entry: Entry) -> list[str]:
    name = f"{entry.name}@{entry.version}"
    if entry.metrics is None or entry.bytes is None or entry.commit is None:
        return [name, entry.status, "damaged"]
    metrics = entry.metrics
    return [
        name,
        entry.status,
        f"{entry.precision}\n{entry.bytes / 1e6:.1f} MB\n{', '.join(entry.forms)}",
        "\n".join(f"{figure} {metrics.values[figure]:.3f}" for figure in entry.main),
        f"{metrics.dataset}\n{metrics.split}\n{metrics.tiles} tiles",
        _short_commit(entry.commit),
    ]


def _short_commit(commit: str) -> str:
    """The first figures of the commit, and on a line of its own what was added to it."""
    digest, plus, changes = commit.partition("+")
    return f"{digest[:_COMMIT]}\n+{changes}" if plus else digest[:_COMMIT]


def _show_comparison(found: Comparison) -> None:
    console = _console()
    figures = _table("figure", *found.versions, "difference")
    for column in figures.columns[1:]:
        column.justify = "right"
    for name, values in found.figures.items():
        gap = found.differences.get(name)
        gap_text = "" if gap is None else f"{gap:+.4f}"
        figures.add_row(name, *(_figure(value) for value in values), gap_text)
    console.print(figures)
    if not found.comparable:
        console.print(
            Text("Measured on different tiles: the figures are not comparable.", style="red")
        )
    lineage = _table("lineage", *found.versions, "")
    for name, (first, second) in found.lineage.items():
        lineage.add_row(name, _short(first), _short(second), "" if first == second else "differs")
    console.print(lineage)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _short(text: str | None) -> str:
    """The text; of a hash, enough to tell it from another."""
    if text is None:
        return "-"
    digest, plus, changes = text.partition("+")
    hexadecimal = len(digest) in (40, 64) and set(digest) <= set("0123456789abcdef")
    return f"{digest[:_HASH]}{plus}{changes}" if hexadecimal else text
