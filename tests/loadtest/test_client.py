import itertools
import socket
import time
from email.parser import BytesParser
from pathlib import Path

import numpy as np
import pytest
import uvloop

from loadtest.client import Load, Plan, measure_apart
from loadtest.generator import generating
from loadtest.outcome import Outcome
from loadtest.payload import Address, tile_requests
from loadtest.tiles import drawn_tiles, load_tiles
from tests.loadtest.answering import CLOSING, FULL, OK, Answering, answering

TILES = [b"\xff\xd8first", b"\xff\xd8second", b"\xff\xd8third"]


def made(server: Answering, **plan: object) -> Outcome:
    """What the load sees that is made against the server."""
    options = {"url": server.url, "seconds": 0.4, "warmup_s": 0.0, "connections": 3} | plan
    given = Plan(**options)  # type: ignore[arg-type]
    return uvloop.run(Load(given, tile_requests(given.url, TILES)).run())


class TestClosedLoop:
    def test_every_request_is_counted_once(self) -> None:
        with answering(Answering()) as server:
            outcome = made(server)
        assert len(outcome.status) == len(server.requests) > 10
        assert set(outcome.status) == {200}
        assert outcome.summary().requests == len(outcome.status)

    def test_each_connection_waits_for_its_answer(self) -> None:
        with answering(Answering(delay=lambda number: 0.02)) as server:
            summary = made(server, connections=4, seconds=0.6).summary()
        assert server.most_open == 4
        assert 20 <= summary.latency_ms["p50"] < 200
        assert 4 <= summary.requests <= 4 * 0.6 / 0.02 + 4

    def test_the_warm_up_is_cut_off(self) -> None:
        slow_at_first = Answering(delay=lambda number: 0.3 if number == 0 else 0.0)
        with answering(slow_at_first) as server:
            summary = made(server, connections=1, warmup_s=0.4).summary()
        assert summary.latency_ms["max"] < 300
        assert summary.requests < len(server.requests)
        assert summary.answers == len(server.requests)

    def test_all_tiles_are_sent_in_an_order_that_the_seed_decides(self) -> None:
        orders = []
        for seed in (1, 1, 2):
            with answering(Answering()) as server:
                made(server, connections=1, seed=seed)
            orders.append([request.rpartition(b"\xff\xd8")[2] for request in server.requests[:30]])
        assert orders[0] == orders[1] != orders[2]
        for start in range(0, 30, 3):
            assert sorted(orders[0][start : start + 3]) == [b"first", b"second", b"third"]


class TestOpenLoop:
    def test_arrivals_are_poisson(self) -> None:
        with answering(Answering()) as server:
            outcome = made(server, rate=500.0, seconds=1.5, connections=50, seed=3)
        summary = outcome.summary()
        assert abs(summary.requests - 750) < 4 * 750**0.5
        gaps = np.diff(np.sort(np.frombuffer(outcome.intended)))
        assert gaps.mean() == pytest.approx(1 / 500, rel=0.15)
        assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.15)  # exponential

    def test_the_same_seed_makes_the_same_arrivals(self) -> None:
        runs = []
        for _ in range(2):
            with answering(Answering()) as server:
                outcome = made(server, rate=200.0, connections=50, seed=5)
            runs.append(np.sort(np.frombuffer(outcome.intended)) - outcome.started)
        assert runs[0] == pytest.approx(runs[1])

    def test_what_is_due_while_the_server_stalls_counts_its_waiting(self) -> None:
        stalls = Answering(delay=lambda number: 0.3 if number == 5 else 0.0)
        with answering(stalls) as server:
            summary = made(server, rate=200.0, seconds=0.8, connections=1).summary()
        # Some sixty requests were due meanwhile: half of them waited longer than 150 ms.
        assert summary.latency_ms["p90"] > 100
        assert summary.service_ms["p90"] < 100
        assert summary.send_delay_ms["p90"] > 100

    def test_the_pool_grows_as_needed_and_no_further(self) -> None:
        with answering(Answering(delay=lambda number: 0.05)) as server:
            made(server, rate=300.0, connections=5)
            most = server.most_open
        assert most == 5
        with answering(Answering()) as server:
            made(server, rate=20.0, connections=50)
        assert server.most_open < 10

    def test_what_never_finds_a_connection_is_no_success(self) -> None:
        with answering(Answering(delay=lambda number: 0.2)) as server:
            outcome = made(server, rate=300.0, connections=1, drain_s=0.1)
        summary = outcome.summary()
        assert outcome.errors["no connection was free"] > 50
        assert summary.statuses["0"] == sum(outcome.errors.values())

    def test_who_never_was_answered_waited_until_the_end(self) -> None:
        now = time.perf_counter()
        outcome = Outcome(started=now - 10, seconds=20)
        for waited_s, status in ((0.1, 200), (8.0, 0), (9.0, 0), (5.0, 503)):
            outcome.add(now - waited_s, now - waited_s, status)
        latency = outcome.summary().latency_ms
        assert latency["p50"] == pytest.approx(8000, rel=0.01)
        assert latency["max"] == pytest.approx(9000, rel=0.01)


