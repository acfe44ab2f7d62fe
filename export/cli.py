"""The command that turns a run into served models: `tilesight export`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def export(
    run: Annotated[Path, typer.Argument(help="Run folder of a finished training.")],
    data: Annotated[Path, typer.Option(help="UCM folder: its test tiles prove the export.")],
    repository: Annotated[
        Path, typer.Option(help="Model repository to add the new version to.")
    ] = Path("model_repository"),
) -> None:
    """Write a run as ONNX, prove it against torch on real tiles, add it to the repository."""
    from export.bundle import export_run

    console = Console()
    for version in export_run(run, repository, data, console.print):
        console.print(f"{version}", style="bold", highlight=False)
        show_certificate(console, version)


def show_certificate(console: Console, version: Path) -> None:
    """Prints what the comparison found."""
    from export.certificate import Certificate
    from tilesight.manifest import CERTIFICATE_NAME

    certificate = Certificate.model_validate_json((version / CERTIFICATE_NAME).read_text("utf-8"))
    for name, found in certificate.differences.items():
        console.print(f"  {name}: largest difference {found.maximum:.1e} (limit {found.limit:.0e})")
    for name, decisions in certificate.decisions.items():
        console.print(f"  {name}: {decisions.differing} of {decisions.compared} differ")
    share = f"{certificate.float16_share:.0%} of the weights as float16"
    console.print(f"  {certificate.bytes / 1e6:.1f} MB, {share}")
