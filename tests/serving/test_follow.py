"""Promoted while it runs: whole versions, no failed request, and nothing left behind."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from serving.embedded import EmbeddedRuntime
from serving.lanes import Lanes
from serving.metrics import Metrics
from serving.models import Models
from serving.repository import open_served
from serving.snapshot import Snapshot
from tests.serving import bundles, traffic
from tests.serving.gateway import get, post, served, settings_for, tile, versions, wait_for
from tilesight.errors import BundleError
from tilesight.repository import Repository

SOON = {"follow_s": 0.05}


@pytest.fixture(scope="module")
def two_versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All models in two versions, the first one promoted; copied by the tests."""
    root = tmp_path_factory.mktemp("two") / "model_repository"
    for version in (1, 2):
        bundles.write_repository(root, version)
    Repository(root).promote(dict.fromkeys(traffic.MODELS, 1))
    return root


@pytest.fixture
def repository(two_versions: Path, tmp_path: Path) -> Path:
    return shutil.copytree(two_versions, tmp_path / "model_repository")


@pytest.fixture
def address(repository: Path) -> Iterator[tuple[str, int]]:
    with served(settings_for(repository, **SOON)) as found:
        yield found


def failures(address: tuple[str, int]) -> float:
    (line,) = [
        line
        for line in get(address, "/metrics").splitlines()
        if line.startswith("tilesight_follow_failures_total ")
    ]
    return float(line.split()[1])


def test_no_request_fails_and_no_answer_is_mixed_while_versions_change(
    repository: Path, address: tuple[str, int]
) -> None:
    expected = traffic.references(shutil.copytree(repository, repository.parent / "copy"))
    replies = traffic.under_change(address, repository, count=300, changes=8)
    assert {status for _, status, _ in replies} == {200}
    seen = set()
    for path, _, answer in replies:
        seen.add((path, answer["model"]["version"]))
        assert traffic.said(answer) == expected[path, answer["model"]["version"]]
    assert seen == expected.keys()
    assert failures(address) == 0


def test_answers_tell_the_versions_apart(repository: Path) -> None:
    """Without this the test before could not fail."""
    expected = traffic.references(repository)
    for path in traffic.PATHS:
        assert expected[path, 1] != expected[path, 2]


def test_metrics_name_the_versions_that_are_served(
    repository: Path, address: tuple[str, int]
) -> None:
    traffic.change(repository, address, forward=True)
    infos = [line for line in get(address, "/metrics").splitlines() if "model_info{" in line]
    assert len(infos) == 4
    assert all('version="2"' in line for line in infos)


def test_a_version_that_answers_otherwise_is_not_served(
    repository: Path, address: tuple[str, int]
) -> None:
    golden = {"outputs": {"scores": [0.5] * 4}, "tolerance": 1e-3}
    bundles.edit_manifest(repository / "signa" / "2", "golden", value=golden)
    Repository(repository).promote({"signa": 2})
    wait_for(lambda: failures(address) >= 1)
    status, answer = post(address, "/labels", tile("blue"))
    assert (status, answer["model"]["version"]) == (200, 1)
    assert "ready" in get(address, "/readyz")
    # Another promotion is followed at once, however often the one before has failed.
    wait_for(lambda: failures(address) >= 2)
    Repository(repository).promote({"signa": 1, "jtts": 2})
    wait_for(lambda: versions(address)["jtts"] == 2, 1.0)


def test_a_damaged_repository_file_changes_nothing(
    repository: Path, address: tuple[str, int]
) -> None:
    (repository / "repository.json").write_text("{")
    wait_for(lambda: failures(address) >= 1)
    assert post(address, "/labels", tile("blue"))[0] == 200


def test_bounds_are_those_of_the_served_version(repository: Path, address: tuple[str, int]) -> None:
    assert post(address, "/caption?beams=3", tile("blue"))[0] == 200
    bundles.edit_manifest(repository / "jtts" / "2", "head", "max_beams", value=2)
    Repository(repository).promote({"jtts": 2})
    wait_for(lambda: versions(address)["jtts"] == 2)
    status, problem = post(address, "/caption?beams=3", tile("blue"))
    assert (status, problem["type"]) == (422, "/problems/invalid-parameter")
    assert problem["errors"][0]["le"] == 2
    document = json.loads(get(address, "/openapi.json"))
    parameters = document["paths"]["/caption"]["post"]["parameters"]
    (beams,) = [one for one in parameters if one["name"] == "beams"]
    assert {"type": "integer", "minimum": 1, "maximum": 2} in beams["schema"]["anyOf"]


def test_following_can_be_switched_off(repository: Path) -> None:
    with served(settings_for(repository, follow_s=0)) as address:
        Repository(repository).promote({"signa": 2})
        time.sleep(0.3)
        assert versions(address)["signa"] == 1


@pytest.mark.anyio
async def test_a_version_is_unloaded_when_its_last_request_is_answered(repository: Path) -> None:
    settings = settings_for(repository)
    lanes = Lanes(settings, Metrics())
    runtime = EmbeddedRuntime(settings, lanes)
    models = Models(settings, Metrics(), lanes, runtime)
    await models.start()
    old = models.served.labels
    async with anyio.create_task_group() as group:
        with models.using() as begun:
            Repository(repository).promote({"signa": 2})
            group.start_soon(models.follow)
            while models.served.labels is old:
                await anyio.sleep(0.01)
            assert begun.labels is old
            assert models.served.caption is begun.caption, "what was not promoted stays"
            assert await runtime.holds(old)
    assert not await runtime.holds(old)
    assert await runtime.holds(models.served.labels)
    await models.close()


@pytest.mark.anyio
async def test_a_version_that_was_refused_is_unloaded(repository: Path) -> None:
    settings = settings_for(repository)
    lanes = Lanes(settings, Metrics())
    runtime = EmbeddedRuntime(settings, lanes)
    models = Models(settings, Metrics(), lanes, runtime)
    await models.start()
    before = set(runtime._loaded)
    golden = {"outputs": {"answers": [0.5] * 5}, "tolerance": 1e-3}
    bundles.edit_manifest(repository / "spatialnet_vit_head" / "2", "golden", value=golden)
    Repository(repository).promote({"spatialnet_vit_head": 2})
    with pytest.raises(BundleError, match="answers the golden tile otherwise"):
        await models.follow()
    assert set(runtime._loaded) == before
    await models.close()


@pytest.mark.anyio
async def test_a_snapshot_is_drained_by_its_last_user(repository: Path) -> None:
    snapshot = Snapshot(open_served(settings_for(repository)))
    await snapshot.drained()
    with snapshot.used():
        with snapshot.used(), anyio.move_on_after(0.05) as waited:
            await snapshot.drained()
        assert waited.cancelled_caught
        with anyio.move_on_after(0.05) as waited:
            await snapshot.drained()
        assert waited.cancelled_caught
    await snapshot.drained()
