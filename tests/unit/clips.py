"""Small videos that tests write and read back; every frame carries its number."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def plain(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """[F,H,W,3]: left half red, right half grey with a level that tells the frame's number."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[:, :, : width // 2] = (255, 0, 0)
    for index in range(count):
        frames[index, :, width // 2 :] = 8 * index + 40
    return frames


def number(frame: np.ndarray) -> int:
    return round((float(frame[:, -8:].mean()) - 40) / 8)


def write_video(
    path: Path, frames: np.ndarray, codec: str = "libx264", pixels: str = "yuv420p", times: Sequence[int] | None = None
) -> Path:
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream(codec, rate=24, options={"bf": "2"} if codec == "libx264" else {})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], pixels
        stream.codec_context.thread_count = 1
        source = "rgba" if frames.shape[3] == 4 else "rgb24"
        for index, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format=source).reformat(format=pixels)
            frame.pts, frame.time_base = times[index] if times else index, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def same_size(width: int, height: int) -> tuple[int, int]:
    return width, height


def all_frames(frames: int) -> range:
    return range(frames)
