"""Frames to files: PNG and JPEG for one frame, MP4 (H.264) and GIF for more, with the settings inside the file.

A file is encoded in memory, written under a hidden name beside its target and renamed, so the target is either complete
or untouched. The same frames and settings give the same bytes. Does not know where frames or settings come from.
"""

import errno
import io
import json
import math
import os
import secrets
import shlex
import shutil
import struct
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import GifImagePlugin, Image, PngImagePlugin

from vino_rt.errors import InputError, MediaError, OutputError, UsageError
from vino_rt.media import open_image, open_media, picture_frames
from vino_rt.media_frames import require_av
from vino_rt.request import MAX_FPS

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
VIDEO_SUFFIXES = (".mp4", ".gif")
MAX_GIF_FPS = 50.0
"""GIF stores delays in hundredths of a second, and players slow down delays below two of them."""

JPEG_QUALITY = 95
H264_CRF = 17
OVERWRITE = "--overwrite; in a program: overwrite=True"
_BT709 = 1
_COMMENT = "Comment"
_JPEG_SEGMENT = 65533
_JPEG_SIDE = 65500
_GIF_PALETTE_FRAMES = 16


def check_output(path: str | os.PathLike[str], *, overwrite: bool, frames: int | None = None) -> None:
    """Check, before any work, that `write_media` could write this path. Nothing is written.

    frames: number of frames if known; the suffix must then be one for a picture (1) or a clip (more).
    Raises OutputError (the path exists or is a directory, its parent is missing or not writable, the suffix is unknown)
    or UsageError (the suffix does not fit the number of frames).
    """
    target = Path(path)
    try:
        if "\0" in os.fspath(path):
            raise OutputError(f"{os.fspath(path)!r}: a path cannot hold a zero byte")
        if target.is_dir():
            raise OutputError(f"{target}: is a directory; name a file in it, such as {target / 'out.png'}")
        _check_suffix(target, frames)
        if os.path.lexists(target) and not overwrite:
            raise OutputError(f"{target}: exists already; choose another name or allow to overwrite it ({OVERWRITE})")
        if target.exists() and not target.is_file():
            raise OutputError(f"{target}: is not a regular file; choose another name")
        parent = Path(os.path.realpath(target)).parent
        if not parent.is_dir():
            mkdir = shlex.join(["mkdir", "-p", str(parent)])
            raise OutputError(f"{target}: there is no directory {parent}; create it first ({mkdir})")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise OutputError(f"{target}: the directory {parent} is not writable; choose another one")
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror}); choose another name") from error


