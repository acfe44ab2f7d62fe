"""The instruments by themselves; tests/serving/test_workers.py has them over several processes."""

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from serving.answers import Model
from serving.metrics import Metrics
from serving.sharing import Shared
from serving.timing import LaneState, Timing
from tests.serving.command import Samples, samples, total

MODEL = Model(name="signa", version=3, digest="sha256:0", precision="int8", backend="openvino-cpu")
LABELS = ["water", "trees"]
THRESHOLDS = [0.5, 0.25]


def told(metrics: Metrics) -> Samples:
    return samples(metrics.page().decode())


def bins(found: Samples, label: str) -> dict[float, float]:
    """The cumulative counts of the label's scores, by upper bound."""
    name = "tilesight_label_score_bucket"
    return {
        float(dict(labels)["le"]): value
        for (one, labels), value in found.items()
        if one == name and dict(labels)["label"] == label
    }


def test_a_request_is_counted_in_each_stage_and_in_all() -> None:
    metrics = Metrics()
    metrics.stages(Timing("interactive", MODEL, 0.001, 0.002, 0.003, 0.004, 0.005), 0.016)
    found = told(metrics)
    sums = {
        dict(labels)["stage"]: value
        for (name, labels), value in found.items()
        if name == "tilesight_stage_duration_seconds_sum"
    }
    assert sums == {
        "admission": 0.001,
        "decode": 0.002,
        "queue": 0.003,
        "infer": 0.004,
        "postprocess": 0.005,
        "total": 0.016,
    }
    key = {"model": "signa", "version": "3", "backend": "openvino-cpu"}
    assert total(found, "tilesight_stage_duration_seconds_count", **key) == 6


def test_a_request_without_a_model_has_no_stages() -> None:
    metrics = Metrics()
    metrics.stages(Timing(), 1.0)
    assert total(told(metrics), "tilesight_stage_duration_seconds_count") == 0


def test_the_buckets_go_from_half_a_millisecond_to_half_a_minute() -> None:
    metrics = Metrics()
    metrics.request("/labels", 200, 0.0004, "interactive")
    metrics.request("/labels", 200, 29.0, "interactive")
    metrics.request("/labels", 200, 31.0, "interactive")
    name = "tilesight_request_duration_seconds_bucket"
    found = told(metrics)
    assert total(found, name, le="0.0005") == 1
    assert total(found, name, le="10.0") == 1
    assert total(found, name, le="30.0") == 2
    assert total(found, name, le="+Inf") == 3


def test_rejections_batches_and_failures_are_counted() -> None:
    metrics = Metrics()
    for slug in ("overloaded", "overloaded", "slow-body"):
        metrics.rejection(slug)
    metrics.batch("signa", 3)
    metrics.batch("signa", 8)
    metrics.follow_failure()
    metrics.loop_lag(0.2)
    found = told(metrics)
    assert total(found, "tilesight_rejections_total", type="overloaded") == 2
    assert total(found, "tilesight_rejections_total", type="slow-body") == 1
    assert total(found, "tilesight_batch_rows_sum", model="signa") == 11
    assert total(found, "tilesight_batch_rows_bucket", model="signa", le="4.0") == 1
    assert total(found, "tilesight_follow_failures_total") == 1
    assert total(found, "tilesight_event_loop_lag_seconds_sum") == 0.2


def test_lanes_are_told_as_they_are_when_they_are_asked_for() -> None:
    metrics = Metrics()
    state = {"interactive": LaneState("interactive", 5, 0.25, 2)}
    metrics.queues(state.values)
    metrics.publish()
    assert total(told(metrics), "tilesight_queue_images", lane="interactive") == 5
    state["interactive"] = LaneState("interactive", 0, 0.0, 0)
    state["backfill"] = LaneState("backfill", 64, 7.5, 9)
    metrics.publish()
    found = told(metrics)
    assert total(found, "tilesight_queue_images", lane="interactive") == 0
    assert total(found, "tilesight_queue_images", lane="backfill") == 64
    assert total(found, "tilesight_queue_oldest_seconds", lane="backfill") == 7.5
    assert total(found, "tilesight_requests_in_flight", lane="backfill") == 9


def test_models_replace_those_before_them() -> None:
    metrics = Metrics()
    metrics.models([MODEL], {"signa": {"threads": 2, "sessions": 1, "batch": 8, "other": "x"}})
    metrics.models([MODEL.model_copy(update={"version": 4})])
    (labels,) = [labels for name, labels in told(metrics) if name == "tilesight_model_info"]
    assert dict(labels) == {
        "name": "signa",
        "version": "4",
        "digest": "sha256:0",
        "precision": "int8",
        "backend": "openvino-cpu",
        "threads": "",
        "sessions": "",
        "batch": "",
    }


def test_how_a_model_is_run_is_told() -> None:
    metrics = Metrics()
    metrics.models([MODEL], {"signa": {"threads": 2, "sessions": 1, "batch": 8, "other": "x"}})
    (labels,) = [labels for name, labels in told(metrics) if name == "tilesight_model_info"]
    assert {"threads": "2", "sessions": "1", "batch": "8"}.items() <= dict(labels).items()
    assert "other" not in dict(labels)


def test_the_canary_is_a_moment() -> None:
    metrics = Metrics()
    before = time.time()
    metrics.canary()
    moment = total(told(metrics), "tilesight_canary_success_timestamp_seconds")
    assert before <= moment <= time.time()


