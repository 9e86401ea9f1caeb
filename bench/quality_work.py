"""Trials answered and judged, in this process or in several; says on stderr how far it is.

It knows how work is shared out, not what the answers mean.
"""

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.quality_cases import UNDERSTAND, Trial
from bench.quality_draw import Artist, Setup
from bench.quality_score import Answer, Judged, judged
from vino_rt.world.judge import psnr

TOGETHER = 16
"""Captions that are made at once."""
FLOORS = 32
"""Trials of a row on which the autoencoder alone is measured: its mean is known to a fraction of a dB."""
SPOKEN = 20
"""Lines about progress where there is no terminal to draw a bar on."""


@dataclass(frozen=True, eq=False)
class Done:
    """An answered trial."""

    trial: Trial
    answer: Answer
    verdict: Judged


def work(setup: Setup, trials: Sequence[Trial], workers: int) -> Iterator[Done]:
    """Answer and judge trials, in any order; several workers are processes with a runtime and one thread each."""
    with _told(len(trials)) as tell:
        for finished in _finished(setup, jobs(trials), workers):
            tell(len(finished))
            yield from finished


def jobs(trials: Sequence[Trial]) -> list[tuple[Trial, ...]]:
    """What is handed out at once; rows take turns, so that the time left can be told from the time taken."""
    found = []
    for row in dict.fromkeys(trial.row for trial in trials):
        own = [trial for trial in trials if trial.row == row]
        together = TOGETHER if own[0].case == UNDERSTAND else 1
        found += [tuple(own[start : start + together]) for start in range(0, len(own), together)]
    return sorted(found, key=lambda job: job[0].number)


def attempt(setup: Setup, job: Sequence[Trial]) -> list[Done]:
    """Answer and judge the trials of one job; only the answers are timed."""
    artist = opened(setup)
    artist.prepare(job[0].case)
    start = time.perf_counter()
    answers = artist.answers(job)
    seconds = (time.perf_counter() - start) / len(job)
    return [
        Done(trial, answer, _verdict(artist, trial, answer, seconds))
        for trial, answer in zip(job, answers, strict=True)
    ]


@cache
def opened(setup: Setup) -> Artist:
    """The artist of this process; one is opened for each setup."""
    torch.set_num_threads(setup.threads)
    return Artist(setup)


def _verdict(artist: Artist, trial: Trial, answer: Answer, seconds: float) -> Judged:
    floor = None
    if trial.number < FLOORS and not isinstance(answer, str):
        truth = trial.example.truth()
        floor = psnr(artist.reconstruct(truth), truth)
    return judged(trial, answer, artist.reconstruct, seconds=seconds, floor_db=floor)


def _finished(setup: Setup, todo: Sequence[tuple[Trial, ...]], workers: int) -> Iterator[list[Done]]:
    if workers == 1:
        yield from (attempt(setup, job) for job in todo)
        return
    # Fresh processes: the libraries' threads do not survive a fork.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        for future in as_completed([pool.submit(attempt, setup, job) for job in todo]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _told(total: int) -> Iterator[Callable[[int], None]]:
    """Hand out a function that is told how many more are done: a bar with the time left, or a few lines in a log."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
            task = bar.add_task("quality", total=total)
            yield lambda more: bar.advance(task, more)
        return
    start, done = time.perf_counter(), 0

    def tell(more: int) -> None:
        nonlocal done
        before, done = done, done + more
        if done * SPOKEN // total > before * SPOKEN // total:
            taken = time.perf_counter() - start
            left = taken * (total - done) / done
            print(f"quality: {done} of {total}, {taken:.0f} s, {left:.0f} s left", file=sys.stderr, flush=True)

    yield tell
