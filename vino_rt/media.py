"""Picture files to uint8 RGB arrays, through Pillow.

Knows formats, orientation and alpha, and enforces size limits before and while it decodes. Does not know what the
pixels are for. Videos are read by `media_video`; both kinds are written by `media_write`.
"""

import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, ImageOps

from vino_rt.errors import MediaError, reason

MAX_IMAGE_PIXELS = 64_000_000  # decoding a picture of this size with alpha takes about 1 GB

IMAGEFORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
FORMATS = ", ".join(IMAGEFORMATS)
_ANIMATED = ("PNG", "WEBP", "GIF", "AVIF")  # further pictures in JPEG and TIFF are previews and pages
_BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, KeyError, struct.error, zlib.error)


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read one picture as uint8 [H, W, 3] RGB.

    Applies the EXIF orientation, composites alpha on white, scales 16-bit grey to 8 bits, and takes the first of
    several pages. Colour profiles are ignored, as in the released code (MODEL.md section 2).
    Raises MediaError for a file that is missing, empty, damaged, no picture, an animation, or above MAX_IMAGE_PIXELS.
    """
    name = Path(path)
    with open_media(name) as handle, open_image(name, handle) as image:
        try:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _image_rgb(image, name)
        except _BROKEN_IMAGE as error:
            raise MediaError(f"{name}: the picture is damaged or cut off ({error}); save it again and retry") from error


def picture_pixels(picture: Image.Image) -> np.ndarray:
    """Pixels of an opened picture, converted as in `read_image`; an animation's current frame. Raises MediaError."""
    name = Path("the image in memory")
    try:
        return _image_rgb(ImageOps.exif_transpose(picture), name)
    except _BROKEN_IMAGE as error:
        raise MediaError(f"{name}: the picture is damaged or cut off ({error}); open it again and retry") from error


@contextmanager
def open_media(path: Path) -> Iterator[BinaryIO]:
    """Open a regular, non-empty file for reading; anything else raises MediaError naming the path and the reason."""
    with ExitStack() as stack:
        try:
            status = os.stat(path)
            regular = stat.S_ISREG(status.st_mode)
            # Checked before opening: a pipe or a device would block or never end.
            if not regular or status.st_size == 0:
                kind = "a directory" if stat.S_ISDIR(status.st_mode) else "empty" if regular else "not a regular file"
                raise MediaError(f"{path}: is {kind}; name a picture or video file")
            handle = stack.enter_context(open(path, "rb"))
        except (OSError, ValueError) as error:
            raise MediaError(
                f"{path}: cannot be opened ({reason(error)}); check the spelling and who may read it"
            ) from error
        yield handle


@contextmanager
def open_image(path: Path, handle: BinaryIO, *, moving: bool = False) -> Iterator[ImageFile.ImageFile]:
    """Open a picture identified by its first bytes and check the size in its header, before decoding.

    Raises MediaError for an unknown or damaged file, too many pixels and, unless `moving`, an animation.
    """
    if (factory := _image_factory(handle)) is None:
        raise MediaError(f"{path}: is not a picture this program reads ({FORMATS}); name one, or convert it to one")
    try:
        image = factory(handle, os.fspath(path))
        frames = _frame_count(image)
    except _BROKEN_IMAGE as error:
        raise MediaError(f"{path}: its header is damaged or cut off ({error}); save it again and retry") from error
    check_pixels(path, "picture", image.width, image.height, MAX_IMAGE_PIXELS)
    with image:
        if frames > 1 and not moving:
            way = "save it as GIF or MP4 and pass that" if image.format == "WEBP" else "pass it"
            way = f"{way} as a video (--video), or save the frame you mean as a picture"
            raise MediaError(f"{path}: is an animation of {frames} frames; {way}")
        yield image


def picture_frames(path: Path) -> int:
    """Number of frames: 1 for a picture, more for an animation, 0 for a file that is no picture. Raises MediaError."""
    with open_media(path) as handle:
        if _image_factory(handle) is None:
            return 0
        with open_image(path, handle, moving=True) as image:
            return _frame_count(image)


def _image_factory(handle: BinaryIO) -> Callable[..., ImageFile.ImageFile] | None:
    # Not Image.open: its size limit is a process-wide setting, and it warns or raises without naming the size.
    Image.init()
    prefix = handle.read(16)
    handle.seek(0)
    known = (Image.OPEN[name] for name in IMAGEFORMATS if name in Image.OPEN)
    return next((factory for factory, accept in known if accept is None or accept(prefix) is True), None)


def _frame_count(image: Image.Image) -> int:
    return int(getattr(image, "n_frames", 1)) if image.format in _ANIMATED else 1


def check_pixels(path: Path | str, what: str, width: int, height: int, limit: int) -> None:
    """Raise MediaError when width x height is above the limit; `what` names the thing in the message."""
    if width * height > limit:
        size = f"{width}x{height} = {width * height / 1e6:.0f} megapixels"
        raise MediaError(f"{path}: the {what} is {size}, the limit is {limit / 1e6:.0f}; scale it down first")


def _image_rgb(image: Image.Image, path: Path) -> np.ndarray:
    if image.mode == "F":
        raise MediaError(f"{path}: floating-point pixels have no defined white; convert it to 8 or 16 bits per channel")
    if image.mode.startswith("I"):
        # Pillow clips instead of scaling when it converts these.
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise MediaError(f"{path}: grey values {wide.min()}..{wide.max()} outside 0..65535; convert it to 16 bits")
        return np.repeat(((wide * 255 + 32767) // 65535).astype(np.uint8)[..., None], 3, axis=2)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.array(image.convert("RGB"))
