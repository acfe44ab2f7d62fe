import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from loadtest import rounds
from loadtest.bare import Bare, Setting, bare_process, best, candidates, reference
from loadtest.cells import CELLS, Cell, Key, OtherRunError, Store, read_cells
from loadtest.client import Plan
from loadtest.compare_plots import write_plots
from loadtest.compare_report import write_report
from loadtest.kinds import KINDS
from loadtest.lineup import SETTINGS
from loadtest.machine import Moment, Tree
from loadtest.ratios import Figures, spread
from loadtest.rounds import Rounds, Shape
from loadtest.servers import disagreement
from loadtest.tiles import drawn_tiles
from tests.serving.bundles import LABELS, write_bundle, write_repository

ABOUT: dict[str, Any] = {
    "model": "signa",
    "endpoint": "/labels",
    "precision": "float32",
    "graph_sha256": "0" * 64,
    "tiles": "3 tiles",
    "repeats": 2,
    "seconds": 1.0,
    "cores": 2,
    "cpu": "a processor",
    "versions": "some",
    "left_out": {"litserve": "no environment of the peers"},
}
SETTINGS_FOUND = {
    "bare": {"setting": {"workers": 2, "threads": 1, "batch": 1}, "tried": []},
    "gateway": {"setting": {"sessions": 2, "threads": 1}, "tried": []},
}

SHAPE = Shape(concurrencies=(1, 8), fractions=(0.2, 0.8), repeats=1, seconds=1.0, cores=2)


def cell(subject: str, kind: str, level: float, repeat: int, rate: float, **more: object) -> Cell:
    """The cell of somebody who answers `rate` requests a second."""
    latency = {"p50": 1000 * max(level, 1) / rate, "p99": 2000 * max(level, 1) / rate}
    figures = {
        "goodput_rps": rate,
        "offered_rps": rate,
        "latency_ms": latency,
        "cpu_ms": 2000 / rate,
        "answers": int(rate),
        "rss_mib": 100.0,
        "foreign_cores": 0.1,
        "stolen_cores": 0.0,
    }
    return Key(subject, kind, level, repeat)._asdict() | figures | more


def run() -> list[Cell]:
    """Two repeats, in the second of which the machine is half as fast."""
    cells = []
    for repeat, speed in enumerate([1.0, 0.5]):
        for threads, p50 in ((1, 9.0), (2, 6.0)):
            one = cell("bare", "one", threads, repeat, 1000 / p50, latency_ms={"p50": p50 / speed})
            cells.append(one)
        for level, gateway, peer in ((1, 90, 80), (8, 228, 200), (16, 240, 180)):
            if level > 1:
                cells.append(cell("bare", "closed", level, repeat, 240 * speed))
            cells.append(cell("gateway", "closed", level, repeat, gateway * speed))
            cells.append(cell("fastapi_onnxruntime", "closed", level, repeat, peer * speed))
        cells.append(cell("gateway", "open", 0.8, repeat, 190 * speed))
        cells.append(cell("fastapi_onnxruntime", "open", 0.8, repeat, 150 * speed))
    return cells


