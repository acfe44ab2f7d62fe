"""The commands that turn a run into served models and look at them again."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from export.certificate import Certificate

Root = Annotated[
    Path,
    typer.Option("--repository", envvar="TILESIGHT_MODEL_REPOSITORY", help="Folder of the models."),
]
_DEFAULT = Path("model_repository")


def export(
    run: Annotated[Path, typer.Argument(help="Run folder of a finished training.")],
    data: Annotated[Path, typer.Option(help="Data folder: its test tiles prove the export.")],
    repository: Root = _DEFAULT,
    promote: Annotated[
        bool, typer.Option("--promote", help="Serve the new version at once.")
    ] = False,
    float16: Annotated[
        bool, typer.Option("--float16", help="Round all weights to float16: half the file.")
    ] = False,
    drop: Annotated[
        list[str] | None,
        typer.Option(help="Measure this form and keep no file: onnx, int8, torchscript."),
    ] = None,
    triton: Annotated[
        bool, typer.Option(help="Compare with the real Triton, where it is installed.")
    ] = True,
    openvino: Annotated[
        bool, typer.Option(help="Compare with OpenVINO, where it is installed.")
    ] = True,
    max_difference: Annotated[
        float, typer.Option(min=0, help="Gate of float32: any output's distance from torch's.")
    ] = 1e-3,
    max_loss: Annotated[
        float,
        typer.Option(
            min=0, help="Gate of int8 and bfloat16: points of the task metric they may lose."
        ),
    ] = 0.5,
    min_speedup: Annotated[
        float, typer.Option(min=0, help="Gate of int8: times float32's throughput to be served.")
    ] = 2.0,
) -> None:
    """Write a run in every form, hold each against torch on real tiles, add it as a version."""
    from export.bundle import export_run
    from export.certificate import Gates, read_certificate
    from export.forms import Options, droppable
    from tilesight.manifest import CERTIFICATE_NAME

    options = Options(
        gates=Gates(
            max_difference=max_difference, max_metric_loss=max_loss, min_speedup=min_speedup
        ),
        half_weights=float16,
        drop=droppable(drop or []),
        triton=triton,
        openvino=openvino,
    )
    console = Console()
    for version in export_run(run, repository, data, options, promote, console.print):
        console.print(f"\n{version}", style="bold", highlight=False)
        show_certificate(console, read_certificate(version / CERTIFICATE_NAME))


def certify(
    run: Annotated[Path, typer.Argument(help="Run folder that the versions were exported from.")],
    data: Annotated[Path, typer.Option(help="Data folder: its test tiles prove the forms.")],
    repository: Root = _DEFAULT,
) -> None:
    """Measure OpenVINO on the versions that a run became, and note in what it may serve them."""
    from export.certificate import read_certificate
    from export.certify import certify_run
    from tilesight.manifest import CERTIFICATE_NAME

    console = Console()
    for version in certify_run(run, repository, data, console.print):
        console.print(f"\n{version}", style="bold", highlight=False)
        show_certificate(console, read_certificate(version / CERTIFICATE_NAME))


def verify(
    model: Annotated[
        str, typer.Argument(metavar="MODEL[@VERSION]", help="Without a version: the served one.")
    ],
    repository: Root = _DEFAULT,
    data: Annotated[
        Path | None, typer.Option(help="Data folder: measure the task metric again, too.")
    ] = None,
) -> None:
    """Check a version: hashes, golden tile, graph against manifest and config.pbtxt, metrics."""
    from export.verify import verify as check

    console = Console()
    for line in check(repository, model, data):
        console.print(f"ok  {line}", highlight=False, markup=False, soft_wrap=True)


def show_certificate(console: Console, certificate: "Certificate") -> None:
    """Prints the forms of a version and why each is served, kept or refused."""
    from export.speed import best

    metric = certificate.task_metric
    table = Table(box=None, pad_edge=False)
    for heading in (
        "form",
        "verdict",
        "MB",
        metric,
        "largest difference",
        "decisions",
        "ms a tile",
    ):
        table.add_column(heading, justify="left" if heading in ("form", "verdict") else "right")
    for name, form in certificate.forms.items():
        table.add_row(
            name,
            form.verdict,
            f"{form.bytes / 1e6:.1f}" if form.bytes else "",
            f"{form.metrics[metric]:.4f}" if metric in form.metrics else "",
            f"{max(one.maximum for one in form.differences.values()):.1e}"
            if form.differences
            else "",
            f"{sum(one.differing for one in form.decisions.values())} differ"
            if form.decisions
            else "",
            f"{best(form.speed):.2f}" if form.speed else "",
        )
    console.print(table)
    for name, form in certificate.forms.items():
        for reason in form.reasons:
            console.print(f"  {name}: {reason}", highlight=False, markup=False)