class TestRefusals:
    def test_503_is_counted_and_no_goodput(self) -> None:
        with answering(Answering(lambda number: FULL if number % 3 == 0 else OK)) as server:
            outcome = made(server, connections=1)
        summary = outcome.summary()
        assert list(outcome.status).count(503) == -(-len(server.requests) // 3)
        assert summary.goodput_rps == pytest.approx(2 / 3 * summary.throughput_rps, rel=0.05)
        assert summary.refused_ms["p50"] > 0
        assert not outcome.errors

    def test_a_server_that_is_not_there(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        nobody = Answering()
        nobody.url = f"http://127.0.0.1:{port}/labels"
        for rate in (None, 50.0):
            outcome = made(nobody, rate=rate)
            assert set(outcome.status) == {0}
            assert set(outcome.errors) == {"ConnectionRefusedError"}

    def test_a_connection_lost_without_an_answer(self) -> None:
        with answering(Answering(lambda number: None if number % 4 == 3 else OK)) as server:
            outcome = made(server)
        lost = list(outcome.status).count(0)
        assert lost == len(server.requests) // 4 > 0
        assert outcome.errors == {"closed without an answer": lost}

    def test_a_server_that_closes_politely_is_asked_again(self) -> None:
        with answering(Answering(lambda number: CLOSING)) as server:
            outcome = made(server)
        assert set(outcome.status) == {200}
        assert not outcome.errors
        assert len(outcome.status) > 10
        with answering(Answering(lambda number: CLOSING)) as server:
            outcome = made(server, rate=100.0, connections=2)
        assert set(outcome.status) == {200}

    def test_no_answer_in_time(self) -> None:
        with answering(Answering(delay=lambda number: 30.0)) as server:
            outcome = made(server, connections=2, seconds=0.5, timeout_s=0.2, drain_s=0.5)
        assert set(outcome.errors) <= {"no answer in time", "unfinished at the end"}
        assert outcome.errors["no answer in time"] >= 2


class TestAnswers:
    def test_a_piece_at_a_time(self) -> None:
        text = b"HTTP/1.1 200 OK\r\ncontent-length:  12\r\n\r\nhello, world"
        pieces = [bytes([one]) for one in text]
        seen: list[tuple[int, bytes]] = []
        with answering(Answering(lambda number: pieces)) as server:
            plan = Plan(url=server.url, connections=1, seconds=0.3, warmup_s=0.0)
            load = Load(plan, tile_requests(server.url, TILES), lambda *answer: seen.append(answer))
            uvloop.run(load.run())
        assert set(seen) == {(200, text)}

    def test_without_a_length_it_is_an_error(self) -> None:
        chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        with answering(Answering(lambda number: chunked)) as server:
            outcome = made(server)
        assert set(outcome.errors) == {"an answer without Content-Length"}


class TestApart:
    def test_in_a_process_of_its_own(self, tmp_path: Path) -> None:
        (tmp_path / "tile.jpg").write_bytes(TILES[0])
        with answering(Answering()) as server:
            plan = Plan(
                url=server.url,
                seconds=0.4,
                warmup_s=0.1,
                tiles=tmp_path,
                headers={"Tilesight-Lane": "backfill"},
            )
            summary = measure_apart(plan)
        assert summary.answers == len(server.requests) > 10
        assert all(b"\r\nTilesight-Lane: backfill\r\n" in one for one in server.requests)
        assert all(one.endswith(TILES[0]) for one in server.requests)

    def test_in_a_process_that_stays(self) -> None:
        with answering(Answering()) as server, generating() as generator:
            plan = Plan(url=server.url, seconds=0.2, warmup_s=0.0, questions=("is it?",))
            answers = [generator.measure(plan).answers for _ in range(2)]
        assert sum(answers) == len(server.requests)
        assert all(b"is it?" in one for one in server.requests)


class TestPayload:
    def test_the_request_line_keeps_the_query(self) -> None:
        [request] = tile_requests("http://127.0.0.1:8000/labels?top_k=3", TILES[:1])
        assert request.startswith(b"POST /labels?top_k=3 HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n")

    def test_questions_make_a_form(self) -> None:
        [request] = tile_requests("http://127.0.0.1:8000/vqa", TILES[:1], ["one?", "two?"])
        head, _, body = request.partition(b"\r\n\r\n")
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
        assert length == f"Content-Length: {len(body)}".encode()
        form = BytesParser().parsebytes(head.partition(b"\r\n")[2] + b"\r\n\r\n" + body)
        names = [
            part.get_param("name", header="content-disposition") for part in form.get_payload()
        ]
        parts = [part.get_payload(decode=True) for part in form.get_payload()]
        assert names == ["question", "question", "image"]
        assert parts == [b"one?", b"two?", TILES[0]]

    def test_only_http(self) -> None:
        with pytest.raises(ValueError, match="https://host"):
            Address.of("https://host/labels")


class TestTiles:
    def test_drawn_tiles_are_like_real_ones(self) -> None:
        tiles = drawn_tiles(8)
        assert len(set(tiles)) == 8
        assert all(8_000 < len(tile) < 20_000 for tile in tiles)
        assert tiles == drawn_tiles(8)

    def test_a_folder_is_read_to_its_depths(self, tmp_path: Path) -> None:
        for number, folder in itertools.product(range(3), ("a", "b")):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{number}.jpg").write_bytes(f"{folder}{number}".encode())
        (tmp_path / "notes.txt").write_text("no tile")
        assert len(load_tiles(tmp_path, 10)) == 6
        assert len(load_tiles(tmp_path, 4)) == 4
        assert load_tiles(tmp_path, 4, seed=1) == load_tiles(tmp_path, 4, seed=1)

    def test_an_empty_folder_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no tile in it"):
            load_tiles(tmp_path)
