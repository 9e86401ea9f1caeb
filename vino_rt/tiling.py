"""The tiling rule: a video is mapped tile by tile, overlapping tiles are blended, and only their seams are kept.

The same rule serves encoding and decoding; what differs is the grid. It does not know what is computed on a tile.
Source of the numbers: MODEL.md section 5 (time) and the defaults of the released autoencoder (space).

Shapes: [B,C,F,H,W] throughout; axis 2 is time, 3 height, 4 width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vino_rt.errors import InputError

TileFunction = Callable[[Tensor], Tensor]

TIME, HEIGHT, WIDTH = 2, 3, 4


@dataclass(frozen=True)
class Tiling:
    """The tiling of one autoencoder, in pixels and pixel frames; `InputError` when a number is off the latent grid."""

    frames: int = 16
    """More frames than this are tiled in time; a tile is one frame longer."""
    frame_stride: int = 12
    """Frames from one tile's start to the next one's."""
    spatial: bool = False
    """Whether frames larger than a tile are tiled in height and width too."""
    size: int = 256
    """Height and width of a tile."""
    stride: int = 192
    """Pixels from one tile's start to the next one's."""
    temporal_ratio: int = 4
    """Frames in a latent frame."""
    spatial_ratio: int = 8
    """Pixels in a latent along height and width."""

    def __post_init__(self) -> None:
        for what, tile, stride, ratio in (
            ("frames", self.frames, self.frame_stride, self.temporal_ratio),
            ("size", self.size, self.stride, self.spatial_ratio),
        ):
            if not 0 < stride <= tile or tile % ratio or stride % ratio:
                raise InputError(
                    f"tiling: {what} {tile} with stride {stride} is not usable; both must be multiples of {ratio} "
                    "and the stride at most the tile"
                )


@dataclass(frozen=True)
class Axis:
    """How one axis is cut: numbers of the input first, then of the output."""

    size: int
    threshold: int
    stride: int
    out_stride: int
    blend: int

    def starts(self, length: int) -> range:
        """Where tiles begin along an input of this length."""
        return range(0, length, self.stride)


@dataclass(frozen=True)
class Grid:
    """One direction (encode or decode) of a `Tiling`."""

    time: Axis
    space: Axis
    spatial: bool

    def tiles_space(self, height: int, width: int) -> bool:
        """Whether a frame of this input size is cut."""
        return self.spatial and max(height, width) > self.space.threshold

    def time_spans(self, frames: int) -> list[int]:
        """First input frame of each tile; a later tile drops its first frame, so one of a single frame is left out."""
        if frames <= self.time.threshold:
            return [0]
        return [start for start in self.time.starts(frames) if start == 0 or frames - start > 1]

    def count(self, frames: int, height: int, width: int) -> int:
        """Tiles computed for an input of this size."""
        cut = self.tiles_space(height, width)
        area = len(self.space.starts(height)) * len(self.space.starts(width)) if cut else 1
        return len(self.time_spans(frames)) * area


def encode_grid(tiling: Tiling) -> Grid:
    """Pixels in, latents out."""
    f, s = tiling.temporal_ratio, tiling.spatial_ratio
    time_blend, space_blend = tiling.frames - tiling.frame_stride, tiling.size - tiling.stride
    time = Axis(tiling.frames + 1, tiling.frames, tiling.frame_stride, tiling.frame_stride // f, time_blend // f)
    space = Axis(tiling.size, tiling.size, tiling.stride, tiling.stride // s, space_blend // s)
    return Grid(time, space, tiling.spatial)


def decode_grid(tiling: Tiling) -> Grid:
    """Latents in, pixels out."""
    f, s = tiling.temporal_ratio, tiling.spatial_ratio
    frames, size = tiling.frames // f, tiling.size // s
    time = Axis(frames + 1, frames, tiling.frame_stride // f, tiling.frame_stride, tiling.frames - tiling.frame_stride)
    space = Axis(size, size, tiling.stride // s, tiling.stride, tiling.size - tiling.stride)
    return Grid(time, space, tiling.spatial)


def run_tiled(source: Tensor, tile: TileFunction, grid: Grid, out_size: tuple[int, int, int]) -> Tensor:
    """Map a video of any length and size tile by tile.

    source: [B,C,F,H,W]. tile: maps a contiguous part of it. out_size: frames, height and width of the whole result.
    Returns [B,C',*out_size] in the dtype and on the device of the tiles. Besides the result at most two tiles in time
    and their seams are alive; what `tile` returns is copied before it is blended, never written to.
    """
    starts = grid.time_spans(source.shape[TIME])
    if len(starts) == 1:
        return _frames(source[:, :, : grid.time.size], tile, grid, out_size[1:])
    result = seam = None
    written = 0
    for start in starts:
        part = _frames(source[:, :, start : start + grid.time.size], tile, grid, out_size[1:])
        if seam is not None:
            part = part[:, :, 1:].clone()
            blend(seam, part, TIME, grid.time.blend)
        if result is None:
            result = part.new_empty((*part.shape[:2], *out_size))
        kept = min(grid.time.out_stride + (start == 0), part.shape[TIME], out_size[0] - written)
        result[:, :, written : written + kept] = part[:, :, :kept]
        written += kept
        seam = _end(part, TIME, grid.time.blend).clone()
    assert result is not None, "a video without tiles"
    assert written == out_size[0], f"tiles gave {written} frames of {out_size[0]}"
    return result


def _frames(source: Tensor, tile: TileFunction, grid: Grid, out_size: tuple[int, ...]) -> Tensor:
    """One tile in time [B,C,f,H,W] -> [B,C',f',*out_size], cut in space where the grid says so."""
    if not grid.tiles_space(*source.shape[HEIGHT:]):
        return tile(source.contiguous())
    result = None
    above: list[Tensor] = []
    for row, cells in enumerate(_rows(source, grid.space)):
        below: list[Tensor] = []
        left = None
        for column, cell in enumerate(cells):
            part = tile(cell.contiguous()).clone()
            if above:
                blend(above[column], part, HEIGHT, grid.space.blend)
            if left is not None:
                blend(left, part, WIDTH, grid.space.blend)
            if result is None:
                result = part.new_empty((*part.shape[:HEIGHT], *out_size))
            region = result[..., row * grid.space.out_stride :, column * grid.space.out_stride :]
            height, width = (min(grid.space.out_stride, size) for size in part.shape[HEIGHT:])
            region[..., :height, :width] = part[..., :height, :width]
            left = _end(part, WIDTH, grid.space.blend).clone()
            below.append(_end(part, HEIGHT, grid.space.blend).clone())
        above = below
    assert result is not None, "a frame without tiles"
    return result


def _rows(source: Tensor, axis: Axis) -> Iterator[list[Tensor]]:
    """The rows of tiles of a source, as views."""
    height, width = source.shape[HEIGHT:]
    for top in axis.starts(height):
        band = source[..., top : top + axis.size, :]
        yield [band[..., start : start + axis.size] for start in axis.starts(width)]


def blend(before: Tensor, after: Tensor, axis: int, extent: int) -> None:
    """Fade from the end of `before` to the start of `after`, in place in `after`, over at most `extent` positions.

    Position x of e becomes (1 - x/e) * before + x/e * after, so the first is `before` alone (MODEL.md section 5).
    Both are floating and of the same shape but for `axis`.
    """
    extent = min(before.shape[axis], after.shape[axis], extent)
    if not extent:
        return
    shape = [extent if dim == axis else 1 for dim in range(after.ndim)]
    ramp = (torch.arange(extent, dtype=torch.float64) / extent).reshape(shape)
    wide = torch.promote_types(after.dtype, torch.float32)
    fade_in, fade_out = (weight.to(after.device, wide) for weight in (ramp, 1 - ramp))
    start = after.narrow(axis, 0, extent)
    start.copy_(_end(before, axis, extent) * fade_out + start * fade_in)


def _end(part: Tensor, axis: int, extent: int) -> Tensor:
    """The last `extent` positions along an axis, or all there are; a view."""
    extent = min(extent, part.shape[axis])
    return part.narrow(axis, part.shape[axis] - extent, extent)