def write_media(
    frames: np.ndarray, path: str | os.PathLike[str], *, fps: float, metadata: Mapping[str, str], overwrite: bool
) -> None:
    """Write uint8 RGB frames [F, H, W, 3] to a file whose suffix chooses the format.

    F = 1: .png, .jpg, .jpeg (`fps` is unused). F > 1: .mp4 (even H and W; H.264, BT.709, crf 17) or .gif (one palette,
    endless loop, delays rounded to hundredths of a second without drift). `read_metadata` reads `metadata` back.

    Raises InputError for frames of another type or shape, an fps outside (0, 240] (GIF: 50) or an odd size as MP4,
    UsageError and OutputError as `check_output`, and OutputError if writing fails, such as on a full disk. After any
    failure, Ctrl-C included, neither a partial nor a temporary file is left.
    """
    target = Path(path)
    _check_frames(frames)
    check_output(target, overwrite=overwrite, frames=len(frames))
    comment = json.dumps(dict(metadata), sort_keys=True)
    _publish(target, _encode(frames, target, fps, comment), overwrite)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read back the settings written by `write_media`; {} for a file without them. Raises MediaError if unreadable."""
    name = Path(path)
    with open_media(name) as handle:
        if handle.read(8)[4:] == b"ftyp":
            comment: str | bytes = _mp4_comment(name, handle)
        elif not picture_frames(name):
            kinds = ", ".join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)
            raise MediaError(f"{name}: no file of its kind holds settings; name one that vino-rt wrote ({kinds})")
        else:
            handle.seek(0)
            with open_image(name, handle, moving=True) as image:
                # JPEG holds long comments in several segments, of which Pillow's `info` keeps the last.
                parts = [data for marker, data in getattr(image, "applist", ()) if marker == "COM"]
                comment = b"".join(parts) or image.info.get(_COMMENT) or image.info.get("comment", "")
    try:
        settings = json.loads(comment)
    except (ValueError, RecursionError):
        return {}
    if isinstance(settings, dict) and all(isinstance(value, str) for value in settings.values()):
        return settings
    return {}


def _mp4_comment(path: Path, handle: BinaryIO) -> str:
    require_av()
    import av

    handle.seek(0)
    options = {"format_whitelist": "mov,mp4"}
    try:
        with av.open(handle, "r", options=options, metadata_errors="replace") as container:
            return container.metadata.get("comment", "")
    except av.FFmpegError as error:
        raise MediaError(f"{path}: is damaged or cut off ({error.strerror}); copy it again") from error


def _check_suffix(target: Path, frames: int | None) -> None:
    suffix = target.suffix.lower()
    if suffix not in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
        raise OutputError(
            f"{target}: the suffix {suffix!r} names no kind of file written here; "
            f"use {', '.join(IMAGE_SUFFIXES)} for a picture, {', '.join(VIDEO_SUFFIXES)} for a clip"
        )
    legal = IMAGE_SUFFIXES if frames == 1 else VIDEO_SUFFIXES
    if frames is not None and suffix not in legal:
        what = "one frame is a picture" if frames == 1 else f"{frames} frames are a clip"
        raise UsageError(f"{target}: {what} and needs one of {', '.join(legal)}; change the suffix or the frames")


def _check_frames(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise InputError(f"frames are {frames.dtype} {list(frames.shape)}; needed are uint8 [F, H, W, 3], none 0")


def _check_fps(fps: float, limit: float, suffix: str) -> None:
    if not (math.isfinite(fps) and 0 < fps <= limit):
        raise InputError(f"{fps} frames per second; {suffix} needs a number above 0 and at most {limit:g}")


def _encode(frames: np.ndarray, target: Path, fps: float, comment: str) -> bytes:
    match target.suffix.lower():
        case ".png":
            return _png(frames[0], comment)
        case ".mp4":
            return _mp4(frames, target, fps, comment)
        case ".gif":
            return _gif(frames, fps, comment)
        case _:
            return _jpeg(frames[0], comment)


def _png(frame: np.ndarray, comment: str) -> bytes:
    texts = PngImagePlugin.PngInfo()
    texts.add_text(_COMMENT, comment)
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG", pnginfo=texts)
    return buffer.getvalue()


def _jpeg(frame: np.ndarray, comment: str) -> bytes:
    if max(frame.shape) > _JPEG_SIDE:
        raise InputError(
            f"JPEG holds at most {_JPEG_SIDE} pixels a side, not {frame.shape[1]}x{frame.shape[0]}; use .png"
        )
    text = comment.encode("ascii")
    pieces = [text[start : start + _JPEG_SEGMENT] for start in range(0, len(text), _JPEG_SEGMENT)]
    segments = b"".join(b"\xff\xfe" + struct.pack(">H", len(piece) + 2) + piece for piece in pieces)
    buffer = io.BytesIO()
    # Full chroma resolution: a picture edited again should not lose colour to the container.
    Image.fromarray(frame).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0, extra=segments)
    return buffer.getvalue()


def _mp4(frames: np.ndarray, target: Path, fps: float, comment: str) -> bytes:
    _check_fps(fps, MAX_FPS, ".mp4")
    height, width = frames.shape[1:3]
    if width % 2 or height % 2:
        raise InputError(f"MP4 needs even sizes, these frames are {width}x{height}; use .gif or another size")
    require_av()
    import av

    try:
        return _h264(frames, Fraction(fps).limit_denominator(1001), comment)
    except av.FFmpegError as error:
        told = f"{target}: H.264 refuses these frames ({error.strerror}); use .gif or another size"
        raise OutputError(told) from error


def _h264(frames: np.ndarray, rate: Fraction, comment: str) -> bytes:
    import av
    from av.video.reformatter import Colorspace, Interpolation

    height, width = frames.shape[1:3]
    buffer = io.BytesIO()
    # To put the index in front, the muxer reads back what it has written.
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(buffer, "w", "mp4", options=options, io_open=lambda *_: io.BytesIO(buffer.getvalue())) as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(H264_CRF), "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        # The bytes depend on the number of threads, so it may not depend on the machine.
        context.thread_count = 1
        for index, pixels in enumerate(frames):
            source = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = source.reformat(
                format="yuv420p",
                dst_colorspace=int(Colorspace.ITU709),
                interpolation=int(Interpolation.BICUBIC),
                threads=1,
            )
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _gif(frames: np.ndarray, fps: float, comment: str) -> bytes:
    """Encode a GIF block by block: Pillow's own writer drops a frame that equals the one before it."""
    _check_fps(fps, MAX_GIF_FPS, ".gif")
    count, height, width = frames.shape[:3]
    if max(width, height) > 65535:
        raise InputError(f"GIF holds at most 65535x65535, these frames are {width}x{height}")
    # One palette for all frames, from some of them side by side: a palette for each would flicker.
    sample = frames[np.linspace(0, count - 1, min(count, _GIF_PALETTE_FRAMES)).round().astype(int)]
    palette = Image.fromarray(sample.reshape(-1, width, 3)).quantize(256, Image.Quantize.MEDIANCUT)
    colours = bytes(palette.getpalette() or ()).ljust(768, b"\0")
    text = comment.encode("ascii")
    blocks = [
        b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF7, 0, 0) + colours,
        b"\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0",
        b"\x21\xfe" + b"".join(bytes([len(t := text[i : i + 255])]) + t for i in range(0, len(text), 255)) + b"\0",
    ]
    for index, pixels in enumerate(frames):
        ticks = round((index + 1) * 100 / fps) - round(index * 100 / fps)
        picture = Image.fromarray(np.ascontiguousarray(pixels)).quantize(palette=palette)
        blocks.extend(GifImagePlugin.getdata(picture, duration=ticks * 10))
    return b"".join([*blocks, b";"])


