"""The options that describe a request, declared once for `generate`, which runs it, and `inspect --plan`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from vino_rt.commands.base import EngineOptions, parse_size
from vino_rt.request import Reference, Request
from vino_rt.task_rules import TASKS

REFERENCES_PANEL = "References"
SAMPLING_PANEL = "Sampling"
SHARED = (
    "frames", "steps", "seed", "guidance", "image_guidance", "negative", "spatial_tiling", "sample_posterior",
)  # fmt: skip
"""Options that are fields of `Request` under the same name."""


@dataclass(frozen=True, kw_only=True)
class RequestOptions(EngineOptions):
    """Options of the subcommands that take a request."""

    image: Annotated[
        list[Path] | None,
        typer.Option(help="Reference image; repeat the option for several.", rich_help_panel=REFERENCES_PANEL),
    ] = None
    video: Annotated[
        Path | None, typer.Option(help="Video to edit or to follow.", rich_help_panel=REFERENCES_PANEL)
    ] = None
    base_image: Annotated[
        bool,
        typer.Option(
            "--base-image",
            help="Edit the last of several images; the others are references.",
            rich_help_panel=REFERENCES_PANEL,
        ),
    ] = False
    task: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join(TASKS)} (default: inferred from the references and the output).",
            rich_help_panel=REFERENCES_PANEL,
        ),
    ] = None
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Size of the output in pixels.", rich_help_panel=SAMPLING_PANEL)
    ] = None
    frames: Annotated[
        int | None, typer.Option(help="Frames of the output: 1, 5, 9, ...", rich_help_panel=SAMPLING_PANEL)
    ] = None
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps (default: the model's).", rich_help_panel=SAMPLING_PANEL)
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(
            help="Random seed; the same seed gives the same bytes (default: a random one).",
            rich_help_panel=SAMPLING_PANEL,
        ),
    ] = None
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Guidance scale of the prompt; 1 turns it off (default: the model's).", rich_help_panel=SAMPLING_PANEL
        ),
    ] = None
    image_guidance: Annotated[
        float,
        typer.Option(
            help="Guidance scale of the reference images; 1 turns it off, up to 3 is useful.",
            rich_help_panel=SAMPLING_PANEL,
        ),
    ] = 1.0
    negative: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Negative prompt; needs guidance above 1.", rich_help_panel=SAMPLING_PANEL),
    ] = None
    spatial_tiling: Annotated[
        bool,
        typer.Option(
            "--spatial-tiling",
            help="Encode and decode large frames in tiles: less memory, slower, slightly different at tile seams.",
            rich_help_panel=SAMPLING_PANEL,
        ),
    ] = False
    sample_posterior: Annotated[
        bool,
        typer.Option(
            "--sample-posterior",
            help="Sample the references' latents from their distribution instead of taking its mode.",
            rich_help_panel=SAMPLING_PANEL,
        ),
    ] = False

    def references(self) -> tuple[Reference, ...]:
        """References from --image, in the given order, then --video."""
        images = [Reference.image(path) for path in self.image or []]
        return (*images, *([] if self.video is None else [Reference.video(self.video)]))

    def sampling(self) -> dict[str, Any]:
        """Fields of `Request` that apply to a single prompt and to every entry of a task file alike."""
        return {"size": parse_size(self.size), **{name: getattr(self, name) for name in SHARED}}

    def request(self, prompt: str, task: str | None) -> Request:
        """The request that the options and a prompt describe."""
        return Request(
            prompt=prompt, task=task, references=self.references(), base_image=self.base_image, **self.sampling()
        )
