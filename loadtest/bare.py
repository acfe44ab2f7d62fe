"""The limit: tiles decoded and run through the ONNX Runtime session in a bare loop, nothing else.

    python -m loadtest.bare model_repository/signa/2 --seconds 2

One process, `workers` threads that decode and run on one shared session of `threads` threads a
run, `batch` tiles a run. It prints the figures of each of the settings.
"""

import argparse
import itertools
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from loadtest.outcome import percentiles
from loadtest.tiles import load_tiles
from tilesight import imaging, manifest
from tilesight.manifest import BATCH1_NAME, MODEL_NAME, AnswerHead, CaptionHead, Manifest
from tilesight.questions import question_ids

Run = Callable[[NDArray[np.uint8]], object]


@dataclass(frozen=True)
class Setting:
    """How the loop is run."""

    workers: int
    threads: int
    batch: int

    def __str__(self) -> str:
        """As it stands in the report."""
        return f"{self.workers} workers x {self.threads} threads x batch {self.batch}"


def candidates(cores: int) -> list[Setting]:
    """What may be the best on this many cores."""
    settings = [
        Setting(cores, 1, 1),
        Setting(cores + 1, 1, 1),  # one decodes while the others run
        Setting(1, cores, 1),
        Setting(2, cores, 1),
        Setting(1, cores, 8),
        Setting(cores, 1, 4),
    ]
    return list(dict.fromkeys(settings))


