"""The gateway beside the limit and its peers: one run, the same cores, tiles and ONNX file.

    python -m loadtest.compare --tiles FOLDER --peers-python PEERS/bin/python --run RUNS/signa

Measured are the bare loop over the session, this gateway, FastAPI with torch, FastAPI with ONNX
Runtime, LitServe, BentoML, and this gateway over Triton, in closed and open loop; the peers'
environment: loadtest/README.md. `--out` gets report.md, compare.png and every cell as JSON; a run
that was broken off is taken up again there.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from loadtest.bare import bare_process
from loadtest.cells import CELLS, LEFT_OUT, OtherRunError, Store
from loadtest.client import Plan
from loadtest.compare_plots import write_plots
from loadtest.compare_report import write_report
from loadtest.forms import served_as, version_folder
from loadtest.generator import generating
from loadtest.kinds import KINDS, Place
from loadtest.lineup import Choice, LineUp
from loadtest.rounds import Rounds, Shape
from loadtest.surroundings import processor, versions
from loadtest.tiles import load_tiles
from tilesight import manifest
from tilesight.cores import usable_cores
from tilesight.manifest import MODEL_NAME, LabelsHead

_QUESTION = "is there water in the picture?"
_MODELS = {
    "signa": ("/labels", "signa"),
    "jtts": ("/caption", "jtts"),
    "spatialnet-vit": ("/vqa", "spatialnet_vit_head"),
}
_CONCURRENCIES, _FRACTIONS = (1, 2, 4, 8, 16, 32), (0.2, 0.5, 0.8, 0.95)
_QUICK_CONCURRENCIES, _QUICK_FRACTIONS = (1, 16), (0.8,)


def compare(given: argparse.Namespace, console: Console) -> None:
    """Measures what the folder `given.out` does not have yet."""
    endpoint, _ = _MODELS[given.model]
    place = placed(given)
    plan = Plan(
        url=endpoint,
        seconds=given.seconds,
        warmup_s=0.3,
        tiles=given.tiles,
        questions=(_QUESTION,) if given.model == "spatialnet-vit" else (),
    )
    shape = Shape(
        concurrencies=_QUICK_CONCURRENCIES if given.quick else _CONCURRENCIES,
        fractions=_QUICK_FRACTIONS if given.quick else _FRACTIONS,
        repeats=given.repeats,
        seconds=given.seconds,
        cores=usable_cores(),
    )
    tiles = load_tiles(plan.tiles, plan.tiles_limit, plan.seed)
    with ExitStack() as stack:
        generator = stack.enter_context(generating())
        bare = stack.enter_context(bare_process(place.folder, given.tiles, plan.questions))
        choice = Choice(given.only, given.settings, not given.quick, shape.cores, given.also)
        line_up = LineUp(choice, place, plan, tiles, generator, bare, console)
        setting = line_up.bare_setting()
        servers = line_up.start(stack)
        about = _about(given, place, shape, len(tiles)) | {LEFT_OUT: line_up.left_out}
        store = Store(given.out, about)
        with _progress(console) as progress:
            task = progress.add_task("", total=shape.count(len(servers)))
            advance: Callable[[str], None] = lambda text: progress.update(  # noqa: E731
                task, advance=1, description=text
            )
            Rounds(
                store, generator, bare, setting, servers, plan, shape, advance
            ).measure()  # fmt: skip


def placed(given: argparse.Namespace) -> Place:
    """What all servers are given; the repository is copied where the other precision is wanted."""
    _, name = _MODELS[given.model]
    logs = given.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)

    repository = served_as(given.repository, name, given.precision, given.out)
    chosen = exact = version_folder(repository, name)
    if given.precision == "int8" and name == "signa":  # torch computes in float32 all the same
        exact = version_folder(served_as(given.repository, name, "float32", given.out), name)
    described = manifest.read(chosen)
    return Place(
        model=name,
        repository=repository,
        folder=chosen,
        graph=chosen / MODEL_NAME,
        exact_graph=exact / MODEL_NAME,
        labels=described.head.labels if isinstance(described.head, LabelsHead) else [],
        height=described.input.height if described.input else 0,
        width=described.input.width if described.input else 0,
        run=given.run,
        peers_python=given.peers_python,
        logs=logs,
    )


def _about(given: argparse.Namespace, place: Place, shape: Shape, tiles: int) -> dict[str, Any]:
    peers = f"; peers: {versions(given.peers_python)}" if given.peers_python else ""
    return {
        "model": given.model,
        "endpoint": _MODELS[given.model][0],
        "precision": given.precision,
        "graph_sha256": manifest.read_unchecked(place.folder).files[MODEL_NAME],
        "tiles": f"{tiles} tiles{' of ' + given.tiles.name if given.tiles else ', drawn'}",
        "repeats": shape.repeats,
        "seconds": shape.seconds,
        "cores": shape.cores,
        "cpu": processor(),
        "versions": versions() + peers,
    }


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description:44}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console)


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    text = __doc__ or ""
    parser = argparse.ArgumentParser("python -m loadtest.compare", description=text.split("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path("runs/compare"), help="folder [%(default)s]"
    )
    parser.add_argument("--model", choices=sorted(_MODELS), default="signa")
    parser.add_argument("--precision", choices=["float32", "int8"], default="float32")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--tiles", type=Path, help="folder of tiles; without it they are drawn")
    parser.add_argument("--run", type=Path, help="run folder of the training, for torch")
    parser.add_argument("--peers-python", type=Path, help="Python of the peers' environment")
    parser.add_argument("--only", nargs="+", choices=[kind.name for kind in KINDS])
    parser.add_argument("--also", nargs="+", choices=[kind.name for kind in KINDS], default=[])
    parser.add_argument("--settings", type=Path, help="settings.json of a run before: no search")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--seconds", type=float, help="of a closed-loop cell")
    parser.add_argument("--quick", action="store_true", help="two minutes, to see that it works")
    given = parser.parse_args(words)
    given.repeats = given.repeats or (1 if given.quick else 3)
    given.seconds = given.seconds or (0.8 if given.quick else 1.5)
    return given


def main(words: Sequence[str] | None = None) -> None:
    """Runs the comparison; whatever ends it, what was measured is written."""
    given, console = _arguments(words), Console()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are stopped first
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        compare(given, console)
    except OtherRunError as error:
        console.print(f"[red]{error}[/]")
        sys.exit(2)
    finally:
        if (given.out / CELLS).is_file():
            report = write_report(given.out)
            title = f"{_MODELS[given.model][0]}, {given.precision}"
            print(report.read_text(encoding="utf-8"))
            console.print(f"{report}, {write_plots(given.out, title)}")


if __name__ == "__main__":
    main()
