"""What the user asked for, validated: `Request` and its `Reference`s (MODEL.md section 2).

It opens no file and knows no model: `settings` resolves a request against a model's defaults.
"""

import os
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from vino_rt.errors import InputError, UsageError
from vino_rt.task_rules import MAX_IMAGES, Size, check_task, infer_task

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = npt.NDArray[np.uint8]

MAX_PROMPT = 20_000
"""Most characters of a prompt: far above what the models were trained on, low enough to bound memory."""
MAX_STEPS = 1000
MAX_THREADS = 256
"""Most threads a caller may give an engine: more than any machine has cores, few enough to start."""
MAX_GUIDANCE = 100.0
MAX_SEED = 2**63 - 1
MAX_SIDE = 16_384
MAX_FRAMES = 100_001
"""Rejects nonsense only; each model sets its own limit."""
MAX_FPS = 240.0
"""Frames per second. A source that claims more has a broken clock; no clip is written with more."""
FRAME_STEP = 4
"""Frames per latent frame after the first: legal counts are 4k + 1 (MODEL.md section 2)."""
LATENT_PIXELS = 8
"""Pixels along each side of one latent (MODEL.md section 2)."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A reference image or video: a file, or RGB pixels in memory. Made with `Reference.image` or `Reference.video`.

    Pixels are uint8, [H, W, 3] for an image and [F, H, W, 3] for a video. They are not copied: do not change them while
    a request uses them. Raises InputError for anything else.
    """

    kind: Literal["image", "video"]
    path: Path | None = None
    pixels: Pixels | None = None
    fps: float | None = None
    """Frames per second of a video in memory; a file states its own."""

    def __post_init__(self) -> None:
        if self.kind not in ("image", "video"):
            raise InputError(f"a reference of kind {self.kind!r}; legal kinds are 'image' and 'video'")
        if (self.path is None) == (self.pixels is None):
            raise InputError(f"a reference {self.kind} is either a path or pixels, exactly one of them")
        if self.path is not None:
            object.__setattr__(self, "path", _path(self.kind, self.path))
        if self.fps is not None:
            if self.kind == "image" or self.path is not None:
                raise InputError("fps belongs to a video in memory; an image has none and a file says its own")
            object.__setattr__(self, "fps", _real("fps", self.fps, 0.1, 1000.0))
        if self.pixels is not None:
            self._check_pixels(self.pixels)

    def _check_pixels(self, pixels: Pixels) -> None:
        shape, dims = ("[H, W, 3]", 3) if self.kind == "image" else ("[F, H, W, 3]", 4)
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
            kind = pixels.dtype if isinstance(pixels, np.ndarray) else type(pixels).__name__
            raise InputError(f"{self.kind} pixels are {kind}; pass a numpy array of uint8 {shape} in RGB")
        if pixels.ndim != dims or pixels.shape[-1] != 3 or 0 in pixels.shape:
            raise InputError(f"{self.kind} pixels have shape {pixels.shape}; pass uint8 {shape} in RGB, no side empty")

    @property
    def name(self) -> str:
        """The path, or a phrase for pixels in memory; for messages."""
        return f"the {self.kind} in memory" if self.path is None else str(self.path)

    @classmethod
    def image(cls, source: "str | os.PathLike[str] | Pixels | Image") -> "Reference":
        """An image from a file, from uint8 pixels [H, W, 3], or from a Pillow image, converted as a file would be."""
        if not isinstance(source, str | os.PathLike | np.ndarray):
            # Imported here, so that a command line that names files starts without Pillow.
            from PIL.Image import Image

            from vino_rt.media import picture_pixels

            source = picture_pixels(source) if isinstance(source, Image) else source
        return cls("image", pixels=source) if isinstance(source, np.ndarray) else cls("image", _path("image", source))

    @classmethod
    def video(cls, source: str | os.PathLike[str] | Pixels, fps: float | None = None) -> "Reference":
        """A video from a file or from uint8 pixels [F, H, W, 3] shown at `fps`."""
        if isinstance(source, np.ndarray):
            return cls("video", pixels=source, fps=fps)
        return cls("video", _path("video", source), fps=fps)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture or clip to make. None stands for the default of the task or the model (MODEL.md section 2).

    Raises InputError for a value out of range and UsageError for values that contradict each other.
    """

    prompt: str
    task: str | None = None
    """One of `TASKS`; None infers it from the references, frames and size."""
    references: tuple[Reference, ...] = ()
    """Up to nine images and one video. Images keep their order; when editing, the last one is edited."""
    base_image: bool = False
    """Edit the last of several images, using the others as references."""
    size: Size | None = None
    """Width and height of the output in pixels; only for tasks whose references do not decide it."""
    frames: int | None = None
    """Frames of the output, 4k + 1; with a video reference, the most of its frames to use."""
    steps: int | None = None
    seed: int | None = None
    guidance: float | None = None
    """Text guidance scale; 1 or less turns it off, and the model's negative prompt with it."""
    image_guidance: float = 1.0
    """Image guidance scale; 1 is off, up to 3 is useful. Above 1 it needs images and text guidance above 1."""
    negative: str | None = None
    """Negative prompt; unless empty it needs text guidance above 1."""
    spatial_tiling: bool = False
    """Encode and decode large frames in tiles: less memory, slower, slightly different near the seams."""
    sample_posterior: bool = False
    """Sample the references' latents from their posterior (seeded) instead of taking its mode."""

    def __post_init__(self) -> None:
        check_prompt("prompt", self.prompt)
        if self.negative is not None:
            check_prompt("negative prompt", self.negative)
        if not isinstance(self.references, tuple) or not all(isinstance(r, Reference) for r in self.references):
            raise InputError("references must be a tuple of Reference, made with Reference.image and Reference.video")
        for name in ("base_image", "spatial_tiling", "sample_posterior"):
            if not isinstance(value := getattr(self, name), bool | np.bool_):
                raise InputError(f"{name} is {value!r}; it must be True or False")
            object.__setattr__(self, name, bool(value))
        for name, low, high in (("frames", 1, MAX_FRAMES), ("steps", 1, MAX_STEPS), ("seed", 0, MAX_SEED)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _whole(name, value, low, high))
        if self.frames is not None and (self.frames - 1) % FRAME_STEP:
            below = (self.frames - 1) // FRAME_STEP * FRAME_STEP + 1
            raise InputError(f"frames is {self.frames}; it must be 1, 5, 9, ...: take {below} or {below + FRAME_STEP}")
        if self.size is not None:
            if not isinstance(self.size, tuple) or len(self.size) != 2:
                raise InputError(f"size is {self.size!r}; give (width, height) in pixels")
            width, height = self.size
            size = _whole("width", width, 1, MAX_SIDE), _whole("height", height, 1, MAX_SIDE)
            object.__setattr__(self, "size", size)
        object.__setattr__(self, "image_guidance", _real("image guidance", self.image_guidance, 1.0, MAX_GUIDANCE))
        if self.guidance is not None:
            object.__setattr__(self, "guidance", _real("guidance", self.guidance, 0.0, MAX_GUIDANCE))
            self.check_guidance(self.guidance)
        self._check_references()

    def check_guidance(self, guidance: float) -> None:
        """Raise UsageError for options that have no effect at this text guidance scale (MODEL.md section 5)."""
        if guidance > 1:
            return
        if self.image_guidance > 1:
            raise UsageError(
                f"image guidance {self.image_guidance} with guidance {guidance}: image guidance above 1 needs guidance "
                "above 1; raise guidance or leave image guidance at 1"
            )
        if self.negative:
            raise UsageError(
                f"a negative prompt with guidance {guidance}: it is used with guidance above 1 only; raise guidance or "
                "leave the negative prompt out"
            )

    def _check_references(self) -> None:
        images, videos = len(self.images), len(self.references) - len(self.images)
        if videos > 1:
            raise InputError(f"{videos} video references; at most one is legal")
        if images > MAX_IMAGES:
            raise InputError(f"{images} image references; at most {MAX_IMAGES} are legal")
        if self.base_image and images < 2:
            raise UsageError(
                f"base image with {images} image references; it needs at least two: what to edit with, then the image "
                "to edit. With one image leave it out: that image is edited anyway"
            )
        if self.image_guidance > 1 and not images:
            raise UsageError(
                f"image guidance {self.image_guidance} without an image reference; it weighs images: leave it at 1"
            )
        if self.task is not None:
            check_task(self.task, images, bool(videos), self.frames)

    @property
    def images(self) -> tuple[Reference, ...]:
        """The image references in order."""
        return tuple(r for r in self.references if r.kind == "image")

    @property
    def video(self) -> Reference | None:
        """The video reference, if any."""
        return next((r for r in self.references if r.kind == "video"), None)

    @property
    def resolved_task(self) -> str:
        """The task, given or inferred; `clone` becomes `tiv2v`."""
        if self.task is not None:
            return "tiv2v" if self.task == "clone" else self.task
        return infer_task(len(self.images), self.video is not None, self.frames, self.size)


