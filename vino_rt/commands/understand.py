"""`vino-rt understand`: describe pictures and videos, or answer questions, with a model's vision-language model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vino_rt.commands.base import MODEL_PANEL, Options
from vino_rt.commands.interrupt import cancel_on_interrupt
from vino_rt.commands.report import Reporter
from vino_rt.errors import UsageError
from vino_rt.request import Reference
from vino_rt.task_rules import MAX_IMAGES

if TYPE_CHECKING:
    from vino_rt.progress import Progress
    from vino_rt.understand import Captioner


@dataclass(frozen=True, kw_only=True)
class UnderstandOptions(Options):
    """Options of `understand`."""

    files: Annotated[
        list[Path], typer.Argument(show_default=False, metavar="FILE...", help="Pictures and videos to look at.")
    ]
    prompt: Annotated[
        str | None,
        typer.Option(
            help="What to ask about all files at once, as image 1, image 2, ... and video 1. Left out: each file is "
            "described by itself."
        ),
    ] = None
    max_tokens: Annotated[int, typer.Option(min=1, max=4096, help="Maximum number of tokens of an answer.")] = 256
    model: Annotated[
        Path | None,
        typer.Option(help="Model directory (default: the bundled vino-mini).", rich_help_panel=MODEL_PANEL),
    ] = None


def run(options: UnderstandOptions, reporter: Reporter) -> None:
    """Describe pictures and videos, or answer a question about them, with the model that reads prompts.

    Example: vino-rt understand photo.jpg --prompt "What is in the foreground?"
    """
    references = [_reference(path) for path in options.files]
    if options.prompt is not None:
        _check_count(references)

    captioner = _open(options, reporter)
    if options.prompt is not None:
        text = _answer(captioner, references, options, reporter)
        reporter.event("answer", paths=[str(path) for path in options.files], prompt=options.prompt, text=text)
        reporter.say(text)
        return
    for path, reference in zip(options.files, references, strict=True):
        text = _answer(captioner, [reference], options, reporter)
        reporter.event("answer", paths=[str(path)], prompt=None, text=text)
        reporter.say(f"{path}: {text}" if len(references) > 1 else text)


def _open(options: UnderstandOptions, reporter: Reporter) -> "Captioner":
    """Load the model's vision-language model."""
    from vino_rt.model_dir import ModelDir, bundled_model
    from vino_rt.understand import Captioner

    with reporter.bars() as show:
        show("open", 0, 0)
        return Captioner.open(ModelDir.open(options.model or bundled_model()))


def _answer(
    captioner: "Captioner", references: Sequence[Reference], options: UnderstandOptions, reporter: Reporter
) -> str:
    """Ask once and show how far it is; Ctrl-C ends it within a layer or a token."""
    with reporter.bars() as show, cancel_on_interrupt() as cancel:

        def on_step(progress: "Progress") -> None:
            show(progress.stage, progress.done, progress.total)
            reporter.event("step", stage=progress.stage, done=progress.done, total=progress.total)

        return captioner.understand(
            references, options.prompt, max_tokens=options.max_tokens, on_step=on_step, cancel=cancel
        )


def _reference(path: Path) -> Reference:
    """A file as a reference, by its content: one frame is an image, an animation a video.

    Opens the file, so that an unusable one raises MediaError before a model is loaded.
    """
    from vino_rt.media import picture_frames
    from vino_rt.media_video import open_video

    if picture_frames(path) == 1:
        return Reference.image(path)
    with open_video(path):
        return Reference.video(path)


def _check_count(references: Sequence[Reference]) -> None:
    """Raise UsageError for more files than one prompt can be about."""
    videos = sum(reference.kind == "video" for reference in references)
    if videos > 1:
        raise UsageError(f"{videos} videos with one --prompt; it can be about one, so ask about each by itself")
    if len(references) - videos > MAX_IMAGES:
        raise UsageError(f"{len(references) - videos} images with one --prompt; at most {MAX_IMAGES} are legal")
