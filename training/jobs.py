"""Runs fitted in processes side by side, each on its part of the cores.

On CPUs a step of training leaves cores idle between its kernels: two runs of one thread each are
done sooner than one after the other with two.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import torch

from tilesight.cores import usable_cores
from training import run
from training.config import SignaRun
from training.fit import LAST, train


@dataclass(frozen=True)
class Job:
    """A variant's run with one seed; one that was begun goes on."""

    variant: str
    seed: int
    config: SignaRun
    folder: Path
    data: Path
    weights: str | None
    vectors: Path | None

    def __str__(self) -> str:
        """What it is called."""
        return f"{self.variant}, seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to fit."""
        return (self.folder / run.METRICS).is_file()

    def fit(self, say: Callable[[str], None], progress: bool = False) -> None:
        """Fits it.

        Raises:
            TilesightError: as `training.fit.train` raises it.
        """
        train(
            self.config,
            self.data,
            self.weights,
            self.folder,
            vectors=self.vectors,
            resume=(self.folder / LAST).is_file(),
            progress=progress,
            say=say,
        )


def fitted(
    jobs: Sequence[Job], at_once: int, progress: bool, say: Callable[[str], None]
) -> Iterator[Job]:
    """Fits all, so many at once, and yields each when it is finished.

    Where one fails, those that a worker was given already are finished and no others begun.

    Raises:
        TilesightError: as `training.fit.train` raises it.
    """
    if at_once == 1:
        for number, job in enumerate(jobs, start=1):
            say(f"run {number} of {len(jobs)}: {job}")
            job.fit(say, progress)
            yield job
        return
    threads = max(usable_cores() // at_once, 1)
    with ProcessPoolExecutor(at_once, get_context("spawn"), _begin, (threads,)) as pool:
        running = {pool.submit(_fit, job): job for job in jobs}
        try:
            for number, future in enumerate(as_completed(running), start=1):
                future.result()
                say(f"run {number} of {len(jobs)} is finished: {running[future]}")
                yield running[future]
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(threads: int) -> None:
    """A worker with so many threads, which does not outlive whoever asked for its runs."""
    torch.set_num_threads(threads)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Else a study that is killed goes on here, and the next one fits the same run beside it.
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _fit(job: Job) -> None:
    # Several runs write to one terminal: a line says whose it is, and comes out whole.
    job.fit(partial(_say, str(job)))


def _say(name: str, line: str) -> None:
    print(f"{name}: {line}", flush=True)