class TestRatios:
    def test_a_ratio_is_of_one_round(self) -> None:
        figures = Figures(run())
        assert figures.relative("gateway", 8) == {0: 0.95, 1: 0.95}
        assert figures.figure("gateway", "closed", 8, "goodput_rps") == spread([228, 114])

    def test_each_at_its_best(self) -> None:
        figures = Figures(run())
        assert figures.saturation("gateway") == 16
        assert figures.saturation("fastapi_onnxruntime") == 8
        assert figures.efficiency("gateway") == spread([1.0, 1.0])
        assert figures.times("gateway", "fastapi_onnxruntime") == spread([1.2, 1.2])

    def test_without_the_bare_loop(self) -> None:
        figures = Figures([one for one in run() if one["subject"] != "bare"])
        assert figures.efficiency("gateway") is None
        assert figures.saturation("gateway") == 16
        assert figures.times("gateway", "fastapi_onnxruntime") == spread([240 / 200] * 2)

    def test_what_is_added_at_one_connection(self) -> None:
        added = Figures(run()).added_p50("gateway", 1)
        assert added is not None
        assert added.least == pytest.approx(1000 / 90 - 9)
        assert added.greatest == pytest.approx(1000 / 45 - 18)

    def test_cpu_beside_the_bare_loop(self) -> None:
        assert Figures(run()).by_cpu("fastapi_onnxruntime") == spread([200 / 240] * 2)

    def test_p99_of_the_same_rounds(self) -> None:
        found = Figures(run()).p99_over("gateway", "fastapi_onnxruntime", "open")
        assert found == spread([150 / 190] * 2)

    def test_a_round_that_was_not_reached_counts_nowhere(self) -> None:
        cells = [one for one in run() if (one["subject"], one["repeat"]) != ("bare", 1)]
        figures = Figures(cells)
        assert figures.efficiency("gateway") == spread([1.0])
        assert figures.times("gateway", "fastapi_onnxruntime") == spread([1.2])
        assert figures.added_p50("gateway", 1) == spread([1000 / 90 - 9])

    def test_spread(self) -> None:
        found = spread([3.0, 1.0, 2.0])
        assert found is not None
        assert found.text() == "2.00 (1.00-3.00)"
        assert spread([]) is None


class TestReport:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "run.json").write_text(json.dumps(ABOUT))
        (tmp_path / SETTINGS).write_text(json.dumps(SETTINGS_FOUND))
        lines = [json.dumps(one) for one in run()]
        (tmp_path / CELLS).write_text("\n".join([*lines, '{"subject": "cut o']))
        return tmp_path

    def test_the_table_says_what_was_found_and_whether_it_holds(self, folder: Path) -> None:
        text = write_report(folder).read_text()
        rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}
        assert "| 1.00 (1.00-1.00) | >= 0.95 | yes |" in rows["served / bare loop at saturation"]
        assert "| >= 1.05 | yes |" in rows["times FastAPI + ONNX Runtime"]
        added = "p50 added at one connection, ms (bare loop with {} threads a run{})"
        assert rows[added.format(1, ", as the gateway has it")].endswith("| <= 1.5 | **no** |")
        assert rows[added.format(2, "")].endswith("| - | - |")
        assert "Not measured: LitServe: no environment of the peers" in text
        assert "times LitServe" not in text

    def test_every_row_has_as_many_cells_as_its_head(self, folder: Path) -> None:
        tables = write_report(folder).read_text().split("\n\n")
        for table in (one.splitlines() for one in tables if one.startswith("|")):
            assert len({line.count("|") for line in table}) == 1

    def test_plots_are_drawn(self, folder: Path) -> None:
        picture = write_plots(folder, "a title")
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 20_000


class TestStore:
    def test_a_run_is_taken_up_again(self, tmp_path: Path) -> None:
        key = Key("gateway", "closed", 8, 0)
        Store(tmp_path, ABOUT).add(key, {"goodput_rps": 3.0})
        again = Store(tmp_path, ABOUT)
        assert key in again
        assert Key("gateway", "closed", 8, 1) not in again
        again.add(Key("gateway", "closed", 8, 1), {"goodput_rps": 4.0})
        assert [one["goodput_rps"] for one in read_cells(tmp_path)] == [3.0, 4.0]

    def test_cells_of_another_run_are_not_mixed_in(self, tmp_path: Path) -> None:
        Store(tmp_path, ABOUT)
        Store(tmp_path, ABOUT | {"left_out": {}})  # who is left out may come later
        with pytest.raises(OtherRunError, match="precision = float32, not int8"):
            Store(tmp_path, ABOUT | {"precision": "int8"})


