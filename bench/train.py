"""How long is one training step of the preset `mini`, and how much of the machine's matrix rate does it use?

A step is the training loop's own: micro-batch, gradient, clipping, AdamW, average. Batches are those of the recipes,
drawn and encoded before anything is timed. The rate that a step is held against is that of one large matrix product in
the same precision, on as many threads, in the same rounds.
"""

import itertools
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from bench.harness import CheckFailed, Mark, Measure, Outcome, Timing, interleave, summary
from bench.train_flops import flow_flops, sample_shapes
from vino_rt.backends.base import PRECISIONS
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.preset import init_preset
from vino_rt.train.caption import CaptionObjective
from vino_rt.train.distributed import World
from vino_rt.train.export import Precision
from vino_rt.train.flow import FlowObjective
from vino_rt.train.flow_model import FlowInputs
from vino_rt.train.objective import Objective
from vino_rt.train.stage import AverageStage, OptimiserStage, Stage
from vino_rt.train.step import Stepper
from vino_rt.train.vae import VaeObjective
from vino_rt.train.world_data import WorldData

BUCKETS = {"pictures 64x64": 1, "clips 64x64x17": 17}
"""Batches by what they make -> frames."""
LESSONS = {"image": 3.0, "clip": 4.0, "which": 1.0, "t2i": 1.0, "t2v": 1.0, "ti2v": 1.0, "ti2i": 1.5, "tv2v": 1.0}
TASKS = {"t2i": 1.0, "ti2i": 1.0, "t2v": 1.0, "i2v": 1.0, "ti2v": 1.0, "tv2v": 1.0, "tiv2v": 1.0}
PHASES = ("forward", "backward", "update")
SEED = 1


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    rows: int
    """Rows of a packed sequence of `flow`, as the budget of its data."""
    tokens: int
    """Target tokens of a batch of `vae`."""
    lessons: int
    side: int
    """Side of the matrices whose product is the ceiling."""
    repeats: int


@dataclass(frozen=True, eq=False)
class Work:
    """One batch of an objective, again and again."""

    name: str
    objective: Objective
    batch: Any
    index: int
    flops: Mapping[str, float] = field(default_factory=dict)
    """Operations of a step by part, where there is a formula."""
    rows: int = 0
    """Joint rows of the packed sequence."""

    @property
    def samples(self) -> int:
        """Samples of the batch."""
        return len(self.batch.keys)


class Trial:
    """Steps of one batch in one precision on so many threads; it notes when their phases end."""

    def __init__(self, work: Work, stepper: Stepper, place: str, device: torch.device, threads: int) -> None:
        self.work, self.place, self.name = work, place, f"{work.name}, {place}"
        self._stepper, self._device, self._threads = stepper, device, threads
        self.phases: list[tuple[float, ...]] = []
        """Seconds of each phase of each step."""

    def step(self) -> None:
        """One step; VinoError when its loss is not finite."""
        torch.set_num_threads(self._threads)
        marks = [now(self._device)]

        def mark(*_: object) -> None:
            marks.append(now(self._device))

        hooks = (
            self._stepper.root.register_forward_hook(mark),
            self._stepper.state.optimiser.parts[0].register_step_pre_hook(mark),
        )
        try:
            self._stepper.take(self.work.index, iter([self.work.batch]))
        finally:
            for hook in hooks:
                hook.remove()
        mark()
        self.phases.append(tuple(end - start for start, end in itertools.pairwise(marks)))


def now(device: torch.device) -> float:
    """Seconds of a clock once the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def product(side: int, precision: str, device: torch.device, threads: int) -> Callable[[], None]:
    """The matrix product that is the ceiling."""
    a, b = (torch.rand(side, side, device=device, dtype=PRECISIONS[precision]) for _ in range(2))
    out = torch.empty_like(a)

    def multiply() -> None:
        torch.set_num_threads(threads)
        torch.mm(a, b, out=out)
        now(device)

    return multiply


def make_stepper(model: Path, objective: Objective, precision: str, device: torch.device) -> Stepper:
    """The loop's own steps, with everything on that the recipes have on."""
    chosen: Any = {"objective": "flow", "precision": precision, "device": device.type}
    optimiser = OptimiserStage(lr=1e-5, betas=(0.9, 0.98), warmup=1)
    average = AverageStage(decay=0.998)
    stage = Stage(model=model, out=model, seed=SEED, steps=1 << 30, optimiser=optimiser, average=average, **chosen)
    return Stepper(stage, objective, World(0, 1, device))


def world_table(budget: int, overhead: int) -> dict[str, Any]:
    """The table `[data]` with both kinds of batch."""
    buckets = [{"size": [64, 64], "frames": frames, "share": 1.0} for frames in BUCKETS.values()]
    return {"tasks": TASKS, "buckets": buckets, "budget": budget, "overhead": overhead}


def first_index(source: WorldData, frames: int) -> int:
    """The first batch with so many frames."""
    return next(index for index in itertools.count() if source.keys(index)[0].frames == frames)


def flow_work(model: ModelDir, sizes: Sizes, device: torch.device) -> list[Work]:
    """A batch of each kind, encoded, with what its step computes."""
    source = WorldData(world_table(sizes.rows, 25), SEED)
    objective = FlowObjective(model, source, {"drop_prompt": 0.0, "drop_all": 0.0}, SEED)
    objective.model.to(device)
    found = []
    for kind, frames in BUCKETS.items():
        index = first_index(source, frames)
        given = seen_inputs(objective, index)
        rows = sum(shape.rows for shape in sample_shapes(given))
        batch = objective.batch(index)
        if any(sample.pixels for sample in batch.samples):
            raise CheckFailed(f"flow, {kind}: samples would be encoded in the time that is taken")
        found.append(Work(f"flow, {kind}", objective, batch, index, flow_flops(model, given), rows))
    return found


