"""A file of a data set, by itself or inside a tar: where its bytes lie, and what its header says about its pixels.

The readers of `vino_rt.media` want a path; a member of a tar gets one for as long as it is read, in memory. Nothing is
ever unpacked to disk. It knows no records and no buckets.
"""

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vino_rt import media, media_video
from vino_rt.errors import MediaError
from vino_rt.media_frames import DisplayTransform
from vino_rt.train.data.grouping import CLIPS, split_name
from vino_rt.train.data.records import LARGE, MAX_RECORD_BYTES, MEDIA, Unusable

_HEADER_BYTES = 2**16
_CHUNK = 2**20
_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
_BROKEN_EXIF = (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error)


@dataclass(frozen=True)
class Blob:
    """Bytes of one file: all of `path`, or `size` bytes of it from `offset`; `name` is for messages."""

    path: str
    name: str
    size: int
    offset: int | None = None


@dataclass(frozen=True)
class Header:
    """Displayed size (orientation applied) and frames of a media file, as far as its header tells; 1 for a picture."""

    width: int
    height: int
    frames: int
    clip: bool
    """Whether it is read as a video, whatever its number of frames."""


def read_small(blob: Blob) -> bytes:
    """All bytes of a record or a caption. Raises Unusable when it is too large or cannot be read."""
    if blob.size > MAX_RECORD_BYTES:
        raise Unusable(LARGE, f"{blob.name}: {blob.size} bytes, a record may have {MAX_RECORD_BYTES}")
    return _read(blob, blob.size)


@contextmanager
def as_path(blob: Blob) -> Iterator[Path]:
    """A path that the blob alone can be read under while the block runs; MediaErrors raised within name the blob."""
    path = Path(blob.path)
    try:
        if blob.offset is None:
            yield path
            return
        # Memory and not a temporary file: a killed process leaves nothing behind.
        handle = os.memfd_create("sample", os.MFD_CLOEXEC)
        try:
            path = Path(f"/proc/self/fd/{handle}")
            _copy(blob, handle)
            yield path
        finally:
            os.close(handle)
    except MediaError as error:
        raise MediaError(f"{blob.name}: {str(error).removeprefix(f'{path}: ')}") from error


def read_header(blob: Blob, max_bytes: int) -> Header:
    """Measure a picture or clip by its header; of a clip the first frame is decoded, for its rotation.

    Raises Unusable (LARGE or MEDIA). A clip inside a tar is copied to memory for this: FFmpeg reads files only.
    """
    if blob.size > max_bytes:
        raise Unusable(LARGE, f"{blob.name}: {blob.size} bytes, the limit is {max_bytes}")
    try:
        suffix = split_name(blob.name)[2]
        if suffix in CLIPS and not (suffix == "gif" and _is_still(blob)):
            with as_path(blob) as path:
                return _clip(path)
        with as_path(Blob(blob.path, blob.name, blob.size)) as path:
            return _picture(path, blob)
    except MediaError as error:
        raise Unusable(MEDIA, str(error)) from error


def _read(blob: Blob, size: int) -> bytes:
    try:
        with open(blob.path, "rb") as file:
            file.seek(blob.offset or 0)
            return file.read(min(size, blob.size))
    except OSError as error:
        raise Unusable(MEDIA, f"{blob.name}: cannot be read ({error.strerror})") from error


def _copy(blob: Blob, handle: int) -> None:
    assert blob.offset is not None
    left = blob.size
    try:
        with open(blob.path, "rb") as file, open(handle, "wb", closefd=False) as copy:
            file.seek(blob.offset)
            while left and (data := file.read(min(left, _CHUNK))):
                copy.write(data)
                left -= len(data)
    except OSError as error:
        raise MediaError(f"{blob.path}: cannot be read ({error.strerror}); is it still there?") from error
    if left:
        raise MediaError(f"{blob.path}: ends {left} bytes early; it changed since it was listed")


def _picture(path: Path, blob: Blob) -> Header:
    """Measure a picture by as little of it as its format allows."""
    if blob.offset is None:
        with media.open_media(path) as handle, media.open_image(path, handle) as image:
            return _measured(path, image)
    try:
        with media.open_image(path, io.BytesIO(_read(blob, _HEADER_BYTES))) as image:
            return _measured(path, image)
    except MediaError:
        if blob.size <= _HEADER_BYTES:
            raise
    # A long preview or colour profile before the size, or a format that is only opened whole.
    with media.open_image(path, io.BytesIO(_read(blob, blob.size))) as image:
        return _measured(path, image)


def _measured(path: Path, image: Image.Image) -> Header:
    width, height = image.size
    # A PNG's orientation may lie behind its pixels, where looking for it decodes them; a TIFF's is in its size.
    looks = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
    try:
        sideways = looks and image.getexif().get(_ORIENTATION) in _SIDEWAYS
    except _BROKEN_EXIF as error:
        raise MediaError(f"{path}: its EXIF data is damaged ({error}); save it again") from error
    return Header(height, width, 1, False) if sideways else Header(width, height, 1, False)


def _is_still(blob: Blob) -> bool:
    with as_path(blob) as path:
        return media.picture_frames(path) == 1


def _clip(path: Path) -> Header:
    with media_video.open_video(path) as (container, stream):
        frame = next(container.decode(stream), None)
        if frame is None:
            raise MediaError(f"{path}: not one frame of the video can be decoded; re-encode it")
        width, height = DisplayTransform.of(frame).size(frame.width, frame.height)
        # Matroska and transport streams do not count their frames; decoding will tell whether the guess was right.
        seconds, rate = (container.duration or 0) / 1_000_000, float(stream.average_rate or 0)
        return Header(width, height, max(1, stream.frames or round(seconds * rate)), True)