def test_the_process_and_the_build_are_told() -> None:
    found = told(Metrics())
    assert total(found, "process_resident_memory_bytes") > 1 << 20
    assert total(found, "process_open_fds") > 0
    assert total(found, "tilesight_build_info") == 1


def test_scores_fall_into_ten_bins() -> None:
    metrics = Metrics()
    rows = [[0.0, 1.0], [0.05, 0.999], [0.55, 0.25], [0.95, 0.24]]
    metrics.scores("signa", LABELS, np.array(rows, np.float32), THRESHOLDS)
    found = told(metrics)
    water, trees = bins(found, "water"), bins(found, "trees")
    assert list(water) == [*np.round(np.arange(0.1, 1.05, 0.1), 1).tolist(), math.inf]
    assert list(water.values()) == [2, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4]
    assert list(trees.values()) == [0, 0, 2, 2, 2, 2, 2, 2, 2, 4, 4]
    assert total(found, "tilesight_label_score_count", label="water") == 4
    assert total(found, "tilesight_label_score_sum", label="water") == pytest.approx(1.55)
    assert total(found, "tilesight_label_present_total", label="water") == 2
    assert total(found, "tilesight_label_present_total", label="trees") == 3


def test_one_tile_is_counted_as_a_row_of_many() -> None:
    rows = np.random.default_rng(0).random((50, 2), np.float32)
    together, one_by_one = Metrics(), Metrics()
    together.scores("signa", LABELS, rows, THRESHOLDS)
    for row in rows:
        one_by_one.scores("signa", LABELS, row, THRESHOLDS)
    for label in LABELS:
        assert bins(told(together), label) == bins(told(one_by_one), label)
        name = "tilesight_label_present_total"
        expected = (rows[:, LABELS.index(label)] >= THRESHOLDS[LABELS.index(label)]).sum()
        assert total(told(together), name, label=label) == expected
        assert total(told(one_by_one), name, label=label) == expected


def test_scores_of_many_threads_are_all_counted() -> None:
    metrics = Metrics()
    row = np.array([0.3, 0.7], np.float32)

    def score() -> None:
        for _ in range(2000):
            metrics.scores("signa", LABELS, row, THRESHOLDS)

    threads = [threading.Thread(target=score) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert total(told(metrics), "tilesight_label_present_total", label="trees") == 8000


def test_a_promoted_version_goes_on_with_the_counts_of_its_labels() -> None:
    metrics = Metrics()
    row = np.array([[0.3, 0.7]], np.float32)
    metrics.scores("signa", LABELS, row, THRESHOLDS)
    metrics.scores("signa", list(LABELS), row, [0.2, 0.9])
    metrics.scores("signa", ["other"], row[:, :1], [0.2])
    found = told(metrics)
    assert total(found, "tilesight_label_score_count", label="water") == 2
    assert total(found, "tilesight_label_present_total", label="water") == 1
    assert total(found, "tilesight_label_present_total", label="trees") == 1
    assert total(found, "tilesight_label_score_count", label="other") == 1


def _work(folder: Path, slot: int, rounds: int, killed: bool) -> None:
    """A worker that counts and then ends, in one way or the other."""
    shared = Shared(folder, slot)
    shared.install()
    metrics = Metrics(shared)
    lane = LaneState("interactive", 3, float(slot), 1)
    metrics.queues(lambda: [lane])
    metrics.publish()
    for _ in range(rounds):
        metrics.request("/labels", 200, 0.01, "interactive")
        metrics.scores("signa", LABELS, np.array([0.3, 0.7], np.float32), THRESHOLDS)
    (folder / f"page{slot}").write_bytes(metrics.page())
    if killed:
        os.kill(os.getpid(), signal.SIGKILL)


def _run(folder: Path, workers: Iterable[tuple[int, int, bool]]) -> None:
    # Not forked: the threads of other tests may hold locks at that moment.
    context = multiprocessing.get_context("spawn")
    for slot, rounds, killed in workers:
        process = context.Process(target=_work, args=(folder, slot, rounds, killed))
        process.start()
        process.join(60)
        assert process.exitcode == (-signal.SIGKILL if killed else 0)
        process.close()


def test_the_next_process_of_a_slot_goes_on_counting(tmp_path: Path) -> None:
    _run(tmp_path, [(0, 5, True), (1, 7, False), (0, 2, False)])
    found = samples((tmp_path / "page0").read_text())
    assert total(found, "tilesight_request_duration_seconds_count") == 14
    assert total(found, "tilesight_label_score_count", label="water") == 14
    assert total(found, "tilesight_label_present_total", label="trees") == 14
    # Of the two that live the images are a sum and the age is the oldest.
    assert total(found, "tilesight_queue_images") == 6
    assert total(found, "tilesight_queue_oldest_seconds") == 1


def test_what_held_while_a_worker_lived_is_forgotten_with_it(tmp_path: Path) -> None:
    _run(tmp_path, [(0, 5, True)])
    Shared(tmp_path, 0).gone()
    _run(tmp_path, [(1, 1, False)])
    found = samples((tmp_path / "page1").read_text())
    assert total(found, "tilesight_workers") == 1
    assert total(found, "tilesight_queue_images") == 3
    assert total(found, "tilesight_request_duration_seconds_count") == 6
