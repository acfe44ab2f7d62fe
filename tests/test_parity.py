"""The committed models in the gateway's own runtime and behind the real Triton: one answer."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from serving.settings import Settings
from tests.conftest import ROOT
from tests.serving.gateway import started
from tests.triton.triton_server import triton_home
from tilesight.triton import Installation, TritonServer
from training.datasets.splits import read_split
from training.datasets.ucm import tile_path

__all__ = ["triton_home"]

REPOSITORY = ROOT / "model_repository"
TILES = 50
PATHS = (
    "/labels",
    "/caption?beams=3&candidates=3&explain=true",
    "/vqa?question=Are+there+trees%3F&question=What+is+the+theme+of+this+picture%3F",
)
# What rounding in another order may change; every other value has to be the same.
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def embedded() -> Iterator[TestClient]:
    with started(Settings(model_repository=REPOSITORY, device="cpu")) as client:
        yield client


@pytest.fixture(scope="module")
def over_triton(triton_home: Installation) -> Iterator[TestClient]:
    with TritonServer(REPOSITORY, []) as server:
        settings = Settings(
            model_repository=REPOSITORY, runtime="triton", triton_url=server.grpc_url
        )
        with started(settings) as client:
            yield client


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.parametrize("path", PATHS)
def test_triton_answers_as_the_gateway_itself_does(
    path: str, ucm_real: Path, over_triton: TestClient, embedded: TestClient
) -> None:
    stems = read_split("ucm", "test")
    tiles = [tile_path(ucm_real, stem).read_bytes() for stem in stems[:: len(stems) // TILES]]

    def ask(client: TestClient, tile: bytes) -> dict[str, Any]:
        answer = client.post(path, content=tile, headers={"Content-Type": "image/jpeg"})
        assert answer.status_code == 200, answer.text
        return answer.json()

    # Asked at once, Triton joins tiles to batches: what an answer must not depend on.
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda tile: ask(over_triton, tile), tiles[:TILES]))
    for tile, answer in zip(tiles[:TILES], found, strict=True):
        expected = ask(embedded, tile)
        assert answer["model"].pop("backend").startswith("triton")
        assert expected["model"].pop("backend").startswith("onnxruntime")
        assert difference(expected, answer) <= TOLERANCE


def difference(expected: object, found: object) -> float:
    """The largest difference of two numbers at the same place; infinite where the rest differs."""
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        return max((difference(expected[key], found[key]) for key in expected), default=0.0)
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = zip(expected, found, strict=True)
        return max((difference(one, other) for one, other in pairs), default=0.0)
    if isinstance(expected, float) and isinstance(found, float):
        return abs(expected - found)
    return 0.0 if expected == found else float("inf")
