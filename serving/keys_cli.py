"""The commands that make and revoke API keys: `tilesight keys`."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from serving import keys_file
from serving.keys import Key, KeyList, Scope, digest, is_token, new_token
from tilesight.errors import ConfigError

_HASH = 12

keys = typer.Typer(no_args_is_help=True, help="API keys: who may ask the gateway, and what.")

File = Annotated[
    Path,
    typer.Option("--file", envvar="TILESIGHT_API_KEYS_FILE", help="The key file."),
]


@keys.command()
def new(
    file: File,
    name: Annotated[str, typer.Option(help="Stands in the log: a-z, A-Z, 0-9, '.', '_', '-'.")],
    scope: Annotated[
        list[Scope],
        typer.Option(help="What it opens, repeatable. backfill: Tilesight-Lane, beside tiles."),
    ],
    expires: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"],
            help="The first day, or second, on which it no longer works; UTC.",
        ),
    ] = None,
) -> None:
    """Add a key; its token is printed this once, and only its hash is kept."""
    ends = expires.replace(tzinfo=UTC) if expires else None
    created = datetime.now(UTC).replace(microsecond=0)
    if ends and ends <= created:
        raise ConfigError(f"--expires: {ends.isoformat()} is over")
    token = new_token()
    keys_file.change(
        file,
        lambda before: before.with_entry(
            f"{file}: new key",
            name=name,
            sha256=digest(token.encode()),
            scopes=frozenset(scope),
            created=created,
            expires=ends,
        ),
    )
    typer.echo(token)
    typer.echo(f"{file}: added {name}; the token above is not kept anywhere", err=True)


@keys.command("list")
def list_(
    file: File, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Show the keys, without their tokens."""
    found = keys_file.read(file)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    table = Table(box=SIMPLE)
    for column in ("key", "scopes", "created", "expires", "state", "sha256"):
        table.add_column(column, overflow="fold")
    for key in found.keys:
        table.add_row(
            key.name,
            " ".join(one for one in Scope if one in key.scopes),
            f"{key.created:%Y-%m-%d}",
            f"{key.expires:%Y-%m-%d %H:%M}" if key.expires else "never",
            _state(key),
            key.sha256[:_HASH],
        )
    Console().print(table)


@keys.command()
def revoke(file: File, names: Annotated[list[str], typer.Argument(metavar="NAME...")]) -> None:
    """Take keys out of use; a running gateway follows within a second or two."""

    def change(before: KeyList) -> KeyList:
        if absent := sorted(set(names) - {key.name for key in before.keys}):
            known = ", ".join(key.name for key in before.keys) or "none"
            raise ConfigError(f"{file}: no key {', '.join(absent)}; there are {known}")
        changed = (
            key.model_copy(update={"revoked": True}) if key.name in names else key
            for key in before.keys
        )
        return before.model_copy(update={"keys": tuple(changed)})

    keys_file.change(file, change)
    for name in names:
        typer.echo(f"{name}: revoked")


@keys.command("hash")
def hash_() -> None:
    """Print the SHA-256 of a token read from standard input, to find its entry in a key file."""
    token = typer.get_text_stream("stdin").readline().strip()
    # Not repeated in the message: it may be a real secret of something else.
    if not is_token(token):
        raise ConfigError("standard input: not a token that `tilesight keys new` made")
    typer.echo(digest(token.encode()))


def _state(key: Key) -> str:
    if key.revoked:
        return "revoked"
    return "expired" if key.expired() else "valid"
