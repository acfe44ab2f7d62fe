"""Misspelt query parameters are refused, not ignored."""

from fastapi import Request

from serving.errors import UnknownParameterError


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
