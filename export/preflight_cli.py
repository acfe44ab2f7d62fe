"""The command that says whether a Triton release will load a repository: `tilesight preflight`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from tilesight.cores import usable_cores

if TYPE_CHECKING:
    from export.preflight import ModelReport, Report

_REFUSED = 1
_GIB = 2**30


def preflight(
    triton: Annotated[str, typer.Option(help="Triton release, such as 26.07.")],
    repository: Annotated[
        Path, typer.Option(envvar="TILESIGHT_MODEL_REPOSITORY", help="Model repository to look at.")
    ] = Path("model_repository"),
    cores: Annotated[
        int | None, typer.Option(min=1, help="Cores that Triton may use (this machine's).")
    ] = None,
    memory_gib: Annotated[
        float | None,
        typer.Option(min=0.0, help="Memory that Triton may take, GiB (not checked without it)."),
    ] = None,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Triton runs on a GPU; the memory is the GPU's.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Say whether a Triton release will load the promoted models, and why not; status 1 if not."""
    from export.preflight import check

    memory_bytes = None if memory_gib is None else int(memory_gib * _GIB)
    report = check(repository, triton, cores or usable_cores(), memory_bytes, gpu)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        _show(Console(), report)
    if report.verdict == "no":
        raise typer.Exit(_REFUSED)


def _show(console: Console, report: "Report") -> None:
    from export.preflight import counted

    table = Table(box=None, pad_edge=False)
    for heading in ("model", "version", "loads"):
        table.add_column(heading)
    for heading in ("IR", "opset", "threads", "memory"):
        table.add_column(heading, justify="right")
    for model in report.models:
        table.add_row(*_row(model))
    console.print(table)
    for model in report.models:
        _list(console, model.name, model.reasons, model.warnings)
    _list(console, "repository", report.reasons, report.warnings)
    place = f"Triton {report.release} (ONNX Runtime {report.onnxruntime})"
    total = (
        f"{counted(report.threads, 'thread')} on {counted(report.cores, 'core')}, "
        f"an estimated {report.estimated_bytes / _GIB:.2f} GiB"
    )
    console.print(f"{place}: {report.verdict} ({total})", markup=False, highlight=False)


def _row(model: "ModelReport") -> tuple[str, ...]:
    return (
        model.name,
        _or_dash(model.version),
        model.verdict,
        _or_dash(model.ir_version),
        _or_dash(model.opsets.get("ai.onnx")),
        _or_dash(model.threads),
        f"{model.memory.total_bytes / _GIB:.2f} GiB" if model.memory else "-",
    )


def _or_dash(number: int | None) -> str:
    return "-" if number is None else str(number)


def _list(console: Console, name: str, reasons: list[str], warnings: list[str]) -> None:
    for word, lines in (("no", reasons), ("warning", warnings)):
        for line in lines:
            console.print(f"{name}: {word}: {line}", markup=False, highlight=False)
