"""The command `tilesight triton`: the real Triton in the foreground, over the repository."""

import signal
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer

from tilesight.triton.installation import install as make
from tilesight.triton.server import TritonServer


def triton(
    repository: Annotated[
        Path, typer.Option(envvar="TILESIGHT_MODEL_REPOSITORY", help="Folder of the bundles.")
    ] = Path("model_repository"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks one.")] = 8001,
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks one.")] = 8003,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks one.")] = 8002,
    control: Annotated[
        Literal["explicit", "none"],
        typer.Option(help="explicit: the gateway loads and unloads versions; none: nobody does."),
    ] = "explicit",
    log: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Keep Triton's log in this file.")
    ] = None,
    install: Annotated[
        bool, typer.Option("--install", help="Install Triton, and do not start it.")
    ] = False,
) -> None:
    """Run the real Triton on this machine until Ctrl-C; for development, not for production."""
    if install:
        typer.echo(f"Triton is installed in {make().home}")
        return
    signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGTERM, _end)
    # Ignored by who started it: nohup wants it to outlive the terminal.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _end)
    server = TritonServer(
        repository,
        host=host,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        control=control,
        log=log,
    )
    with server:
        typer.echo(_greeting(server, control))
        server.wait()


def _end(number: int, frame: FrameType | None) -> None:
    """Leaves through the context managers; the server takes seconds to stop, undisturbed."""
    for later in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(later, signal.SIG_IGN)
    raise SystemExit(0)


def _greeting(server: TritonServer, control: str) -> str:
    controlled = "" if control == "explicit" else " TILESIGHT_TRITON_CONTROL=false"
    return "\n".join(
        [
            f"Triton serves {', '.join(server.models)}",
            f"  gRPC     {server.grpc_url}",
            f"  HTTP     http://{server.http_url}",
            f"  metrics  {server.metrics_url}",
            f"  log      {server.log_path}",
            "The gateway in front of it, in another terminal:",
            f"  TILESIGHT_RUNTIME=triton TILESIGHT_TRITON_URL={server.grpc_url}{controlled} "
            "tilesight serve",
            "Ctrl-C stops it.",
        ]
    )
