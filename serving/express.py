"""The short way to the routes that carry the load, past the router and its layers."""

from collections.abc import Iterable

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.problems import respond
from serving.tile_route import TileRoute
from tilesight.errors import TilesightError

_JSON = (b"content-type", b"application/json")


class Express:
    """Middleware that hands a POST to a tile route to its handler itself.

    FastAPI would find the same route and call the same handler, by way of two routers, three exit
    stacks and as many error handlers: as long as the rest of the gateway takes for a tile. It
    still has the routes, for its document and for what is no POST.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[object]) -> None:
        """The app behind, and the routes among which the tile routes are."""
        self._app = app
        self._routes = {
            route.path: (route, route.answering())
            for route in routes
            if isinstance(route, TileRoute)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or passes on what is not for a tile route."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        found = self._routes.get(scope["path"])
        if found is None:
            await self._app(scope, receive, send)
            return
        scope["route"], answering = found
        try:
            body = await answering(Request(scope, receive, send))
        except (TilesightError, RequestValidationError, HTTPException) as error:
            await respond(scope, error)(scope, receive, send)
            return
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": 200, "headers": [_JSON, length]})
        await send({"type": "http.response.body", "body": body})
