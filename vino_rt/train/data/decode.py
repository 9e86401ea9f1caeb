"""A record to a `Sample`: files decoded, scaled and cropped to the record's bucket.

The target and the reference that decides its size are cut by the same window and scaled by the same filter, so that an
edit pair stays aligned to the pixel and nothing can be learned from the difference of two filters: Lanczos for
pictures, for clips the filter of the runtime's reader. That reference is cropped and not letterboxed: what the runtime
makes of a picture of exactly the bucket's shape, and no white bars to learn. Other image references are letterboxed as
the runtime does. Clips keep every frame from their first on, also as the runtime does.
"""

import itertools
import math

import numpy as np
from PIL import Image

from vino_rt import media, media_video
from vino_rt.errors import MediaError
from vino_rt.media_frames import DisplayTransform, FrameScaler
from vino_rt.models.vino.prepare import letterbox, vlm_frame_indices
from vino_rt.request import Pixels
from vino_rt.task_rules import TASKS, Size
from vino_rt.train.data.assemble import Part, Record, reference_box
from vino_rt.train.data.blob import as_path
from vino_rt.train.data.buckets import Bucket, Sizing
from vino_rt.train.data.records import caption
from vino_rt.train.sample import Sample


def load_sample(record: Record, rng: np.random.Generator, sizing: Sizing, long_share: float) -> Sample:
    """Decode a record; `rng` draws its caption (see `records.caption`), everything else is fixed.

    Raises InputError (MediaError for files) naming what cannot be decoded, or has fewer frames than its header said.
    """
    text = caption(record.captions, rng, long_share)
    bucket = record.bucket
    images = [_picture(part) for part in record.images]
    boxes = [reference_box(image.shape[1], image.shape[0], sizing.area, sizing.unit) for image in images]
    cut = [letterbox(image, box) for image, box in zip(images, boxes, strict=True)]
    if TASKS[record.task].size_from == "image":
        cut[-1] = fit_picture(images[-1], bucket.width, bucket.height)
    video = vlm_frames = None
    if record.video is not None:
        video, vlm_frames = _reference_clip(record.video, bucket)
    return Sample(record.key, record.task, text, tuple(cut), video, vlm_frames, _target(record.target, bucket))


def fit_picture(pixels: Pixels, width: int, height: int) -> Pixels:
    """Scale (Lanczos) the largest centred window of the wanted shape: [H, W, 3] -> [height, width, 3]."""
    rows, columns = pixels.shape[:2]
    scale = max(width / columns, height / rows)
    left, top = (columns - width / scale) / 2, (rows - height / scale) / 2
    # Rounding may put the window a hair outside, which Pillow refuses.
    box = (max(0.0, left), max(0.0, top), min(columns, columns - left), min(rows, rows - top))
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS, box=box))


def cover_size(width: int, height: int, bucket: Bucket) -> Size:
    """Least (width, height) of the shape width x height that covers the bucket."""
    scale = max(bucket.width / width, bucket.height / height)
    # A side that fits exactly may come out a hair above a whole number, or below it.
    columns, rows = (math.ceil(side * scale - 1e-6) for side in (width, height))
    return max(bucket.width, columns), max(bucket.height, rows)


def crop_centre(frames: Pixels, bucket: Bucket) -> Pixels:
    """The centre of [F, H, W, 3] in the bucket's size, copied."""
    top, left = (frames.shape[1] - bucket.height) // 2, (frames.shape[2] - bucket.width) // 2
    return np.ascontiguousarray(frames[:, top : top + bucket.height, left : left + bucket.width])


def _picture(part: Part) -> Pixels:
    with as_path(part.blob) as path:
        return media.read_image(path)


def _target(part: Part, bucket: Bucket) -> Pixels:
    if not part.header.clip:
        return fit_picture(_picture(part), bucket.width, bucket.height)[None]
    frames = []
    with as_path(part.blob) as path, media_video.open_video(path) as (container, stream):
        scale = None
        # Not `read_video`: it decodes the whole file, of which a long clip's first frames are a small part.
        for frame in itertools.islice(media_video.decode_video(path, container, stream), bucket.frames):
            if scale is None:
                transform = DisplayTransform.of(frame)
                scale = FrameScaler(cover_size(*transform.size(frame.width, frame.height), bucket), transform)
            frames.append(crop_centre(scale(frame)[None], bucket))
    _check_frames(part, len(frames), bucket)
    return np.concatenate(frames)


def _reference_clip(part: Part, bucket: Bucket) -> tuple[Pixels, Pixels]:
    with as_path(part.blob) as path:
        clips = media_video.read_video(
            path,
            first=bucket.frames,
            size=lambda width, height: cover_size(width, height, bucket),
            picks=vlm_frame_indices,
        )
    _check_frames(part, len(clips.head), bucket)
    return crop_centre(clips.head, bucket), clips.picked


def _check_frames(part: Part, found: int, bucket: Bucket) -> None:
    if found < bucket.frames:
        raise MediaError(
            f"{part.blob.name}: has {found} frames, its header promised {part.header.frames} and its bucket takes "
            f"{bucket.frames}; re-encode it"
        )
