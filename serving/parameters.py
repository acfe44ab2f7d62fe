"""Query parameters: misspelt ones are refused, and so are values beyond the served models."""

from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError

from serving.errors import UnknownParameterError
from serving.repository import Served


async def refuse_unknown(request: Request) -> None:
    """Refuses a query parameter that the endpoint does not have.

    Raises:
        UnknownParameterError: naming the parameter and those that the endpoint has.
    """
    path = request.scope["route"].path
    operation = request.app.openapi()["paths"].get(path, {}).get(request.method.lower(), {})
    allowed = [one["name"] for one in operation.get("parameters", []) if one["in"] == "query"]
    if unknown := sorted(set(request.query_params) - set(allowed)):
        raise UnknownParameterError(
            f"{', '.join(unknown)}: unknown parameter; "
            f"{'the parameters are ' + ', '.join(allowed) if allowed else 'there are none here'}",
            allowed=allowed,
        )


def require_at_most(name: str, value: int | None, most: int) -> None:
    """Refuses a value beyond what the model that answers can give.

    Raises:
        RequestValidationError: as for a bound that never changes.
    """
    if value is not None and value > most:
        raise RequestValidationError(
            [
                {
                    "type": "less_than_equal",
                    "loc": ("query", name),
                    "msg": f"Input should be less than or equal to {most}",
                    "input": value,
                    "ctx": {"le": most},
                }
            ]
        )


def state_bounds(document: dict[str, Any], served: Served) -> None:
    """Writes into the OpenAPI document the bounds that the served models set."""
    beams = served.caption.head.max_beams
    _bound(document, "/labels", "top_k", len(served.labels.head.labels))
    _bound(document, "/caption", "beams", beams)
    _bound(document, "/caption", "candidates", beams)


def _bound(document: dict[str, Any], path: str, name: str, most: int) -> None:
    parameters = document["paths"][path]["post"]["parameters"]
    (found,) = [one for one in parameters if one["name"] == name]
    (number,) = [one for one in found["schema"]["anyOf"] if one["type"] == "integer"]
    number["maximum"] = most
