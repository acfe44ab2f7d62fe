"""What it costs to make a tile a model's input, beside plain Pillow on the same tiles.

    python -m benchmarks.decode
    python -m benchmarks.decode --tiles FOLDER --threads 4

It prints the CPU time of a tile in one thread (the median of the rounds) and how many tiles a
second several threads decode. All runs in threads, as in the gateway: in a process's main thread
glibc gives freed memory back at once, and every tile pays for its pages again.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL import __version__ as pillow

from tilesight import imaging

SIZE = 224
Way = Callable[[bytes], object]


def plain_pillow(data: bytes) -> NDArray[np.uint8]:
    """What a program without checks, warnings and rules would write."""
    image = Image.open(BytesIO(data)).convert("RGB")
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


WAYS: dict[str, Way] = {
    "plain Pillow": plain_pillow,
    "imaging.fitted": lambda data: imaging.fitted(data, SIZE, SIZE),
    "imaging.prepare": lambda data: imaging.prepare(data, SIZE, SIZE),
}


def drawn_tiles(count: int = 64) -> list[bytes]:
    """JPEGs of 256 x 256 pixels and about 13 kB, like those of UC Merced."""
    random = np.random.default_rng(0)
    return [_drawn_tile(random) for _ in range(count)]


def _drawn_tile(random: np.random.Generator) -> bytes:
    fields = Image.fromarray(random.integers(40, 216, (24, 24, 3), dtype=np.uint8))
    smooth = np.asarray(fields.resize((256, 256), Image.Resampling.BICUBIC), dtype=np.float64)
    rough = smooth + random.normal(0, 9, (256, 256, 1))
    buffer = BytesIO()
    Image.fromarray(rough.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=66)
    return buffer.getvalue()


def read_tiles(folder: Path, most: int = 200) -> list[bytes]:
    """The JPEGs of a folder, evenly picked."""
    paths = sorted(folder.rglob("*.jp*g"))
    return [path.read_bytes() for path in paths[:: max(1, len(paths) // most)]]


def cpu_ms(tiles: Sequence[bytes], rounds: int) -> dict[str, float]:
    """The median CPU time of a tile, by way; the ways take turns, so that noise meets all."""
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            started = time.thread_time()
            for tile in tiles:
                way(tile)
            taken[name].append((time.thread_time() - started) / len(tiles) * 1e3)
    return {name: statistics.median(times) for name, times in taken.items()}


def tiles_per_second(tiles: Sequence[bytes], threads: int, seconds: float) -> float:
    """How many tiles so many threads make ready together."""
    fitted, end = WAYS["imaging.fitted"], time.perf_counter() + seconds

    def worker(_: int) -> int:
        done = 0
        while time.perf_counter() < end:
            fitted(tiles[done % len(tiles)])
            done += 1
        return done

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(worker, range(threads))) / seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", type=Path, help="a folder of JPEGs instead of drawn tiles")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each count of threads")
    options = parser.parse_args(arguments)
    tiles = read_tiles(options.tiles) if options.tiles else drawn_tiles()
    if not tiles:
        parser.error(f"--tiles: no JPEG in {options.tiles}")

    weight = sum(map(len, tiles)) / len(tiles) / 1000
    print(f"{len(tiles)} tiles of {weight:.1f} kB each, to {SIZE} x {SIZE}; Pillow {pillow}")
    with ThreadPoolExecutor(1) as pool:
        costs = pool.submit(cpu_ms, tiles, options.rounds).result()
    for name, cost in costs.items():
        print(f"{name:16} {cost:6.3f} ms  {cost / costs['plain Pillow']:.2f} of plain Pillow")
    for count in sorted({1, options.threads}):
        print(f"{count} threads {tiles_per_second(tiles, count, options.seconds):8.0f} tiles/s")


if __name__ == "__main__":
    main()
