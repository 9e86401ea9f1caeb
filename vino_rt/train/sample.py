"""What a training source hands to an objective: the pixels and words of one example, at the sizes the model takes.

Both the procedural world and data from disk make these. It knows no tensors, no tokens and no files.
"""

from dataclasses import dataclass

from vino_rt.request import Pixels


@dataclass(frozen=True, eq=False)
class Sample:
    """One example, uint8 RGB; every side is a multiple of the model's unit, a clip has 4k + 1 frames."""

    key: str
    """Names the example in messages."""
    task: str
    """One of `vino_rt.request.TASKS`."""
    caption: str
    images: tuple[Pixels, ...]
    """[H, W, 3] each, letterboxed, in the order the prompt counts them."""
    video: Pixels | None
    """[F, H, W, 3]: the reference clip as the autoencoder sees it, scaled and cropped."""
    vlm_frames: Pixels | None
    """[8, H, W, 3]: frames spread over the whole reference clip, for the vision-language model."""
    target: Pixels
    """[F, H, W, 3]: what the model should make; F is 1 for a picture."""


@dataclass(frozen=True)
class Fault:
    """An example that could not be decoded and was replaced by another."""

    key: str
    message: str


@dataclass(frozen=True, eq=False)
class Loaded:
    """The samples of one batch, and what broke while they were made."""

    samples: tuple[Sample, ...]
    faults: tuple[Fault, ...] = ()
