"""A request's references as pixels: read once, cut to the sizes the model wants; knows files through `media` only.

Two views of a reference are needed: what the autoencoder encodes, and what the vision-language model looks at (spec
sections 2 and 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vino_rt import media
from vino_rt.errors import InputError
from vino_rt.media_frames import scale_frames
from vino_rt.model_settings import ModelSettings
from vino_rt.models.vino.prepare import (
    MAX_ASPECT,
    crop_to_unit,
    frame_count,
    letterbox,
    letterbox_grid,
    video_size,
    vlm_frame_indices,
)
from vino_rt.request import Pixels, Reference, Request
from vino_rt.settings import SourceSizes


@dataclass(frozen=True, eq=False)
class Sources:
    """References of one request, uint8 RGB."""

    sizes: SourceSizes
    images: tuple[Pixels, ...]
    """Letterboxed [H, W, 3], in the request's order; both views."""
    clip: Pixels | None
    """[F, H, W, 3]: first frames, scaled and cropped, for the autoencoder."""
    glimpses: Pixels | None
    """[8, H, W, 3]: frames spread over the whole video at its own size, for the vision-language model."""


def load_sources(request: Request, defaults: ModelSettings) -> Sources:
    """Read and prepare every reference. Raises MediaError or InputError naming the one that cannot be used."""
    images, sizes = [], []
    for reference in request.images:
        pixels = _image(reference)
        height, width = pixels.shape[:2]
        sizes.append((width, height))
        box = letterbox_grid(width, height, defaults.area, defaults.unit)
        # Refused here and not by the vision tower: until then the autoencoder would have been at it for a minute.
        if max(box.width, box.height) > MAX_ASPECT * min(box.width, box.height):
            name = reference.path or "an image in memory"
            raise InputError(
                f"{name}: {width}x{height} becomes {box.width}x{box.height}; at most {MAX_ASPECT}:1 is legal: crop it"
            )
        images.append(letterbox(pixels, box))
    if request.video is None:
        return Sources(SourceSizes(images=tuple(sizes)), tuple(images), None, None)
    clips = _video(request.video, request.frames or defaults.default_frames, defaults.area)
    info = clips.info
    found = SourceSizes(tuple(sizes), (info.width, info.height), info.frames, info.fps)
    frames = clips.head[: frame_count(request.frames or defaults.default_frames, info.frames)]
    return Sources(found, tuple(images), crop_to_unit(frames, defaults.unit), clips.picked)


def _image(reference: Reference) -> Pixels:
    if reference.pixels is not None:
        return reference.pixels
    assert reference.path is not None
    return media.read_image(reference.path)


def _video(reference: Reference, first: int, area: int) -> media.VideoClips:
    def size(width: int, height: int) -> tuple[int, int]:
        scaled_height, scaled_width = video_size(width, height, area)
        return scaled_width, scaled_height

    def picks(frames: int) -> Sequence[int]:
        return vlm_frame_indices(frames)

    if reference.path is not None:
        return media.read_video(reference.path, first=first, size=size, picks=picks)
    assert reference.pixels is not None
    frames, height, width = reference.pixels.shape[:3]
    info = media.VideoInfo(width, height, frames, reference.fps)
    head = scale_frames(reference.pixels[:first], size(width, height))
    return media.VideoClips(info, head, np.ascontiguousarray(reference.pixels[list(picks(frames))]))
