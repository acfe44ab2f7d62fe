"""The command `tilesight`: each room brings its commands, loaded only where it is installed."""

import warnings
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer

import tilesight
from tilesight.errors import MissingExtraError, TilesightError

_FAILED = 2


class Room(NamedTuple):
    """A package of commands, and the extra of this distribution that brings what it needs."""

    module: str
    commands: tuple[str, ...]
    extra: str


ROOMS = (
    Room("serving.cli", ("serve", "describe"), "serve"),
    Room("serving.keys_cli", ("keys",), "serve"),
    Room("training.cli", ("train", "evaluate", "study"), "train"),
    Room("export.cli", ("export", "certify", "verify"), "export"),
    Room("export.preflight_cli", ("preflight",), "export"),
    Room("tilesight.models_cli", ("models",), "serve"),
    Room("tilesight.triton.cli", ("triton",), "serve"),
)


def build(rooms: tuple[Room, ...] = ROOMS) -> typer.Typer:
    """The command line with the commands of the rooms."""
    app = typer.Typer(
        name="tilesight",
        no_args_is_help=True,
        pretty_exceptions_show_locals=False,
    )
    app.callback()(_options)
    for room in rooms:
        _add(app, room)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tilesight {tilesight.__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", is_eager=True, callback=_show_version
        ),
    ] = False,
) -> None:
    """Aerial and satellite tiles into words: labels, captions, answers."""


def _add(app: typer.Typer, room: Room) -> None:
    """Adds the room's commands; where the room is absent, commands that say how to get it."""
    try:
        module = import_module(room.module)
    except ModuleNotFoundError as error:
        for name in room.commands:
            settings = {"allow_extra_args": True, "ignore_unknown_options": True}
            help_text = f"(needs pip install 'tilesight[{room.extra}]')"
            app.command(name, help=help_text, context_settings=settings)(
                _guarded(_absent(error), name, room.extra)
            )
        return
    for name in room.commands:
        command = getattr(module, name)
        if isinstance(command, typer.Typer):
            _add_group(app, command, name, room.extra)
        else:
            app.command(name)(_guarded(command, name, room.extra))


def _add_group(app: typer.Typer, group: typer.Typer, name: str, extra: str) -> None:
    """Adds a command that has commands of its own."""
    guarded = typer.Typer(no_args_is_help=True, help=group.info.help)
    for one in group.registered_commands:
        assert one.callback is not None
        inner = one.name or one.callback.__name__
        guarded.command(inner)(_guarded(one.callback, f"{name} {inner}", extra))
    app.add_typer(guarded, name=name)


def _absent(error: ModuleNotFoundError) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


def _guarded(command: Callable[..., Any], name: str, extra: str) -> Callable[..., Any]:
    """The command; a failure that the user can mend becomes a line and an exit status."""

    @wraps(command)
    def guarded(*args: Any, **options: Any) -> Any:  # noqa: ANN401
        try:
            try:
                return command(*args, **options)
            except ModuleNotFoundError as error:
                raise MissingExtraError(
                    f"{name} needs the package {error.name}, which is not installed: "
                    f"pip install 'tilesight[{extra}]'"
                ) from error
        except TilesightError as error:
            typer.echo(f"tilesight {name}: {error}", err=True)
            raise typer.Exit(_FAILED) from error

    return guarded


def main() -> None:
    """Runs the command that the arguments name."""
    # torch-geometric compiles one of its classes so when it is imported; no user can mend it.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    build()()


if __name__ == "__main__":
    main()
