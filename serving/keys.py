"""API keys: what one is allowed, how its token is made, and the document that lists them.

A token is 256 random bits, so its plain SHA-256 is all that is kept. A slow hash (bcrypt, Argon2)
makes guessing dearer where people choose their secrets; nobody guesses 2**256, and a slow hash on
each request would be a way to keep the gateway busy.
"""

import hashlib
import re
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    model_validator,
)

from tilesight.errors import ConfigError

# So that scanners for secrets, and people, see what has leaked.
_PREFIX = "tsk_"
_BITS = 256
_TOKEN = re.compile(_PREFIX + "[A-Za-z0-9_-]{43}")
_LENGTH = len(_PREFIX) + 43


class Scope(StrEnum):
    """What a key may open."""

    TILES = "tiles"
    BACKFILL = "backfill"
    OPERATIONS = "operations"


class Key(BaseModel):
    """One key as it is kept: everything but the token."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="stands in the log")
    ]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="of the token")]
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    created: AwareDatetime
    expires: Annotated[
        AwareDatetime | None, Field(description="the first moment at which it no longer works")
    ] = None
    revoked: bool = False

    @field_serializer("scopes")
    def _in_order(self, scopes: frozenset[Scope]) -> list[str]:
        return [scope.value for scope in Scope if scope in scopes]

    def expired(self) -> bool:
        """Whether its time is over."""
        return self.expires is not None and datetime.now(UTC) >= self.expires


class KeyList(BaseModel):
    """All keys of a gateway: the content of its key file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1] = 1
    keys: tuple[Key, ...] = ()

    @model_validator(mode="after")
    def _all_different(self) -> Self:
        for field in ("name", "sha256"):
            seen: set[str] = set()
            for value in (getattr(key, field) for key in self.keys):
                if value in seen:
                    raise ValueError(f"two keys have the {field} {value}")
                seen.add(value)
        return self

    @staticmethod
    def parse(text: str | bytes, origin: str) -> "KeyList":
        """The keys of a JSON document that `origin` names: a path or a variable.

        Raises:
            ConfigError: naming the origin, and the field that is wrong.
        """
        return _made(origin, lambda: KeyList.model_validate_json(text))

    def with_those_of(self, other: "KeyList", origin: str) -> "KeyList":
        """The keys of both.

        Raises:
            ConfigError: they share a name or a token.
        """
        return _made(origin, lambda: KeyList(keys=self.keys + other.keys))

    def with_entry(self, origin: str, **fields: Any) -> "KeyList":  # noqa: ANN401
        """The keys and one more, which is made of the fields.

        Raises:
            ConfigError: a field is wrong, or another key has the name.
        """
        return _made(origin, lambda: KeyList(keys=(*self.keys, Key(**fields))))


def _made(origin: str, make: Callable[[], KeyList]) -> KeyList:
    """What `make` makes; a field that is wrong becomes a message that names the origin."""
    try:
        return make()
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_wrong(error)}") from None


def _wrong(error: ValidationError) -> str:
    """Each field with what is wrong; the values stay out, one may be a token in a wrong place."""
    return "; ".join(
        ": ".join([*filter(None, [".".join(map(str, one["loc"]))]), one["msg"]])
        for one in error.errors(include_input=False, include_url=False)
    )


def new_token() -> str:
    """A token that nobody has or guesses."""
    return _PREFIX + secrets.token_urlsafe(_BITS // 8)


def is_token(text: str) -> bool:
    """Whether it could have come from `new_token`."""
    return _TOKEN.fullmatch(text) is not None


def digest(token: bytes) -> str | None:
    """The SHA-256 under which the token's key is listed; None for what is too long or too short.

    Whoever sends 60 kB does not have them hashed. That the length shows is no loss: it is public.
    """
    return hashlib.sha256(token).hexdigest() if len(token) == _LENGTH else None