def check_prompt(what: str, text: str) -> None:
    """Raise InputError for a prompt that is not a string, is too long or is not valid Unicode; empty is legal."""
    if not isinstance(text, str):
        raise InputError(f"{what} is {type(text).__name__}; give text")
    if len(text) > MAX_PROMPT:
        raise InputError(f"{what} has {len(text)} characters; at most {MAX_PROMPT} are legal: shorten it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{what} is not valid Unicode at character {error.start}; pass UTF-8 text") from error


def _whole(name: str, value: object, low: int, high: int) -> int:
    # bool counts as a number in Python, but a flag given where a number belongs is a mistake.
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise InputError(f"{name} is {value!r}; it must be a whole number from {low} to {high}")
    return int(value)


def _real(name: str, value: object, low: float, high: float) -> float:
    number: Any = value if isinstance(value, Real) and not isinstance(value, bool) else None
    if number is None or not low <= number <= high:
        raise InputError(f"{name} is {value!r}; it must be a number from {low:g} to {high:g}")
    return float(number)


def _path(kind: str, source: object) -> Path:
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else source
    if not isinstance(name, str):
        shape, more = ("[H, W, 3]", ", or a picture of Pillow's") if kind == "image" else ("[F, H, W, 3]", "")
        raise InputError(
            f"a reference {kind} is {type(name).__name__}; give a path or a numpy array of uint8 {shape} in RGB{more}"
        )
    return Path(name)
