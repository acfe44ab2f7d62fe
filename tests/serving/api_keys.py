"""API keys for tests, and files of them."""

from datetime import UTC, datetime
from pathlib import Path

from serving.keys import Key, KeyList, Scope, digest, new_token

CREATED = datetime(2026, 1, 1, tzinfo=UTC)


def made(
    name: str, *scopes: Scope, revoked: bool = False, expires: datetime | None = None
) -> tuple[str, Key]:
    """A token and its key."""
    token = new_token()
    key = Key(
        name=name,
        sha256=str(digest(token.encode())),
        scopes=frozenset(scopes or Scope),
        created=CREATED,
        expires=expires,
        revoked=revoked,
    )
    return token, key


def document(*keys: Key) -> str:
    """What a file of these keys holds."""
    return KeyList(keys=keys).model_dump_json()


def write(path: Path, *keys: Key) -> Path:
    """A file of these keys; another one at the same place is replaced in one step."""
    other = path.with_name(f"{path.name}.new")
    other.write_text(document(*keys), encoding="utf-8")
    return other.replace(path)


def bearing(token: str) -> dict[str, str]:
    """The header that carries the token."""
    return {"Authorization": f"Bearer {token}"}
