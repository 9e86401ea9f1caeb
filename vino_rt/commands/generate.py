"""`vino-rt generate`: a prompt or a task file to files.

Everything that can be refused is refused before the model is opened: options, references, output paths.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vino_rt.commands.base import EngineOptions, parse_size, tell
from vino_rt.commands.interrupt import cancel_on_interrupt
from vino_rt.commands.report import Reporter
from vino_rt.errors import Cancelled, InputError, OutputError, UsageError, VinoError
from vino_rt.request import TASKS, Reference, Request, infer_task

if TYPE_CHECKING:
    from vino_rt.runtime import Progress, Result, Runtime

STILL_SUFFIXES = (".png", ".jpg", ".jpeg")
REFERENCES_PANEL = "References"
SAMPLING_PANEL = "Sampling"


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(EngineOptions):
    """What `generate` takes."""

    prompt: Annotated[str | None, typer.Argument(show_default=False, help="What to make or to change.")] = None
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write: .png .jpg .mp4 .gif; with --tasks a directory.")
    ]
    tasks: Annotated[Path | None, typer.Option(help="Task file: make all of its entries.")] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False
    image: Annotated[
        list[Path] | None,
        typer.Option(help="Image to draw from; give it once for each.", rich_help_panel=REFERENCES_PANEL),
    ] = None
    video: Annotated[
        Path | None, typer.Option(help="Video to edit or to follow.", rich_help_panel=REFERENCES_PANEL)
    ] = None
    base_image: Annotated[
        bool,
        typer.Option("--base-image", help="The last of several images is the edited one.", rich_help_panel=REFERENCES_PANEL),
    ] = False
    task: Annotated[
        str | None,
        typer.Option(help=f"One of {', '.join(TASKS)}; inferred when left out.", rich_help_panel=REFERENCES_PANEL),
    ] = None
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Size of the output.", rich_help_panel=SAMPLING_PANEL)
    ] = None
    frames: Annotated[
        int | None, typer.Option(help="Frames of the output: 1, 5, 9, ...", rich_help_panel=SAMPLING_PANEL)
    ] = None
    steps: Annotated[int | None, typer.Option(help="Denoise steps.", rich_help_panel=SAMPLING_PANEL)] = None
    seed: Annotated[
        int | None, typer.Option(help="Same seed, same bytes; drawn when left out.", rich_help_panel=SAMPLING_PANEL)
    ] = None
    guidance: Annotated[
        float | None, typer.Option(help="Weight of the prompt; 1 is off.", rich_help_panel=SAMPLING_PANEL)
    ] = None
    image_guidance: Annotated[
        float, typer.Option(help="Weight of the images; 1 is off, up to 3 is useful.", rich_help_panel=SAMPLING_PANEL)
    ] = 1.0
    negative: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What to keep away from.", rich_help_panel=SAMPLING_PANEL)
    ] = None
    spatial_tiling: Annotated[
        bool,
        typer.Option("--spatial-tiling", help="Less memory for large frames, seams aside.", rich_help_panel=SAMPLING_PANEL),
    ] = False
    sample_posterior: Annotated[
        bool,
        typer.Option(
            "--sample-posterior", help="Sample the references' latents instead of their mode.", rich_help_panel=SAMPLING_PANEL
        ),
    ] = False


@dataclass(frozen=True)
class Job:
    """One file to make."""

    request: Request
    path: Path
    label: dict[str, str]
    """Its index where it comes from a task file, for every event about it."""


def run(options: GenerateOptions, reporter: Reporter) -> int:
    """Make a picture or a clip from a prompt, images and a video.

    Engines that are missing are built first, unless --no-build.
    """
    jobs = _task_jobs(options) if options.tasks else [_job(options)]
    code = 0
    ready = []
    for job in jobs:
        try:
            _check(job, options.overwrite)
            ready.append(job)
        except VinoError as error:
            if not options.tasks:
                raise
            code = code or tell(error, reporter, **job.label)
    if ready:
        with _open(options, reporter) as runtime:
            if options.tasks:
                _make_directory(options.output)
            for job in ready:
                try:
                    _make(runtime, job, options, reporter)
                except Cancelled:
                    raise
                except (VinoError, MemoryError) as error:
                    if not options.tasks:
                        raise
                    code = code or tell(error, reporter, **job.label)
    return code
