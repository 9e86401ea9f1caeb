"""The training loop: from the newest checkpoint to the last step of a stage, or to where it is stopped.

It knows an objective by its protocol and a stage by its numbers; it knows no task, no model family, no data.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from vino_rt.errors import OutOfMemory, UsageError
from vino_rt.train.checkpoint import Checkpoints
from vino_rt.train.directory import CHECKPOINTS, MODEL, occupied, set_aside
from vino_rt.train.distributed import World, open_world, whole_weights
from vino_rt.train.feed import feed, lost_workers
from vino_rt.train.log import RunLog, Step, Window
from vino_rt.train.objective import Objective
from vino_rt.train.stage import Stage
from vino_rt.train.step import Stepper, micro_seed
from vino_rt.weight_writer import staged_directory

Why = Literal["complete", "minutes", "cancelled"]
Listener = Callable[[str, Mapping[str, Any]], None]
"""Called in the leading process with the name of an event and its fields; `_Run` says which there are."""


def _ignore(name: str, fields: Mapping[str, Any]) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Call:
    """How far one call goes, and who hears of it."""

    steps: int | None = None
    """Stop, and export, at this step of the stage; the schedule stays the stage's."""
    minutes: float | None = None
    """Stop with a checkpoint after this time; the stage's own limit when left out."""
    start: Literal["auto", "resume", "fresh"] = "auto"
    """`resume` insists on a checkpoint, `fresh` moves an earlier run aside, `auto` goes on where there is one."""
    cancel: threading.Event | None = None
    """When set, the run ends with a checkpoint after its step."""
    listen: Listener = _ignore


@dataclass(frozen=True)
class Outcome:
    """Where a call ended."""

    step: int
    why: Why
    checkpoint: Path
    model: Path | None
    """The exported model, when the call reached its last step."""


def train(stage: Stage, objective: Objective, call: Call | None = None, world: World | None = None) -> Outcome:
    """Train a stage; all processes that torchrun started must call it, with the same stage.

    UsageError for a stage or call that does not fit the run directory, VinoError naming step and micro-batch when loss
    or gradient is not finite (the weights are then untouched) and when a data worker died, OutputError when the disk is
    full, OutOfMemory. The newest checkpoint stays intact whatever happens.
    """
    with ExitStack() as stack:
        world = world or stack.enter_context(open_world(stage.device))
        stack.enter_context(occupied(stage.out) if world.leads else nullcontext())
        world.gather(None)
        stack.enter_context(_numerics(stage))
        try:
            return _Run(stage, objective, call or Call(), world).go()
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                f"{world.device} ran out of memory; take smaller micro-batches and a larger accumulate, or set "
                "recompute = true"
            ) from error


@contextmanager
def _numerics(stage: Stage) -> Iterator[None]:
    """Threads and determinism as the stage asks, and back."""
    # A module that swaps itself for an object, which type checkers cannot follow.
    debug: Any = torch.utils.deterministic
    threads, before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warns, fills = torch.is_deterministic_algorithms_warn_only_enabled(), debug.fill_uninitialized_memory
    if stage.threads:
        torch.set_num_threads(stage.threads)
    if stage.deterministic and not before:
        torch.use_deterministic_algorithms(True, warn_only=True)
        # A debugging aid of PyTorch's that costs a pass over every new tensor.
        debug.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(before, warn_only=warns)
        debug.fill_uninitialized_memory = fills


