"""What each scenario calls a failure, on figures that are made up."""

import json
from dataclasses import replace

import numpy as np
import pytest

from loadtest import lanes
from loadtest.jury import Jury
from loadtest.mix import Expectation
from loadtest.outcome import Outcome
from loadtest.overload_report import criteria, refusals
from loadtest.scenario import Check
from loadtest.share import Share
from loadtest.stage import Stage

SUMMARY = replace(
    Outcome(seconds=10.0).summary(),
    offered_rps=300.0,
    goodput_rps=98.0,
    service_ms={"p50": 400.0, "p99": 900.0},
    refused_ms={"p50": 2.0, "p99": 9.0},
    statuses={"200": 980, "503": 2000, "429": 20},
)
SHARE = Share(cores=2.0, server=1.8, generator=0.2, others=0.0)
STAGE = Stage(
    factor=3.0,
    summary=SUMMARY,
    share=SHARE,
    capacity=100.0,
    capacity_per_core=100 / 1.9,
    rss_mb=(200.0, 210.0, 205.0),
)


def failing(checks: list[Check]) -> list[str]:
    return [one.what for one in checks if one.holds is False]


def test_a_gateway_that_keeps_its_goodput_passes() -> None:
    assert failing(criteria([STAGE], deadline_s=1.0)) == []


@pytest.mark.parametrize(
    ("stage", "what"),
    [
        (replace(STAGE, summary=replace(SUMMARY, goodput_rps=80.0)), "3x: goodput"),
        (replace(STAGE, summary=replace(SUMMARY, service_ms={"p99": 1100.0})), "p99 of what"),
        (replace(STAGE, summary=replace(SUMMARY, statuses={"200": 9, "504": 1})), "answers other"),
        (replace(STAGE, summary=replace(SUMMARY, statuses={"200": 9, "0": 1})), "answers other"),
        (replace(STAGE, without_retry_after=1), "429 and 503 without"),
        (replace(STAGE, rss_mb=(200.0, 500.0, 205.0)), "memory"),
        (replace(STAGE, factor=0.7), "0.7x: goodput"),  # of 300 offered only 98 were answered
    ],
)
def test_each_criterion_of_the_overload_can_fail(stage: Stage, what: str) -> None:
    (failed,) = failing(criteria([stage], deadline_s=1.0))
    assert failed.startswith(what)


def test_the_cores_that_the_load_took_are_taken_into_account() -> None:
    half = replace(SHARE, server=0.9, generator=0.6, others=0.5)
    stage = replace(STAGE, summary=replace(SUMMARY, goodput_rps=49.0), share=half)
    assert stage.ratio(per_core=False) == pytest.approx(0.49)
    assert stage.ratio(per_core=True) == pytest.approx(49 / 0.9 / (100 / 1.9))


def test_what_a_refusal_costs() -> None:
    """1.8 cores, of which 98 answers a second take 18 ms each: 36 ms for 202 refusals."""
    stage = replace(STAGE, answer_ms=18.0)
    assert stage.refused_rps == 202
    assert stage.refusal_ms == pytest.approx(36 / 202)
    (row,) = refusals([stage], floor_ms=0.1)
    assert row["gateway, ms"] == "0.178"
    assert row["so at most of the peak"] == "0.99"  # 20 ms of 1.8 cores
    assert refusals([stage], floor_ms=None) == []


def test_without_the_process_memory_is_not_judged() -> None:
    (memory,) = [
        one
        for one in criteria([replace(STAGE, rss_mb=None)], deadline_s=1.0)
        if "memory" in one.what
    ]
    assert memory.holds is None


def turn(p99_ms: float, filled: float = 0.0, failed: int = 0) -> lanes.Turn:
    latencies = np.full(1000, 0.005)
    latencies[-20:] = p99_ms / 1e3
    return lanes.Turn(latencies, failed, filled, backfill_answered=9, share=None)


def test_a_backfill_that_is_not_felt_passes() -> None:
    alone, beside = [turn(10.0), turn(12.0)], [turn(11.0, 300.0), turn(13.0, 310.0)]
    assert failing(lanes.criteria(alone, beside, 400.0)) == []


@pytest.mark.parametrize(
    ("beside", "what"),
    [
        (turn(12.5, 300.0), "interactive p99"),
        (turn(10.0, 300.0, failed=1), "interactive requests not"),
        (turn(10.0, 0.0), "backfill beside"),
    ],
)
def test_each_criterion_of_the_lanes_can_fail(beside: lanes.Turn, what: str) -> None:
    (failed,) = failing(lanes.criteria([turn(10.0)], [beside], 400.0))
    assert failed.startswith(what)


KNOWN = [{1: {"water": 0.9, "trees": 0.1}, 2: {"water": 0.2, "trees": 0.4}}]


def answer(version: int, water: float, trees: float, head: str = "X-Request-ID: tile-0") -> bytes:
    labels = [{"name": "water", "score": water}, {"name": "trees", "score": trees}]
    body = json.dumps({"model": {"version": version}, "labels": labels})
    return f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}".encode()


def test_answers_of_whole_versions() -> None:
    jury = Jury(KNOWN)
    jury(200, answer(1, 0.9, 0.1))
    jury(200, answer(2, 0.2004, 0.3998))
    assert (dict(jury.seen.by_version), jury.seen.wrong) == ({1: 1, 2: 1}, [])


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (200, answer(1, 0.2, 0.4)),  # says 1, answers as 2 does
        (200, answer(2, 0.2, 0.1)),  # half and half
        (200, answer(3, 0.2, 0.4)),  # was never promoted
        (200, answer(1, 0.9, 0.1, head="Server: x")),
        (503, b"HTTP/1.1 503 Service Unavailable\r\n\r\n{}"),
        (0, b"ConnectionResetError"),
    ],
)
def test_answers_that_are_not(status: int, said: bytes) -> None:
    jury = Jury(KNOWN)
    jury(status, said)
    assert len(jury.seen.wrong) == 1


@pytest.mark.parametrize(
    ("status", "asked", "expected"),
    [
        (200, "mix-labels-200", True),
        (503, "mix-labels-200", True),  # refused for the load
        (429, "mix-gif-415", True),
        (500, "mix-labels-200", False),
        (400, "mix-labels-200", False),
        (200, "mix-gif-415", False),
        (200, "other", False),
    ],
)
def test_what_the_mix_expects(status: int, asked: str, expected: bool) -> None:
    expectation = Expectation()
    expectation(status, f"HTTP/1.1 {status} x\r\nX-Request-ID: {asked}\r\n\r\n{{}}".encode())
    assert (not expectation.unexpected) is expected
