"""Who may ask: keys, a share for each client, pages of other origins, and headers for browsers."""

import math
import sys
from typing import Any

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Asgi

from serving.clients import Clients, address_of
from serving.errors import (
    AmbiguousKeyError,
    ForbiddenError,
    RequestError,
    TooManyRequestsError,
    UnauthorizedError,
)
from serving.keyring import Keyring
from serving.keys import Key, Scope
from serving.limits import BodyLimit
from serving.problems import respond, responses
from serving.security_headers import ASSETS, fortified

TILES = ("/labels", "/caption", "/vqa")
# What a key has to open. A path in neither table needs a key, whatever its scopes: a route that
# is added and forgotten here is not open.
NEEDED = dict.fromkeys(TILES, Scope.TILES) | dict.fromkeys(
    ("/models", "/metrics"), Scope.OPERATIONS
)
# Probes carry no keys; the pages are the same for everybody and hold nothing of anybody.
OPEN = frozenset({"/", "/healthz", "/readyz", "/docs", "/openapi.json"})

_TILES = frozenset(TILES)
_REALM = 'Bearer realm="tilesight"'
_BACKFILL = b"backfill"
_ASKING = ["Authorization", "Content-Type", "Tilesight-Lane", "Tilesight-Deadline", "X-Request-ID"]
_ANSWERED = ["X-Request-ID", "Server-Timing", "Retry-After"]


class Guard:
    """Middleware that refuses before anything is read; without keys and limits it adds headers.

    It stands outside whatever reads the body.
    """

    def __init__(
        self,
        app: ASGIApp,
        keyring: Keyring | None = None,
        clients: Clients | None = None,
        origins: tuple[str, ...] = (),
    ) -> None:
        """The app behind the guard; what is None or empty is not asked for."""
        self._app = app
        self._keyring = keyring
        self._clients = clients
        self._inner: ASGIApp = self._checked if keyring or clients else app
        if origins:
            # Outside the keys: a browser sends its preflight without one. No credentials: they
            # would be cookies, and nothing here looks at any.
            self._inner = CORSMiddleware(
                self._inner,
                allow_origins=origins,
                allow_methods=["GET", "POST"],
                allow_headers=_ASKING,
                expose_headers=_ANSWERED,
            )
        # Who is still sending a tile loses the answer when the connection closes under it, so the
        # rest of the body is thrown away as that of a body that is too large.
        self._refused = BodyLimit(_refuse, max_bytes=sys.maxsize, timeout_s=sys.maxsize)

    async def __call__(self, scope: Asgi, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers 400, 401, 403 or 429."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        else:
            await self._inner(scope, receive, fortified(scope, send))

    async def _checked(self, scope: Asgi, receive: Receive, send: Send) -> None:
        try:
            self._check(scope)
        except RequestError as error:
            scope["state"]["refusal"] = error
            await self._refused(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, scope: Asgi) -> None:
        path = scope["path"]
        if path in OPEN or path.startswith(f"{ASSETS}/"):
            return
        key = _key(scope, self._keyring) if self._keyring else None
        if self._clients and path in _TILES:
            _take(self._clients, f"key {key.name}" if key else f"address {address_of(scope)}")


def _key(scope: Asgi, keyring: Keyring) -> Key:
    """The key of a request that may do what it asks for.

    Raises:
        AmbiguousKeyError: it brings several.
        UnauthorizedError: it brings none that works.
        ForbiddenError: its key lacks a scope.
    """
    credentials, backfill = _headers(scope)
    key = keyring.find(_token(credentials))
    if key is None or key.revoked or key.expired():
        # One answer for all three: which of them it was is in the log of who made the key.
        raise UnauthorizedError(
            "Authorization: the API key is unknown, revoked or expired",
            challenge=f'{_REALM}, error="invalid_token"',
        )
    scope["state"]["key"] = key.name
    needed = NEEDED.get(scope["path"])
    if needed:
        _require(key, needed)
        if backfill and needed is Scope.TILES:
            _require(key, Scope.BACKFILL)
    return key


def _headers(scope: Asgi) -> tuple[list[bytes], bool]:
    """The values of Authorization, and whether the request wants the lane of large jobs."""
    credentials: list[bytes] = []
    backfill = False
    for name, value in scope["headers"]:
        if name == b"authorization":
            credentials.append(value)
        elif name == b"tilesight-lane":
            # As any reader might read it: whoever means backfill must not slip through.
            backfill = backfill or _BACKFILL in value.lower()
    return credentials, backfill


def _token(credentials: list[bytes]) -> bytes:
    if len(credentials) > 1:
        raise AmbiguousKeyError(
            f"Authorization: sent {len(credentials)} times, the limit is 1",
            limit=1,
            challenge=f'{_REALM}, error="invalid_request"',
        )
    scheme, _, token = credentials[0].strip().partition(b" ") if credentials else (b"", b"", b"")
    if scheme.lower() != b"bearer" or not token:
        raise UnauthorizedError(
            "no API key; send the header Authorization: Bearer KEY", challenge=_REALM
        )
    return token.lstrip()


def _require(key: Key, scope: Scope) -> None:
    if scope not in key.scopes:
        raise ForbiddenError(
            f"the API key {key.name} lacks the scope {scope}",
            scope=scope.value,
            challenge=f'{_REALM}, error="insufficient_scope", scope="{scope}"',
        )


def _take(clients: Clients, client: str) -> None:
    if wait_s := clients.take(client):
        raise TooManyRequestsError(
            f"the limit is {clients.rate:g} requests with tiles a second, "
            f"{clients.burst} at once; again in {wait_s:.3g} s",
            limit=clients.rate,
            burst=clients.burst,
            retry_after=math.ceil(wait_s),
        )


async def _refuse(scope: Asgi, receive: Receive, send: Send) -> None:
    await respond(scope, scope["state"]["refusal"])(scope, receive, send)


def describe(document: dict[str, Any], keyring: Keyring | None, clients: Clients | None) -> None:
    """Writes into the OpenAPI document which keys the endpoints ask for, and their refusals."""
    if keyring:
        schemes = document["components"].setdefault("securitySchemes", {})
        schemes["key"] = {"type": "http", "scheme": "bearer", "description": "an API key"}
    for path, scope in NEEDED.items():
        for operation in document["paths"].get(path, {}).values():
            statuses = [400, 401, 403] if keyring else []
            if keyring:
                operation["security"] = [{"key": [scope.value]}]
            if clients and path in _TILES:
                statuses.append(429)
            operation["responses"] |= {str(one): what for one, what in responses(*statuses).items()}