class _Run:
    """One call of `train` in one process.

    Its events: aside, damaged, resume, start, step, log, sheet, checkpoint, export.
    """

    def __init__(self, stage: Stage, objective: Objective, call: Call, world: World) -> None:
        self.stage, self.objective, self.call, self.world = stage, objective, call, world
        self.began = self.saved_at = time.monotonic()
        self.step, self.seconds, self.window = 0, 0.0, Window()
        self.end = stage.steps if call.steps is None else call.steps
        if not 0 < self.end <= stage.steps:
            raise UsageError(f"steps is {call.steps}, expected 1..{stage.steps}; correct it or the stage")
        self.stepper = Stepper(stage, objective, world)
        self.fingerprint = stage.fingerprint(world.size)
        directory, log = stage.out / CHECKPOINTS, stage.log
        self.checkpoints = Checkpoints(directory, world, keep=log.keep, shard_bytes=log.shard_bytes)
        self.newest: Path | None = None
        self.sheet_at = 0
        self.log: RunLog | None = None
        """None in processes that do not lead."""

    def go(self) -> Outcome:
        """Train until the end or a reason to stop, then write what has to be written."""
        self._prepare()
        why: Why | None = None
        stage, ahead = self.stage, self.stage.accumulate * self.world.size
        indices = range(self.step * ahead + self.world.rank, self.end * ahead, self.world.size)
        with (
            lost_workers(lambda: f"the last checkpoint is intact ({self.newest or 'none was written yet'})"),
            # Workers end here and not when somebody collects garbage.
            closing(feed(self.objective, indices, stage.workers, self.world.device)) as batches,
        ):
            while self.step < self.end and not why:
                why = self._after(self.stepper.take(self.step, batches))
        return self._finish(why or "complete")

    def _tell(self, name: str, **fields: Any) -> None:
        if self.world.leads:
            self.call.listen(name, fields)

    def _prepare(self) -> None:
        """Find the checkpoint to go on from, and open the logs."""
        if self.world.leads:
            self.checkpoints.clear_leftovers()
            if self.call.start == "fresh" and (aside := set_aside(self.stage.out)):
                self._tell("aside", path=aside)
        self.world.gather(None)
        opened = self.checkpoints.newest(
            self.fingerprint, lambda path, problem: self._tell("damaged", path=path, problem=problem)
        )
        if opened is None and self.call.start == "resume":
            raise UsageError(f"{self.checkpoints.directory} holds no checkpoint to resume; leave --resume out")
        if opened and opened.step > self.end:
            raise UsageError(
                f"steps is {self.end}, but the run in {self.stage.out} has reached step {opened.step}; give steps of "
                f"at least {opened.step} (--steps), or begin anew (--fresh), which moves that run aside"
            )
        if opened:
            self.stepper.state.restore(opened)
            self.step, self.newest = opened.step, opened.path
            self.seconds, self.window = float(opened.record["seconds"]), Window(**opened.record["window"])
            self._tell("resume", path=opened.path, step=opened.step)
        if not self.world.leads:
            return
        self.log = RunLog(self.stage.out, self.step)
        self._tell(
            "start",
            step=self.step,
            steps=self.end,
            device=str(self.world.device),
            processes=self.world.size,
            precision=self.stage.precision,
            parameters=self.stepper.parameters,
            logs=self.log.paths,
        )

    def _after(self, done: Step) -> Why | None:
        """Log, draw and save what is due after a step; the reason to stop, if there is one."""
        self.step, log = done.step, self.stage.log
        self.seconds += done.seconds
        self.window.add(done)
        self._tell("step", step=self.step, steps=self.end, loss=done.loss, seconds=done.seconds)
        if self.step % log.every == 0 or self.step == self.stage.steps:
            line = {"step": self.step, "lr": done.lr, **self.window.line(), "seconds": round(self.seconds, 3)}
            self.window = Window()
            if self.log:
                self.log.write(line)
            self._tell("log", steps=self.end, **line)
        if log.sheet_every and self.step % log.sheet_every == 0:
            self._draw()
        why, due = self._wishes()
        if due or (log.checkpoint_every and self.step % log.checkpoint_every == 0):
            self._save()
        return why if self.step < self.end else None

    def _wishes(self) -> tuple[Why | None, bool]:
        """Whether to stop and why, whether a checkpoint is due; clocks are the leading process's, signals anybody's."""
        now, limit = time.monotonic(), self.call.minutes or self.stage.minutes
        late = limit is not None and now - self.began >= 60.0 * limit
        due = 0 < 60.0 * self.stage.log.checkpoint_minutes <= now - self.saved_at
        cancelled = self.call.cancel is not None and self.call.cancel.is_set()
        wishes = self.world.gather((cancelled, late, due))
        _, late, due = wishes[0]
        return "cancelled" if any(wish[0] for wish in wishes) else "minutes" if late else None, due

    def _save(self) -> None:
        began, state = time.monotonic(), self.stepper.state
        record = {"seconds": self.seconds, "updates": state.updates(), "window": asdict(self.window)}
        self.newest = self.checkpoints.save(self.step, self.fingerprint, state.sections(), record)
        self.saved_at = time.monotonic()
        self._tell("checkpoint", path=self.newest, step=self.step, seconds=round(self.saved_at - began, 3))

    def _draw(self) -> None:
        """Let the objective draw its sheet with the averaged weights; all processes take part, one writes."""
        torch.manual_seed(micro_seed(self.stage.seed, self.step))
        with self.stepper.state.average.applied(), torch.no_grad(), self.stepper.autocast():
            sheet = self.stepper.root(self.objective.sheet)
        self.stepper.root.release()
        self.sheet_at = self.step
        if sheet is not None and self.log:
            self._tell("sheet", path=self.log.write_sheet(sheet, self.step), step=self.step)

    def _finish(self, why: Why) -> Outcome:
        """The last checkpoint, and at the end of the steps the last sheet and the model."""
        if self.newest != self.checkpoints.path(self.step):
            self._save()
        assert self.newest
        model = self.stage.out / MODEL if why == "complete" else None
        if model:
            if self.stage.log.sheet_every and self.sheet_at != self.step:
                self._draw()
            with self.stepper.state.average.applied(), whole_weights(self.objective.model, self.world):
                if self.world.leads:
                    with staged_directory(model, replaces="model.json") as staging:
                        self.objective.export(staging)
            self._tell("export", path=model, step=self.step)
        if self.log:
            self.log.close()
        return Outcome(self.step, why, self.newest, model)
