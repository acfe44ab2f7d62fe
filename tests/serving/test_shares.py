"""How often one client may ask: a share for each key, else for each address."""

from pathlib import Path

import pytest

from tests.serving.api_keys import bearing
from tests.serving.command import send, serving
from tests.serving.door import PNG, TOKEN, ask
from tests.serving.gateway import settings_for, started, tile


def test_who_asks_too_often_is_told_when_to_come_back(
    shared_repository: Path, keys_file: Path
) -> None:
    shares = {"client_rate": 0.001, "client_burst": 2}
    settings = settings_for(shared_repository, api_keys_file=keys_file, **shares)
    with started(settings) as client:
        for _ in range(2):
            assert ask(client, "/labels", "people")[0] == 200
        headers = PNG | bearing(TOKEN["people"])
        answer = client.post("/caption", content=tile("blue"), headers=headers)
        assert (answer.status_code, answer.json()["type"]) == (429, "/problems/too-many-requests")
        assert (answer.json()["limit"], answer.json()["burst"]) == (0.001, 2)
        assert 900 < int(answer.headers["Retry-After"]) <= 1000
        assert "0.001 requests with tiles a second, 2 at once" in answer.json()["detail"]
        # Counted by key, and tiles alone; who is refused takes nothing from anybody.
        assert ask(client, "/labels", "jobs") == (200, "")
        assert ask(client, "/labels", "revoked") == (401, "unauthorized")
        for _ in range(3):
            assert ask(client, "/metrics", "prometheus")[0] == 200
        page = client.get("/metrics", headers=bearing(TOKEN["prometheus"])).text
        assert 'tilesight_rejections_total{type="too-many-requests"} 1.0' in page
        post = client.get("/openapi.json").json()["paths"]["/labels"]["post"]
        assert {"401", "403", "429"} <= post["responses"].keys()


def test_without_keys_the_address_has_the_share(shared_repository: Path) -> None:
    with started(settings_for(shared_repository, client_rate=0.001)) as client:
        assert ask(client, "/labels", None)[0] == 200
        # Another name does not make another client.
        assert ask(client, "/labels", "people") == (429, "too-many-requests")
        assert ask(client, "/labels", None, **{"X-Forwarded-For": "192.0.2.9"})[0] == 429
        assert ask(client, "/models", None)[0] == 200


@pytest.mark.parametrize(
    ("trusted", "chains", "statuses"),
    [
        # Whoever asks may write what he likes: he is who he is on the wire.
        ({}, ["192.0.2.1", "192.0.2.2"], [200, 429]),
        # What stands before the proxy's own word was written by the client.
        (
            {"TILESIGHT_TRUSTED_PROXIES": "127.0.0.0/8, 10.0.0.1"},
            ["192.0.2.1", "192.0.2.2", "192.0.2.3, 192.0.2.1", "192.0.2.2, 10.0.0.1", "192.0.2.4"],
            [200, 200, 429, 429, 200],
        ),
    ],
)
def test_an_address_is_believed_of_a_trusted_proxy_alone(
    shared_repository: Path,
    tmp_path: Path,
    trusted: dict[str, str],
    chains: list[str],
    statuses: list[int],
) -> None:
    variables = {"TILESIGHT_CLIENT_RATE": "0.001"} | trusted
    with serving(shared_repository, tmp_path, **variables) as one:
        found = [
            send(one.address, "POST", "/labels", tile("blue"), X_Forwarded_For=chain)[0]
            for chain in chains
        ]
    assert found == statuses
