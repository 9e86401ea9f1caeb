"""`vino-rt train`: train a stage from its file to a model, in one run or in several.

It knows options and output; the training itself is in `vino_rt.train`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vino_rt.commands.base import Options
from vino_rt.commands.interrupt import cancel_on_interrupt
from vino_rt.commands.report import Reporter
from vino_rt.errors import Cancelled, UsageError

if TYPE_CHECKING:
    from vino_rt.train.distributed import World
    from vino_rt.train.loop import Outcome
    from vino_rt.train.stage import Stage

DEVICES = ("cpu", "cuda", "auto")
Fields = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Options):
    """Options of `train`."""

    stage: Annotated[Path, typer.Argument(show_default=False, metavar="STAGE.toml", help="The stage to train.")]
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory of the run, instead of the stage's own.")
    ] = None
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--fresh",
            help="Require a checkpoint to go on from, or move an earlier run aside (default: go on from a checkpoint "
            "if there is one, else begin).",
        ),
    ] = None
    steps: Annotated[
        int | None, typer.Option(min=1, help="Stop and export at this step; the schedule stays the stage's.")
    ] = None
    minutes: Annotated[
        float | None, typer.Option(help="Stop with a checkpoint after this time; the next call continues from it.")
    ] = None
    device: Annotated[str | None, typer.Option(help=f"One of {', '.join(DEVICES)}, instead of the stage's.")] = None


def run(options: TrainOptions, reporter: Reporter) -> int:
    """Train a stage and write the model.

    Resumes from the newest checkpoint of the run, if there is one. Ctrl-C stops after the current step and writes a
    checkpoint; a second Ctrl-C stops at once. With several GPUs: torchrun --nproc-per-node N -m vino_rt train
    STAGE.toml.

    Example: vino-rt train stage.toml --out runs/first --minutes 30
    """
    stage = _stage(options)
    # Imports that take seconds come after the checks of the options.
    from vino_rt.train.distributed import open_world

    with open_world(stage.device) as world:
        # The other processes would only repeat it.
        told = reporter if world.leads else Reporter(quiet=True)
        outcome = _train(stage, options, told, world)
    return _tell_end(outcome, stage, told)


def _train(stage: "Stage", options: TrainOptions, reporter: Reporter, world: "World") -> "Outcome":
    """Open the objective and train; the objective is freed before the process group ends."""
    import torch

    from vino_rt.train.loop import Call, train
    from vino_rt.train.objectives import open_objective

    starts: Mapping[bool | None, Literal["auto", "resume", "fresh"]] = {None: "auto", True: "resume", False: "fresh"}
    torch.manual_seed(stage.seed)
    objective = open_objective(stage, options.stage.parent)
    try:
        with cancel_on_interrupt() as cancel, _data_told(objective, reporter), _listener(reporter) as listen:
            start = starts[options.resume]
            call = Call(steps=options.steps, minutes=options.minutes, start=start, cancel=cancel, listen=listen)
            return train(stage, objective, call, world)
    except KeyboardInterrupt as error:
        raise Cancelled("stopped at once; the last checkpoint is intact") from error


def _stage(options: TrainOptions) -> "Stage":
    from vino_rt.train.stage import load_stage

    if options.device not in (None, *DEVICES):
        raise UsageError(f"--device is {options.device!r}, expected one of {', '.join(DEVICES)}")
    if options.minutes is not None and not options.minutes > 0:
        raise UsageError(f"--minutes is {options.minutes}, expected a number above 0")
    given: dict[str, Any] = {"device": options.device, "out": options.out}
    return replace(load_stage(options.stage), **{name: value for name, value in given.items() if value is not None})


def _tell_end(outcome: "Outcome", stage: "Stage", reporter: Reporter) -> int:
    """Report where the run ended and return the exit code; Cancelled if the run was stopped."""
    reporter.event("result", step=outcome.step, why=outcome.why, checkpoint=outcome.checkpoint, model=outcome.model)
    where = f"at step {outcome.step} of {stage.steps}, checkpoint {outcome.checkpoint}; the same command goes on"
    if outcome.why == "cancelled":
        raise Cancelled(f"stopped {where}")
    reporter.say(f"{outcome.model}: trained {outcome.step} steps" if outcome.model else f"time is up {where}")
    return 0


@contextmanager
def _data_told(objective: object, reporter: Reporter) -> Iterator[None]:
    """Report the training data and what was skipped of it; report again at the end if more was skipped."""
    from vino_rt.train.source import source_of

    source = source_of(objective)
    if source is None:
        yield
        return

    def tell() -> dict[str, int]:
        skipped, lines = dict(source.skipped()), source.describe().splitlines()
        reporter.event("data", skipped=skipped, lines=lines)
        reporter.say("\n".join(["data: " + lines[0], *lines[1:]]))
        return skipped

    before = tell()
    try:
        yield
    finally:
        if source.skipped() != before:
            tell()


@contextmanager
def _listener(reporter: Reporter) -> Iterator[Callable[[str, Fields], None]]:
    """Yield a listener that shows the loop's events as a bar with loss and time left, or as log lines, and as JSON."""
    console = Console(stderr=True)
    columns = (
        TextColumn("train"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4g}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    shown = console.is_terminal and not reporter.quiet
    # Do not redirect stdout: a program may read it while the bar is drawn on stderr.
    with Progress(*columns, console=console, transient=True, disable=not shown, redirect_stdout=False) as progress:
        task = progress.add_task("train", total=None, loss=0.0)

        def listen(name: str, fields: Fields) -> None:
            if name == "step":
                progress.update(task, completed=fields["step"], total=fields["steps"], loss=fields["loss"])
                return
            if name == "start":
                progress.update(task, completed=fields["step"], total=fields["steps"])
            reporter.event(name, **fields)
            if name == "damaged":
                reporter.complain(SAID[name](fields))
            elif name in SAID and (name != "log" or not shown):
                reporter.say(SAID[name](fields))

        yield listen


def _log_line(fields: Fields) -> str:
    parts = "".join(f", {name} {value:.4g}" for name, value in fields["parts"].items())
    replaced = f", {fields['replaced']} samples replaced" if "replaced" in fields else ""
    left = (fields["steps"] - fields["step"]) * fields["step_seconds"]
    return (
        f"step {fields['step']} of {fields['steps']}: loss {fields['loss']:.4g}{parts}, lr {fields['lr']:.2e}, "
        f"norm {fields['grad_norm']:.3g}, {fields['samples_per_second']:.4g} samples/s{replaced}, {_clock(left)} left"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


SAID: Mapping[str, Callable[[Fields], str]] = {
    "aside": lambda f: f"the earlier run was moved to {f['path']}",
    "damaged": lambda f: (
        f"warning: the checkpoint {f['path']} is damaged and will not be used; trying the one before. {f['problem']}"
    ),
    "resume": lambda f: f"going on from {f['path']}",
    "start": lambda f: (
        f"training {f['parameters']:,} parameters in {f['precision']} on {f['processes']} x {f['device']}, "
        f"steps {f['step']} to {f['steps']}; logs: {', '.join(f['logs'])}"
    ),
    "log": _log_line,
    "checkpoint": lambda f: f"checkpoint {f['path']} ({f['seconds']:.1f} s)",
    "sheet": lambda f: f"sheet {f['path']}",
    "export": lambda f: f"model {f['path']}",
}