def _publish(target: Path, data: bytes, overwrite: bool) -> None:
    # Resolve links: the rename would otherwise replace the link instead of the file it points to.
    final = Path(os.path.realpath(target))
    temporary = final.with_name(f".vino-{secrets.token_hex(6)}{final.suffix}")
    try:
        _write_synced(temporary, data)
        if overwrite:
            os.replace(temporary, final)
        else:
            _rename_new(temporary, final)
    except FileExistsError as error:
        raise OutputError(f"{target}: appeared meanwhile and is left as it is; choose another name") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            temporary.unlink(missing_ok=True)
            free = shutil.disk_usage(final.parent).free
            reason = f"no room: {len(data)} bytes needed, {free} free on its disk; make room or choose another place"
        else:
            reason = f"cannot be written ({error.strerror or error}); choose another place"
        raise OutputError(f"{target}: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_synced(path: Path, data: bytes) -> None:
    # Not tempfile: its files are private to the user, these follow the umask like any other output.
    with open(path, "xb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def _rename_new(temporary: Path, final: Path) -> None:
    """Rename without replacing a file that appeared since the check. Raises FileExistsError."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        raise
    except OSError:
        # File systems without hard links (FAT, some network ones): reserve the name, then rename over the reservation.
        os.close(os.open(final, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        try:
            os.replace(temporary, final)
        finally:
            if temporary.exists():
                final.unlink()
