"""A gateway that asks for keys, and the keys of tests."""

from datetime import UTC, datetime

from fastapi.testclient import TestClient

from serving.keys import Key, Scope
from tests.serving import api_keys
from tests.serving.api_keys import bearing
from tests.serving.gateway import tile

PNG = {"Content-Type": "image/png"}
PAGE = "https://map.example"  # the one other origin whose pages may ask
TILES, BACKFILL, OPERATIONS = Scope
PAST, FUTURE = datetime(2026, 2, 1, tzinfo=UTC), datetime(2999, 1, 1, tzinfo=UTC)

MADE = {
    "people": api_keys.made("people", TILES, expires=FUTURE),
    "jobs": api_keys.made("jobs", TILES, BACKFILL),
    "only-backfill": api_keys.made("only-backfill", BACKFILL),
    "prometheus": api_keys.made("prometheus", OPERATIONS),
    "revoked": api_keys.made("revoked", revoked=True),
    "expired": api_keys.made("expired", expires=PAST),
}
TOKEN = {name: token for name, (token, _) in MADE.items()}
KEYS: list[Key] = [key for _, key in MADE.values()]


def ask(client: TestClient, path: str, name: str | None, **headers: str) -> tuple[int, str]:
    """Status and the end of the problem's type, or nothing, for a key of this name."""
    given = headers | (bearing(TOKEN[name]) if name else {})
    if path in ("/labels", "/caption", "/vqa"):
        answer = client.post(path, content=tile("blue"), headers=PNG | given)
    else:
        answer = client.get(path, headers=given)
    problem = answer.headers["Content-Type"] == "application/problem+json"
    return answer.status_code, answer.json()["type"].split("/")[-1] if problem else ""
