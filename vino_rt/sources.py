"""A request's references as pixels, read once and fitted to the model's sizes; touches files through `media` only.

A reference has two views: what the autoencoder encodes, and what the vision-language model sees. Source: MODEL.md
sections 2 and 3.
"""

from dataclasses import dataclass

from vino_rt import media, media_video
from vino_rt.media_frames import scale_frames
from vino_rt.model_settings import ModelSettings
from vino_rt.models.vino.prepare import (
    crop_to_unit,
    frame_count,
    letterbox,
    reference_box,
    reference_clip,
    video_size,
    vlm_frame_indices,
    vlm_frames,
)
from vino_rt.request import Pixels, Reference, Request
from vino_rt.settings import SourceSizes, check_frames


@dataclass(frozen=True, eq=False)
class Sources:
    """The references of one request as uint8 RGB pixels."""

    sizes: SourceSizes
    images: tuple[Pixels, ...]
    """Letterboxed images [H, W, 3] in the request's order; both views of an image."""
    clip: Pixels | None
    """First frames of the video [F, H, W, 3], scaled and cropped, for the autoencoder."""
    vlm_frames: Pixels | None
    """Frames spread over the whole video [8, H, W, 3] at its own size, for the vision-language model."""

    @property
    def clips(self) -> tuple[Pixels, ...]:
        """What the autoencoder encodes: every reference as [F, H, W, 3], images first."""
        return (*(image[None] for image in self.images), *(() if self.clip is None else (self.clip,)))


def load_sources(request: Request, defaults: ModelSettings) -> Sources:
    """Read and fit every reference of a request.

    Raises MediaError or InputError naming the reference that cannot be used. A request for more frames than the model
    makes is refused before any file is read, because that many frames of a video would be held in memory.
    """
    check_frames(request, defaults)
    images, sizes = [], []
    for reference in request.images:
        pixels = _image(reference)
        height, width = pixels.shape[:2]
        sizes.append((width, height))
        images.append(letterbox(pixels, reference_box(reference.name, width, height, defaults.area, defaults.unit)))
    if request.video is None:
        return Sources(SourceSizes(images=tuple(sizes)), tuple(images), None, None)
    clips = _video(request.video, request.frames or defaults.default_frames, defaults)
    info = clips.info
    found = SourceSizes(tuple(sizes), (info.width, info.height), info.frames, info.fps)
    frames = clips.head[: frame_count(request.frames or defaults.default_frames, info.frames)]
    return Sources(found, tuple(images), crop_to_unit(frames, defaults.unit), clips.picked)


def _image(reference: Reference) -> Pixels:
    if reference.pixels is not None:
        height, width = reference.pixels.shape[:2]
        media.check_pixels(reference.name, "picture", width, height, media.MAX_IMAGE_PIXELS)
        return reference.pixels
    assert reference.path is not None
    return media.read_image(reference.path)


def _video(reference: Reference, first: int, defaults: ModelSettings) -> media_video.VideoClips:
    def size(width: int, height: int) -> tuple[int, int]:
        # Check the shape here, before any frame is decoded and while the name for the message is known.
        reference_clip(reference.name, width, height, defaults.area, defaults.unit)
        scaled_height, scaled_width = video_size(width, height, defaults.area)
        return scaled_width, scaled_height

    if reference.path is not None:
        return media_video.read_video(reference.path, first=first, size=size, picks=vlm_frame_indices)
    assert reference.pixels is not None
    frames, height, width = reference.pixels.shape[:3]
    media.check_pixels(reference.name, "video", width, height, media_video.MAX_VIDEO_PIXELS)
    info = media_video.VideoInfo(width, height, frames, reference.fps)
    head = scale_frames(reference.pixels[:first], size(width, height))
    return media_video.VideoClips(info, head, vlm_frames(reference.pixels))