class Fake:
    """A server that has a name."""

    def __init__(self, name: str) -> None:
        self.kind = next(kind for kind in KINDS if kind.name == name)
        self.url = f"http://127.0.0.1/{name}"


class TestRounds:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float | None]]:
        """Who was measured at which rate; the peer answers 20 a second, the gateway 100."""
        asked: list[tuple[str, float | None]] = []

        def measured(server: Fake, generator: object, plan: Plan) -> Cell:
            asked.append((server.kind.name, plan.rate))
            return {"goodput_rps": 100.0 if server.kind.name == "gateway" else 20.0}

        def bare_measured(bare: object, setting: Setting, seconds: float) -> Cell:
            asked.append(("bare", None))
            return {"goodput_rps": 110.0}

        monkeypatch.setattr(rounds, "measured", measured)
        monkeypatch.setattr(rounds, "bare_measured", bare_measured)
        return asked

    @staticmethod
    def measure(store: Store, advance: Callable[[str], None] = lambda text: None) -> None:
        servers: Any = [Fake("gateway"), Fake("fastapi_torch")]
        nobody: Any = None
        setting, plan = Setting(2, 1, 1), Plan(url="")
        Rounds(store, nobody, nobody, setting, servers, plan, SHAPE, advance).measure()

    def test_everybody_in_turn_and_back_again(
        self, asked: list[tuple[str, float | None]], tmp_path: Path
    ) -> None:
        self.measure(Store(tmp_path, ABOUT))
        assert [name for name, _ in asked[:7]] == [
            *("bare", "bare", "gateway", "fastapi_torch"),
            *("fastapi_torch", "gateway", "bare"),
        ]

    def test_the_same_load_for_all_unless_it_is_beyond_them(
        self, asked: list[tuple[str, float | None]], tmp_path: Path
    ) -> None:
        told: list[str] = []
        self.measure(Store(tmp_path, ABOUT), told.append)
        assert asked[7:] == [("gateway", 20.0), ("fastapi_torch", 20.0), ("gateway", 80.0)]
        assert "FastAPI + torch eager: 80 a second are beyond it" in told

    def test_whole_rounds_are_not_measured_again(
        self, asked: list[tuple[str, float | None]], tmp_path: Path
    ) -> None:
        store = Store(tmp_path, ABOUT)
        for name in ("bare", "gateway", "fastapi_torch"):
            store.add(Key(name, "closed", 8, 0), {"goodput_rps": 200.0})
        self.measure(store)
        assert [name for name, _ in asked] == [
            *("bare", "bare", "gateway", "fastapi_torch"),
            *("gateway", "fastapi_torch"),
            *("fastapi_torch", "gateway"),
        ]
        assert ("gateway", 160.0) in asked  # the capacity is of the cells that were kept

    def test_half_a_round_is_measured_again_as_a_whole(
        self, asked: list[tuple[str, float | None]], tmp_path: Path
    ) -> None:
        store = Store(tmp_path, ABOUT)
        for name in ("bare", "gateway"):
            store.add(Key(name, "closed", 8, 0), {"goodput_rps": 200.0})
        self.measure(store)
        assert [name for name, _ in asked[4:7]] == ["fastapi_torch", "gateway", "bare"]
        assert store.cells[Key("gateway", "closed", 8, 0)]["goodput_rps"] == 100.0

    def test_the_bar_knows_how_many_cells_come(
        self, asked: list[tuple[str, float | None]], tmp_path: Path
    ) -> None:
        told: list[str] = []
        self.measure(Store(tmp_path, ABOUT), told.append)
        assert len(told) == SHAPE.count(2)


