"""Video files to uint8 RGB arrays, through PyAV, which is imported when the first video is opened.

Knows containers, recognises damage, and enforces limits before and while it decodes. Does not know what the frames are
for: the sizes and frames that a model wants are passed in. Videos are written by `media_write`.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vino_rt.errors import MediaError
from vino_rt.media import FORMATS, check_pixels, open_media
from vino_rt.media_frames import DisplayTransform, FrameScaler, require_av

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

MAX_VIDEO_PIXELS = 8192 * 4320  # of one frame
MAX_VIDEO_FRAMES = 18_000  # ten minutes at 30 frames per second
MAX_VIDEO_SECONDS = 3600.0  # by the video's own clock: a slide show has few frames and can still be long
MAX_VIDEO_BYTES = 16 * 1024**3  # of the file: bounds the search for frames in a file that has none

_UNREAD = (b"ftypheic", b"ftypheix", b"WEBP")  # pictures: of the first FFmpeg would read a tile, of the last nothing
# Playlists (hls, concat, dash) and text formats are left out: they would open other files or render any text as video.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,mpegts,mpeg,flv,ogg,asf,wav,mp3,flac"
_DECODE_THREADS = 4


@dataclass(frozen=True)
class VideoInfo:
    """Size after rotation, frames as counted by decoding, and average frames per second if known."""

    width: int
    height: int
    frames: int
    fps: float | None


@dataclass(frozen=True)
class VideoClips:
    """Two views of one video, uint8 RGB in display orientation.

    `head` [min(first, frames), h, w, 3]: the first frames, scaled. `picked` [len(picks), height, width, 3]: chosen
    frames of the whole video at its own size.
    """

    info: VideoInfo
    head: np.ndarray
    picked: np.ndarray


def probe_video(path: str | os.PathLike[str]) -> VideoInfo:
    """Count and measure a video by decoding all of it. Raises MediaError as `read_video` does."""
    return _read_head(Path(path), 0, lambda width, height: (width, height))[0]


def read_video(
    path: str | os.PathLike[str],
    *,
    first: int,
    size: Callable[[int, int], tuple[int, int]],
    picks: Callable[[int], Sequence[int]],
) -> VideoClips:
    """Read the first frames scaled, and chosen frames of the whole file unscaled (MODEL.md sections 2 and 3).

    first: most frames to take from the start, in presentation order and without gaps, whatever their timestamps.
    size: maps (width, height) of the displayed source to the (width, height) that the first frames are scaled to, with
    the filter of the released pipeline's reader. picks: maps the number of frames to the indices of the unscaled
    frames, 0 <= index < frames; an index may repeat.

    Decodes the file twice, so that only the returned frames and the decoder's own are in memory. Applies the rotation
    and mirroring of the file's display matrix and composites alpha on white (VP9's separate alpha layer is dropped).
    Raises MediaError for a file that is missing, empty, damaged, no video, without a decodable frame, above a
    MAX_VIDEO_* limit, or of changing frame size. A truncated file counts as damaged if its index shows that data is
    missing; formats without an index (transport streams, Matroska) are read as the shorter video.
    """
    name = Path(path)
    info, head = _read_head(name, first, size)
    wanted = [int(index) for index in picks(info.frames)]
    assert all(0 <= index < info.frames for index in wanted), f"picks {wanted} outside 0..{info.frames - 1}"
    picked = np.empty((len(wanted), info.height, info.width, 3), np.uint8)
    found = 0
    with open_video(name) as (container, stream):
        for index, frame in zip(
            range(max(wanted, default=-1) + 1), decode_video(name, container, stream), strict=False
        ):
            slots = [slot for slot, wish in enumerate(wanted) if wish == index]
            if slots:
                picked[slots] = FrameScaler((info.width, info.height), DisplayTransform.of(frame))(frame)
                found += len(slots)
    if found < len(wanted):
        raise MediaError(f"{name}: the file changed while it was read; retry when nothing writes to it")
    return VideoClips(info, head, picked)


@contextmanager
def open_video(path: Path) -> Iterator[tuple["InputContainer", "av.VideoStream"]]:
    """Yield the opened file and its best video stream; any FFmpeg error inside the block becomes a MediaError."""
    require_av()
    import av

    options = {"format_whitelist": _CONTAINERS}
    with open_media(path) as handle:
        if (size := os.fstat(handle.fileno()).st_size) > MAX_VIDEO_BYTES:
            raise MediaError(f"{path}: {size} bytes, the limit is {MAX_VIDEO_BYTES}; cut or re-encode the video")
        if any(mark in os.pread(handle.fileno(), 16, 0) for mark in _UNREAD):
            raise MediaError(f"{path}: HEIC and WebP are not read as videos; save it as MP4, GIF, PNG or JPEG")
        try:
            # An open file and not its name: FFmpeg takes names like "http:..." or "concat:..." for other things.
            with av.open(handle, "r", options=options, metadata_errors="replace") as container:
                stream = _video_stream(path, container)
                if (end := max((entry.pos + entry.size for entry in stream.index_entries), default=0)) > size:
                    raise MediaError(f"{path}: is cut off at byte {size} of {end} or more; copy it again")
                yield container, stream
        except av.FFmpegError as error:
            reason = f"{path}: is not a video, or is damaged or cut off ({error.strerror})"
            raise MediaError(f"{reason}; re-encode it or pass a still picture as an image ({FORMATS})") from error


def _video_stream(path: Path, container: "InputContainer") -> "av.VideoStream":
    import av
    from av.stream import Disposition

    stream = container.streams.best("video")
    # The cover picture of a sound file counts as a video stream in FFmpeg.
    if not isinstance(stream, av.VideoStream) or stream.disposition & Disposition.attached_pic:
        kinds = sorted({other.type for other in container.streams} - {"video"})
        raise MediaError(
            f"{path}: holds no video ({', '.join(kinds) or 'no streams'} only), or is cut off; name a whole video"
        )
    seconds = (container.duration or 0) / av.time_base
    if seconds > MAX_VIDEO_SECONDS or stream.frames > MAX_VIDEO_FRAMES:
        raise _too_long(path, f"{seconds:.0f} s and {stream.frames or 'uncounted'} frames long")
    check_pixels(path, "video", stream.codec_context.width, stream.codec_context.height, MAX_VIDEO_PIXELS)
    stream.codec_context.options = {"max_pixels": str(MAX_VIDEO_PIXELS)}
    # With slice threads the H.264 decoder does not mark the frames it had to make up.
    stream.thread_type = "FRAME"
    stream.codec_context.thread_count = _DECODE_THREADS
    return stream


def decode_video(path: Path, container: "InputContainer", stream: "av.VideoStream") -> Iterator["av.VideoFrame"]:
    """Yield all frames in presentation order, each checked for damage and against the limits."""
    count, shape, start = 0, (0, 0), float((stream.start_time or 0) * (stream.time_base or 0))
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise MediaError(f"{path}: is damaged or cut off after frame {count}; copy or re-encode it")
        for frame in packet.decode():
            shape = (frame.width, frame.height) if count == 0 else shape
            if frame.is_corrupt:
                raise MediaError(f"{path}: is damaged at frame {count}; copy or re-encode it")
            if (frame.width, frame.height) != shape:
                raise MediaError(f"{path}: the size changes at frame {count} of the video; re-encode it to one size")
            if count == MAX_VIDEO_FRAMES or (frame.time or 0) - start > MAX_VIDEO_SECONDS:
                raise _too_long(path, f"longer than {count} frames")
            count += 1
            yield frame


def _too_long(path: Path, length: str) -> MediaError:
    limits = f"the limits are {MAX_VIDEO_SECONDS:.0f} s and {MAX_VIDEO_FRAMES} frames"
    return MediaError(f"{path}: the video is {length}, {limits}; cut it first")


def _read_head(path: Path, first: int, size: Callable[[int, int], tuple[int, int]]) -> tuple[VideoInfo, np.ndarray]:
    head, scale, count, times = np.empty((0, 0, 0, 3), np.uint8), FrameScaler((0, 0), DisplayTransform()), 0, [0.0]
    with open_video(path) as (container, stream):
        for frame in decode_video(path, container, stream):
            if count == 0:
                transform, times = DisplayTransform.of(frame), [frame.time or 0.0]
                shape = transform.size(frame.width, frame.height)
                target = size(*shape)
                scale = FrameScaler(target, transform)
                head = np.empty((first, target[1], target[0], 3), np.uint8)
            if count < first:
                head[count] = scale(frame)
            times[1:] = [frame.time or 0.0]
            count += 1
        if count == 0:
            raise MediaError(f"{path}: not one frame of the video can be decoded; re-encode it")
        rate = _rate(stream, count - 1, times[-1] - times[0])
    return VideoInfo(*shape, count, rate), head[: min(first, count)]


def _rate(stream: "av.VideoStream", steps: int, seconds: float) -> float | None:
    stated = float(stream.average_rate) if stream.average_rate else None
    measured = steps / seconds if steps and seconds > 0 else None
    # Timestamps may be rounded to milliseconds, so the stated rate is more exact, unless it is plainly wrong.
    return stated if stated and (measured is None or abs(stated / measured - 1) < 0.05) else measured