class Bare:
    """The session of a version folder, or the two of a question head and its encoder."""

    def __init__(self, folder: Path, tiles: Sequence[bytes], questions: Sequence[str]) -> None:
        """Reads the manifest; sessions are opened when a setting asks for them."""
        self._folder, self._tiles = folder, tiles
        self._manifest = manifest.read_unchecked(folder)
        self._questions = questions
        head = self._manifest.head
        seen = self._manifest if self._manifest.input else _encoder(folder, head)
        assert seen.input is not None
        self._size = (seen.input.height, seen.input.width)
        self._runs = cache(self._run)

    def prepared(self, tile: bytes) -> NDArray[np.uint8]:
        """(1, height, width, 3): what the graph reads."""
        return imaging.prepare(tile, *self._size)[None]

    def loop(self, setting: Setting, seconds: float, seed: int = 0) -> dict[str, Any]:
        """Tiles a second, CPU a tile, and how long one round of a worker took."""
        run = self._runs(setting.threads, setting.batch)
        run(np.concatenate([self.prepared(self._tiles[0])] * setting.batch))
        rounds: list[list[float]] = [[] for _ in range(setting.workers)]
        cpu, begin = time.process_time(), time.perf_counter()
        end = begin + seconds

        def work(index: int) -> None:
            chosen, took = random.Random(seed + index), rounds[index]
            while (start := time.perf_counter()) < end:
                batch = [self.prepared(chosen.choice(self._tiles)) for _ in range(setting.batch)]
                run(batch[0] if setting.batch == 1 else np.concatenate(batch))
                took.append(time.perf_counter() - start)

        threads = [threading.Thread(target=work, args=(one,)) for one in range(setting.workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed = time.perf_counter() - begin
        tiles = setting.batch * sum(len(one) for one in rounds)
        return {
            "throughput_rps": tiles / elapsed,
            "answers": tiles,
            "latency_ms": percentiles(np.array(list(itertools.chain(*rounds)))),
            "cpu_ms": 1e3 * (time.process_time() - cpu) / tiles,
        }

    def _run(self, threads: int, batch: int) -> Run:
        head = self._manifest.head
        if isinstance(head, AnswerHead):
            return self._answering(head, threads, batch)
        session = _session(_fitting(self._folder, batch), threads)
        if isinstance(head, CaptionHead):
            beams = np.full((batch, 1), head.default_beams)
            names = [output.name for output in self._manifest.outputs]
            return lambda tiles: session.run(names, {"tiles": tiles, "beams": beams})
        return lambda tiles: session.run(["scores"], {"tiles": tiles})

    def _answering(self, head: AnswerHead, threads: int, batch: int) -> Run:
        seen = _session(_fitting(_encoder_folder(self._folder, head), batch), threads)
        rows = batch * len(self._questions)
        asked = _session(_fitting(self._folder, rows), threads)
        ids = np.tile(np.stack([question_ids(one, head)[0] for one in self._questions]), (batch, 1))

        def run(tiles: NDArray[np.uint8]) -> object:
            memory = seen.run(["memory"], {"tiles": tiles})[0]
            repeated = np.repeat(memory, len(self._questions), axis=0)
            return asked.run(["answers"], {"memory": repeated, "question": ids})

        return run


def _encoder_folder(folder: Path, head: AnswerHead) -> Path:
    """The version of the encoder that the head was made for."""
    for one in (folder.parents[1] / head.encoder).iterdir():
        if one.is_dir() and manifest.read_unchecked(one).digest.endswith(str(head.encoder_sha256)):
            return one
    raise FileNotFoundError(f"{folder}: its encoder is not in the repository")


def _encoder(folder: Path, head: object) -> Manifest:
    assert isinstance(head, AnswerHead)
    return manifest.read_unchecked(_encoder_folder(folder, head))


def _fitting(folder: Path, rows: int) -> Path:
    """The graph, or the one for a single row where the export found that faster."""
    alone = folder / BATCH1_NAME
    return alone if rows == 1 and alone.is_file() else folder / MODEL_NAME


def reference(graph: Path, tiles: Sequence[bytes], height: int, width: int) -> NDArray[np.float32]:
    """(N, L) what the graph of a tagger answers; everybody's answer has to be this."""
    rows = np.stack([imaging.prepare(tile, height, width) for tile in tiles])
    found: NDArray[np.float32] = _session(graph, 1).run(["scores"], {"tiles": rows})[0]
    return found


@cache
def _session(graph: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


# --- In a process of its own, so that its CPU is counted as a server's is


class BareProcess:
    """The loop in a process that waits for settings."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        """The process, started by `bare_process`."""
        assert process.stdin is not None and process.stdout is not None
        self.pid = process.pid
        self._into: IO[str] = process.stdin
        self._out: IO[str] = process.stdout

    def loop(self, setting: Setting, seconds: float, seed: int = 0) -> dict[str, Any]:
        """What `Bare.loop` returns there."""
        asked = {"setting": asdict(setting), "seconds": seconds, "seed": seed}
        self._into.write(json.dumps(asked) + "\n")
        self._into.flush()
        line = self._out.readline()
        if not line:
            raise RuntimeError("the bare loop has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def bare_process(
    folder: Path, tiles: Path | None, questions: Sequence[str]
) -> Iterator[BareProcess]:
    """The loop, ready; it ends with the block."""
    words = [sys.executable, "-m", "loadtest.bare", str(folder), "--stdin"]
    words += ["--tiles", str(tiles)] if tiles is not None else []
    words += [word for question in questions for word in ("--question", question)]
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield BareProcess(process)
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def best(
    loops: Callable[[Setting, float], Mapping[str, Any]], cores: int, seconds: float
) -> Setting:
    """The setting with the most tiles a second; each is tried twice, as speed swings."""
    rates: dict[Setting, float] = {}
    for setting in candidates(cores) * 2:
        rate = loops(setting, seconds)["throughput_rps"]
        rates[setting] = max(rate, rates.get(setting, 0.0))
    return max(rates, key=lambda setting: rates[setting])


def main() -> None:
    """Prints the figures of every setting, or of each that comes as a line of JSON."""
    parser = argparse.ArgumentParser("python -m loadtest.bare", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="version folder of the model")
    parser.add_argument("--tiles", type=Path)
    parser.add_argument("--question", dest="questions", action="append", default=[])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--stdin", action="store_true", help="wait for settings")
    given = parser.parse_args()
    bare = Bare(given.folder, load_tiles(given.tiles), given.questions)
    if given.stdin:
        for line in sys.stdin:
            asked = json.loads(line)
            found = bare.loop(Setting(**asked["setting"]), asked["seconds"], asked["seed"])
            print(json.dumps(found), flush=True)
        return
    for setting in candidates(given.cores):
        found = bare.loop(setting, given.seconds)
        latency = found["latency_ms"]["p50"]
        print(
            f"{setting!s:36} {found['throughput_rps']:7.1f} tiles/s  p50 {latency:6.2f} ms  "
            f"CPU {found['cpu_ms']:6.2f} ms a tile"
        )


if __name__ == "__main__":
    main()