class TestAnswers:
    EXPECTED: ClassVar = {"water": 0.2, "trees": 0.9}

    def test_the_same(self) -> None:
        labels = [{"name": "trees", "score": 0.9004}, {"name": "water", "score": 0.2}]
        assert disagreement({"labels": labels}, self.EXPECTED, 1e-3) is None

    def test_another_score(self) -> None:
        labels = [{"name": "trees", "score": 0.9}, {"name": "water", "score": 0.21}]
        found = disagreement({"labels": labels}, self.EXPECTED, 1e-3)
        assert found == "water is 0.2100, not 0.2000"

    def test_other_labels(self) -> None:
        assert disagreement({"detail": "no"}, self.EXPECTED, 1e-3) == "labels are []"


class TestBare:
    TILES = drawn_tiles(3)

    @pytest.mark.parametrize("setting", [Setting(1, 1, 1), Setting(2, 1, 4)], ids=str)
    def test_it_counts_tiles(self, tmp_path: Path, setting: Setting) -> None:
        bare = Bare(write_bundle(tmp_path, "signa"), self.TILES, [])
        found = bare.loop(setting, 0.3)
        assert found["answers"] % setting.batch == 0
        assert 0 < found["throughput_rps"] <= found["answers"] / 0.3
        assert found["latency_ms"]["max"] < 1e3 * found["answers"] / found["throughput_rps"]

    @pytest.mark.parametrize("model", ["jtts", "spatialnet_vit_head"])
    def test_it_runs_every_task(self, tmp_path: Path, model: str) -> None:
        repository = write_repository(tmp_path)
        bare = Bare(repository / model / "1", self.TILES, ["are there trees", "what is this"])
        assert bare.loop(Setting(1, 1, 2), 0.1)["answers"] >= 2

    def test_in_a_process_of_its_own(self, tmp_path: Path) -> None:
        with bare_process(write_bundle(tmp_path, "signa"), None, []) as bare:
            cpu = Tree(bare.pid).cpu_s()
            found = bare.loop(Setting(1, 1, 1), 0.3)
            assert Tree(bare.pid).cpu_s() > cpu
        assert found["answers"] > 3

    def test_the_best_setting_is_the_fastest(self) -> None:
        fastest = candidates(2)[3]

        def loop(setting: Setting, seconds: float) -> dict[str, float]:
            return {"throughput_rps": 2.0 if setting == fastest else 1.0}

        assert best(loop, 2, 0.1) == fastest

    def test_the_reference_is_what_the_graph_answers(self, tmp_path: Path) -> None:
        folder = write_bundle(tmp_path, "signa")
        scores = reference(folder / "model.onnx", self.TILES, 224, 224)
        assert scores.shape == (3, len(LABELS))
        assert len({tuple(row) for row in scores.tolist()}) == 3


class TestMachine:
    # Ends by itself, should the test be killed.
    BUSY = (
        "import os, time\npid = os.fork()\nwhile time.monotonic() < float(os.environ['END']): pass"
    )

    def test_a_paused_tree_uses_no_cpu(self) -> None:
        ends = {"END": str(time.monotonic() + 60)}
        process = subprocess.Popen([sys.executable, "-c", self.BUSY], env=os.environ | ends)
        tree = Tree(process.pid)
        try:
            deadline = time.monotonic() + 20
            while (len(tree.members()) < 2 or tree.cpu_s() < 0.2) and time.monotonic() < deadline:
                time.sleep(0.01)
            tree.pause()
            while {one.status() for one in tree.members()} != {"stopped"}:
                assert time.monotonic() < deadline
            paused = tree.cpu_s()
            assert paused >= 0.2
            moment = Moment.now()
            while Moment.now().at < moment.at + 0.1:
                pass
            assert tree.cpu_s() == paused
            tree.resume()
            while tree.cpu_s() == paused:
                assert time.monotonic() < deadline
        finally:
            tree.kill()
            process.wait()
        assert not tree.members()

    def test_others_are_who_is_left(self) -> None:
        before = Moment(0.0, 10.0, 1.0)
        after = Moment(2.0, 13.0, 1.5)
        assert after.since(before, own_s=2.0) == {"foreign_cores": 0.5, "stolen_cores": 0.25}