def seen_inputs(objective: FlowObjective, index: int) -> FlowInputs:
    """What the model is given for a batch; the objective then keeps its samples encoded."""
    seen: list[FlowInputs] = []
    module: nn.Module = objective.model
    hook = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        with torch.no_grad():
            objective.loss(objective.batch(index), index)
    finally:
        hook.remove()
    return seen[0]


def other_work(model: ModelDir, sizes: Sizes) -> list[Work]:
    """A batch of each kind of the autoencoder, and one of lessons."""
    source = WorldData(world_table(sizes.tokens, 0), SEED)
    vae = VaeObjective(model, source, {}, SEED)
    found = []
    for kind, frames in BUCKETS.items():
        index = first_index(source, frames)
        found.append(Work(f"vae, {kind}", vae, vae.batch(index), index))
    lessons = {"lessons": LESSONS, "batch": sizes.lessons}
    caption = CaptionObjective(model, lessons, {}, SEED)
    return [*found, Work("caption, lessons 64x64", caption, caption.batch(0), 0)]


def trials_of(
    model: Path, works: Sequence[Work], sizes: Sizes, device: torch.device, threads: Sequence[int]
) -> tuple[list[Trial], dict[str, Callable[[], object]]]:
    """Every work in every precision on every number of threads, and the ceilings by the place they hold for."""
    trials: list[Trial] = []
    ceilings: dict[str, Callable[[], object]] = {}
    for precision in get_args(Precision):
        # AdamW and the average of an objective exist once for each precision, whatever the batch and the threads.
        steppers = {id(work.objective): make_stepper(model, work.objective, precision, device) for work in works}
        for count in threads:
            place = precision if device.type == "cuda" else f"{precision}, {count} thread{'s' if count > 1 else ''}"
            ceilings[place] = product(sizes.side, precision, device, count)
            trials += [Trial(work, steppers[id(work.objective)], place, device, count) for work in works]
    return trials, ceilings


def series(trials: Sequence[Trial], ceilings: Mapping[str, Callable[[], object]], sizes: Sizes) -> list[Measure]:
    """Time all trials and ceilings in the same rounds and say what came out."""
    timings = interleave(
        {trial.name: trial.step for trial in trials} | {f"ceiling, {place}": call for place, call in ceilings.items()},
        repeats=sizes.repeats,
    )
    work = 2.0 * sizes.side**3
    rates = {place: work / timings[f"ceiling, {place}"].median for place in ceilings}
    found = [row for trial in trials for row in trial_rows(trial, timings[trial.name], rates[trial.place])]
    for place in ceilings:
        speeds = [1e-9 * work / seconds for seconds in timings[f"ceiling, {place}"].seconds]
        found.append(summary(speeds, f"machine, {place}", "ceiling: one matrix product", "GFLOP/s"))
    return found


def trial_rows(trial: Trial, timing: Timing, rate: float) -> list[Measure]:
    """Rows of one trial; `rate` is the operations per second of the ceiling."""
    work, name = trial.work, trial.name
    flops = math.fsum(work.flops.values())
    ideal = Mark(1e3 * flops / rate, "ms", "all matrix products at the measured rate") if flops else None
    rows = [timing.measure(name, "step", ideal)]
    phases = zip(*trial.phases[-len(timing.seconds) :], strict=True)
    for phase, seconds in zip(PHASES, phases, strict=True):
        rows.append(summary([1e3 * s for s in seconds], name, phase, "ms"))
    rows.append(summary([work.samples / s for s in timing.seconds], name, "samples", "1/s"))
    if work.rows:
        rows.append(summary([work.rows / s for s in timing.seconds], name, "joint rows", "1/s"))
    if flops:
        used = [100 * flops / (rate * s) for s in timing.seconds]
        rows.append(summary(used, name, "MFU", "%", Mark(100.0, "%", f"{1e-9 * rate:.4g} GFLOP/s measured")))
    return rows


def work_rows(work: Work) -> list[Measure]:
    """What a step of a work holds and, by formula, computes."""
    rows = [Measure(work.name, "samples in a step", work.samples, "")]
    if work.rows:
        rows.append(Measure(work.name, "joint rows in a step", work.rows, ""))
    return rows + [Measure(work.name, f"operations: {part}", 1e-9 * n, "GFLOP") for part, n in work.flops.items()]


def run(*, quick: bool) -> Outcome:
    """The preset `mini` with random weights, on the CPU and, where there is one, on a CUDA device; quick: tiny batches.

    Raises VinoError when a loss is not finite.
    """
    sizes = Sizes(1, 1, 2, 64, 1) if quick else Sizes(3600, 96, 32, 1536, 5)
    threads = torch.get_num_threads()
    places = {torch.device("cpu"): sizes}
    if torch.cuda.is_available():
        # A product that fills it; what fills a CPU is over before a GPU has started.
        places[torch.device("cuda", 0)] = sizes if quick else replace(sizes, side=8192)
    measures = []
    with tempfile.TemporaryDirectory() as scratch:
        model = init_preset("mini", Path(scratch) / "model")
        try:
            for device, own in places.items():
                works = [*flow_work(model, own, device), *other_work(model, own)]
                counts = sorted({1, threads}) if device.type == "cpu" else [threads]
                trials, ceilings = trials_of(model.path, works, own, device, counts)
                found = [row for work in works for row in work_rows(work)] + series(trials, ceilings, own)
                measures += [replace(row, case=f"{device.type}, {row.case}") for row in found]
        finally:
            torch.set_num_threads(threads)
    return Outcome(measures)
