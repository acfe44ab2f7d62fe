"""The commands of this room: `tilesight serve` and `tilesight describe`."""

from pathlib import Path
from typing import Annotated

import typer

Repository = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the bundles. [default: TILESIGHT_MODEL_REPOSITORY or model_repository]"
    ),
]


def serve(
    host: Annotated[
        str | None, typer.Option(help="Address. [default: TILESIGHT_HOST or 127.0.0.1]")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port. [default: TILESIGHT_PORT or 8000]")
    ] = None,
    model_repository: Repository = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes. [default: TILESIGHT_WORKERS or 1]")
    ] = None,
) -> None:
    """Start the gateway; every TILESIGHT_ variable sets what it is named after."""
    from serving.settings import Settings

    settings = Settings.from_environment(
        host=host, port=port, model_repository=model_repository, workers=workers
    )
    if settings.workers == 1:
        from serving.server import run
    else:
        # Loads none of what the workers load.
        from serving.supervisor import run
    run(settings)


def describe(
    tiles: Annotated[
        list[Path],
        typer.Argument(exists=True, dir_okay=False, readable=True, metavar="TILE..."),
    ],
    question: Annotated[
        list[str] | None, typer.Option("--question", "-q", help="Ask this; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    model_repository: Repository = None,
) -> None:
    """Say what is on each tile: labels, a caption, answers to your questions."""
    from serving.describe import run
    from serving.settings import Settings

    settings = Settings.from_environment(model_repository=model_repository)
    if not run(settings, tiles, question or [], as_json):
        raise typer.Exit(2)
