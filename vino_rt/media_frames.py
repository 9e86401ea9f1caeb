"""Decoded video frames to displayed RGB pixels: rotation, alpha and the released pipeline's scaling.

Knows PyAV's frames and filters, and imports PyAV only where there is a frame to convert; opens no file.
"""

import itertools
import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from vino_rt.errors import MediaError

if TYPE_CHECKING:
    import av
    from av.filter import Graph

FRAME_CLOCK = Fraction(1, 1000)
"""Time base of frames that carry none; scaling does not look at it."""
SCALE_FLAGS = "bilinear"
"""The released pipeline's reader scales with this filter before it converts colours; the bits depend on both."""


def require_av() -> None:
    """Raise MediaError naming what to install if PyAV cannot be imported."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise MediaError(f"videos need PyAV, which cannot be imported ({error}); install it: pip install av") from error


@dataclass(frozen=True)
class DisplayTransform:
    """How a stored frame becomes the displayed one: transpose first, then mirror."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @classmethod
    def of(cls, frame: "av.VideoFrame") -> "DisplayTransform":
        """Read a frame's display matrix, int32 3 x 3, (x, y) = (a p + c q, b p + d q), rounded to a quarter turn."""
        from av.sidedata.sidedata import SideData

        matrix = frame.side_data.get("DISPLAYMATRIX")
        if not isinstance(matrix, SideData):
            return cls()
        a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(transpose=True, mirror_x=c < 0, mirror_y=b < 0)
        return cls(mirror_x=a < 0, mirror_y=d < 0)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) as stored of a displayed size, or the other way round: the mapping is its own inverse."""
        return (height, width) if self.transpose else (width, height)

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Stored pixels [h, w, 3] -> displayed pixels [h, w, 3] or [w, h, 3], a view."""
        turned = pixels.transpose(1, 0, 2) if self.transpose else pixels
        return turned[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]


class FrameScaler:
    """Converts the frames of one video to uint8 RGB at one displayed size (width, height).

    Scales in the video's own colour space, then converts. The result is bit for bit that of the released pipeline's
    reader (compared on 4:2:0, 4:4:4, full range, BT.601, BT.709 and odd sizes).
    """

    def __init__(self, size: tuple[int, int], transform: DisplayTransform) -> None:
        self._transform = transform
        self._size = transform.size(*size)
        self._graph: Graph | None = None

    def __call__(self, frame: "av.VideoFrame") -> np.ndarray:
        """Convert a frame to uint8 [height, width, 3]; alpha is composited on white."""
        import av

        if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
            # Composited before scaling: the colour under transparent pixels must not bleed into their neighbours.
            frame = _on_white(frame)
        if (frame.width, frame.height) == self._size:
            return self._transform.apply(frame.to_ndarray(format="rgb24"))
        if self._graph is None:
            self._graph = self._build(frame)
        self._graph.push(frame)
        scaled = self._graph.pull()
        assert isinstance(scaled, av.VideoFrame)
        return self._transform.apply(scaled.to_ndarray())

    def _build(self, frame: "av.VideoFrame") -> "Graph":
        from av.filter import Graph

        graph = Graph()
        width, height = self._size
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or FRAME_CLOCK
        )
        chain = [
            source,
            graph.add("scale", f"{width}:{height}:flags={SCALE_FLAGS}"),
            graph.add("format", "rgb24"),
            graph.add("buffersink"),
        ]
        for before, after in itertools.pairwise(chain):
            before.link_to(after)
        graph.configure()
        return graph


def scale_frames(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale uint8 RGB frames [F, H, W, 3] to (width, height) with the filter that `FrameScaler` uses for files."""
    require_av()
    import av

    scale = FrameScaler(size, DisplayTransform())
    return np.stack([scale(av.VideoFrame.from_ndarray(np.ascontiguousarray(f), format="rgb24")) for f in frames])


def _on_white(frame: "av.VideoFrame") -> "av.VideoFrame":
    import av

    rgba = frame.to_ndarray(format="rgba").astype(np.uint16)
    alpha = rgba[..., 3:]
    opaque = (rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return av.VideoFrame.from_ndarray(opaque.astype(np.uint8), format="rgb24")
