"""`vino-rt generate`: make files from a prompt or from a task file.

Options, output paths and references are checked first. Requests that the model cannot serve are refused before missing
engines are built or, if none is missing, before any engine runs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vino_rt.commands.base import MODEL_PANEL, parse_size, tell
from vino_rt.commands.files import check_directory, check_files
from vino_rt.commands.interrupt import cancel_on_interrupt
from vino_rt.commands.report import OnPart, Reporter
from vino_rt.commands.request_options import RequestOptions
from vino_rt.errors import Cancelled, OutputError, UsageError, VinoError
from vino_rt.request import FRAME_STEP, MAX_THREADS, Request
from vino_rt.task_rules import TASKS, infer_task

if TYPE_CHECKING:
    from vino_rt.progress import Progress
    from vino_rt.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(RequestOptions):
    """Options of `generate`."""

    prompt: Annotated[str | None, typer.Argument(show_default=False, help="What to draw, or what to change.")] = None
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write: .png .jpg .mp4 .gif; with --tasks a directory.")
    ]
    tasks: Annotated[Path | None, typer.Option(help="Task file (JSON): make all of its entries.")] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False
    no_build: Annotated[
        bool,
        typer.Option(
            "--no-build", help="Fail if an engine is missing instead of building it.", rich_help_panel=MODEL_PANEL
        ),
    ] = False
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_THREADS, help="CPU threads that an engine uses.", rich_help_panel=MODEL_PANEL),
    ] = None


@dataclass(frozen=True)
class Job:
    """One file to make."""

    request: Request
    path: Path
    label: dict[str, str]
    """Fields of every JSON event about it: the index, for an entry of a task file."""


def run(options: GenerateOptions, reporter: Reporter) -> int:
    """Make a picture or a clip from a prompt, images and a video.

    Engines that are missing are built first, unless --no-build is given.

    Example: vino-rt generate "a red fox in the snow" -o fox.png --seed 7
    """
    if options.tasks is not None:
        return _run_tasks(options, reporter)
    job = _job(options)
    check_files(job.request, job.path, overwrite=options.overwrite)
    if refuse := _refuser(options):
        refuse(job.request)
    with _open(options, reporter, build=refuse is not None) as runtime:
        _make(runtime, job, options, reporter)
    return 0


def _run_tasks(options: GenerateOptions, reporter: Reporter) -> int:
    """Make every entry, reporting those that fail and going on. Returns the exit code of the first failure, or 0."""
    from vino_rt.tasks import read_tasks

    assert options.tasks is not None
    _refuse_with_tasks(options)
    tasks = read_tasks(options.tasks)
    check_directory(options.output)
    codes: list[int] = []
    jobs: list[Job] = []
    for task in tasks:
        try:
            request = task.request(**options.sampling())
            still = TASKS[task.task].still or request.frames == 1
            job = Job(request, options.output / task.output_name(1 if still else 2), {"index": task.index})
            check_files(job.request, job.path, overwrite=options.overwrite)
            jobs.append(job)
        except VinoError as error:
            codes.append(tell(error, reporter, index=task.index))
    if not jobs:
        return codes[0]
    if refuse := _refuser(options):
        for job in list(jobs):
            try:
                refuse(job.request)
            except VinoError as error:
                codes.append(tell(error, reporter, **job.label))
                jobs.remove(job)
        if not jobs:
            return codes[0]
    with _open(options, reporter, build=refuse is not None) as runtime:
        for number, job in enumerate(jobs):
            try:
                _make(runtime, job, options, reporter)
            except Cancelled as error:
                index = job.label["index"]
                raise Cancelled(f"cancelled in entry {index}; {number} of {len(jobs)} were tried before it") from error
            except (VinoError, MemoryError) as error:
                codes.append(tell(error, reporter, **job.label))
    return codes[0] if codes else 0


def _refuse_with_tasks(options: GenerateOptions) -> None:
    given = {
        "PROMPT": options.prompt is not None,
        "--image": options.image,
        "--video": options.video,
        "--base-image": options.base_image,
        "--task": options.task,
    }
    if names := [name for name, value in given.items() if value]:
        raise UsageError(f"--tasks says itself what {', '.join(names)} would say; leave that out")


def _job(options: GenerateOptions) -> Job:
    """The job of a single prompt; UsageError if the suffix contradicts the task or the frames."""
    from vino_rt.media_write import IMAGE_SUFFIXES, check_output

    if options.prompt is None:
        raise UsageError('give a PROMPT (an empty one, "", is legal) or a task file with --tasks')
    check_output(options.output, overwrite=options.overwrite)
    still = options.output.suffix.lower() in IMAGE_SUFFIXES
    images, size = options.image or [], parse_size(options.size)
    _check_suffix(options, still)
    task = options.task or infer_task(len(images), options.video is not None, options.frames, size, moving=not still)
    request = options.request(options.prompt, task)
    rule = TASKS[task]
    if not rule.video and rule.still != still:
        made = "one image" if rule.still else "a clip"
        raise UsageError(
            f"task {task} makes {made}, which {options.output} does not hold; change the suffix or the task"
        )
    return Job(request, options.output, {})


def _check_suffix(options: GenerateOptions, still: bool) -> None:
    """Raise UsageError if the suffix of the output contradicts the frames."""
    if still and (options.frames or 0) > 1:
        raise UsageError(
            f"--frames is {options.frames}, but {options.output} holds one; leave --frames out, or name a .mp4 or .gif"
            f"{_legal_frames(options.frames or 0)}"
        )
    if still and options.video is not None and options.frames is None:
        raise UsageError(
            f"a video makes a clip, which {options.output} does not hold; name a .mp4 or .gif, or give --frames 1 to "
            "use the first frame alone"
        )
    if not still and options.frames == 1:
        raise UsageError(f"--frames is 1, but {options.output} holds a clip; name a .png or .jpg, or ask for 5 or more")


def _legal_frames(frames: int) -> str:
    """What a message adds where no clip has so many frames: the nearest counts that one has."""
    below = (frames - 1) // FRAME_STEP * FRAME_STEP + 1
    near = [str(count) for count in (below, below + FRAME_STEP) if count > 1]
    return "" if frames == below else f" and ask for {' or '.join(near)} frames"


def _refuser(options: GenerateOptions) -> Callable[[Request], object] | None:
    """A check that raises what a runtime would raise before it computes; None unless engines must be built first."""
    from vino_rt.build import missing_kinds
    from vino_rt.commands.opening import open_parts
    from vino_rt.commands.outlook import foresee

    model, recipe, store = open_parts(options)
    if options.no_build or not missing_kinds(model, recipe, store):
        return None
    return lambda request: foresee(request, model, recipe)


def _open(options: GenerateOptions, reporter: Reporter, *, build: bool) -> "Runtime":
    """Open model and engines; with `build`, build missing ones."""
    from vino_rt.backends.recipe import load_recipe
    from vino_rt.commands.opening import recipe_name, warn_of_emulation
    from vino_rt.runtime import Runtime

    name = recipe_name(options)
    warn_of_emulation(load_recipe(name), reporter)
    with reporter.bars() as show:
        show("open", 0, 0)
        return Runtime.open(
            options.model,
            recipe=name,
            store=options.store,
            build=build,
            on_build=reporter.on_build(show),
            threads=options.threads,
        )


def _make(runtime: "Runtime", job: Job, options: GenerateOptions, reporter: Reporter) -> None:
    """Run one request and write its file."""
    with reporter.bars() as show, cancel_on_interrupt() as cancel:
        result = runtime.generate(job.request, on_step=_on_step(reporter, show, job), cancel=cancel)
    try:
        job.path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{job.path.parent} cannot be made ({error.strerror}); choose another directory") from error
    path = result.save(job.path, overwrite=options.overwrite)
    timings = {name: round(seconds, 4) for name, seconds in result.timings.items()}
    settings = result.settings.record()
    reporter.event("result", path=str(path), seed=result.seed, timings=timings, settings=settings, **job.label)
    frames, height, width = result.frames.shape[:3]
    reporter.say(f"{path}: {frames} x {width}x{height}, seed {result.seed}, {sum(timings.values()):.1f} s")


def _on_step(reporter: Reporter, show: OnPart, job: Job) -> "Callable[[Progress], None]":
    def on_step(progress: "Progress") -> None:
        show(progress.stage, progress.done, progress.total)
        reporter.event("step", stage=progress.stage, done=progress.done, total=progress.total, **job.label)

    return on_step
