"""Sessions x threads x batch: found, kept, found again, and never in anybody's way."""

import json
import logging
import time
from pathlib import Path

import pytest

from serving import autotune
from serving.autotune import Cache, tuned, untuned
from serving.embedded import EmbeddedRuntime
from serving.lanes import BACKFILL, INTERACTIVE, Lanes
from serving.metrics import Metrics
from serving.models import Models
from serving.repository import open_served
from serving.sessions import Session
from serving.settings import Settings
from serving.stations import Plan
from serving.ways import Way, onnxruntime
from tests.serving.gateway import settings_for
from tilesight.repository import Repository

PLAN = Plan("onnxruntime float32", 1, 1, 2)


def models(settings: Settings) -> tuple[Models, EmbeddedRuntime]:
    metrics = Metrics()
    lanes = Lanes(settings, metrics)
    runtime = EmbeddedRuntime(settings, lanes)
    return Models(settings, metrics, lanes, runtime), runtime


class Counted:
    """A way that counts the rows that it ran, and takes its time for each run."""

    provider = "test"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def run(self, names: object, inputs: object, stop: object) -> list[object]:

        time.sleep(self.seconds)
        return []


def way(name: str, seconds: float, real: Way, gain: float = 1.0) -> Way:
    """A way whose run takes so long on one core; on several it is `gain` times runs beside it."""

    def sessions(threads: int, runs: int) -> list[Session]:
        once = seconds if threads == 1 else seconds / threads / gain
        return [Counted(once)] * runs  # type: ignore[list-item]

    return Way(name, "test", "1", "float32", real.golden, sessions)


def test_the_fastest_way_wins_and_a_larger_batch_has_to_be_worth_it(
    shared_repository: Path,
) -> None:
    bundle = open_served(settings_for(shared_repository)).labels
    real = onnxruntime(bundle, cuda=False)
    slow, fast = way("slow", 0.01, real), way("fast", 0.002, real)
    # A run takes as long for eight rows as for one.
    plan, rate = tuned(bundle, [slow, fast], 1, 8, 0.3)
    assert (plan.way, plan.batch) == ("fast", 8)
    assert rate > 1000
    # The real one is no faster for two rows than for one: nothing is won by waiting.
    plan, _ = tuned(bundle, [fast], 1, 1, 0.1)
    assert plan == Plan("fast", 1, 1, 1)


@pytest.mark.parametrize(("gain", "threads"), [(0.8, 1), (1.05, 1), (1.6, 2)])
def test_a_run_on_several_cores_has_to_be_worth_it(
    shared_repository: Path, gain: float, threads: int
) -> None:
    bundle = open_served(settings_for(shared_repository)).labels
    one = way("one", 0.02, onnxruntime(bundle, cuda=False), gain)
    plan, _ = tuned(bundle, [one], 2, 1, 0.4)
    assert (plan.threads, plan.sessions) == (threads, 2 // threads)


@pytest.mark.anyio
async def test_a_plan_is_found_once_and_kept(
    repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tilesight.runtime")
    settings = settings_for(repository, autotune_s=0.2, cache_dir=tmp_path / "cache")
    for expected in (4, 0):
        caplog.clear()
        found, _ = models(settings)
        await found.start()
        await found.close()
        assert sum(record.message == "plan found" for record in caplog.records) == expected


@pytest.mark.anyio
async def test_a_kept_plan_is_used_in_both_lanes_and_told(repository: Path, tmp_path: Path) -> None:
    settings = settings_for(repository, autotune_s=0.2, cache_dir=tmp_path / "cache")
    found, runtime = models(settings)
    bundle = found.served.labels
    lanes = Lanes(settings, Metrics())
    key = autotune.cache_key(bundle, [onnxruntime(bundle, False)], lanes.cores, settings.max_batch)
    Cache(tmp_path / "cache").keep(key, PLAN)
    await found.start()
    for lane in (INTERACTIVE, BACKFILL):
        assert runtime.station(bundle, lane).plan == PLAN
    assert found.runtime_details(bundle)["batch"] == PLAN.batch
    await found.close()


@pytest.mark.anyio
async def test_a_promoted_version_is_run_as_the_one_before(
    repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.serving import bundles

    bundles.write_repository(repository, 2)
    Repository(repository).promote({"signa": 1})
    settings = settings_for(repository, autotune_s=0.2, cache_dir=tmp_path / "cache")
    found, runtime = models(settings)
    await found.start()
    before = runtime.station(found.served.labels, INTERACTIVE).plan
    caplog.set_level(logging.INFO, "tilesight.runtime")
    caplog.clear()
    Repository(repository).promote({"signa": 2})
    assert await found.follow()
    assert found.served.labels.version == 2
    assert runtime.station(found.served.labels, INTERACTIVE).plan == before
    assert not [record for record in caplog.records if record.message == "plan found"]
    await found.close()


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"key": {"way": "x"}}', '{"key": 3}'])
def test_a_damaged_cache_is_an_empty_one(tmp_path: Path, content: str) -> None:
    (tmp_path / "autotune.json").write_text(content)
    cache = Cache(tmp_path)
    assert cache.get("key") is None
    cache.keep("key", PLAN)
    assert cache.get("key") == PLAN


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file")
    with cache.alone():
        cache.keep("key", PLAN)
    assert cache.get("key") is None


def test_others_keep_their_plans(tmp_path: Path) -> None:
    Cache(tmp_path).keep("one", PLAN)
    Cache(tmp_path).keep("other", untuned("way", 2, 16))
    assert json.loads((tmp_path / "autotune.json").read_text()).keys() == {"one", "other"}


@pytest.mark.anyio
async def test_what_is_set_is_not_searched(repository: Path, tmp_path: Path) -> None:
    options = {"autotune_s": 5, "cache_dir": tmp_path / "cache", "sessions": 2, "threads": 1}
    found, runtime = models(settings_for(repository, **options))
    await found.start()
    plan = runtime.station(found.served.labels, INTERACTIVE).plan
    assert (plan.sessions, plan.threads) == (2, 1)
    assert not (tmp_path / "cache").exists()
    await found.close()
