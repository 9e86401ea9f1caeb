"""Tiling: map a video tile by tile and blend the overlaps, holding only the seams of finished tiles.

Encoding and decoding use the same code with different grids. It does not know what is computed on a tile. Source of the
numbers: MODEL.md section 5 (time) and the defaults of the released autoencoder (space).

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
    """Tile sizes of an autoencoder in pixels and frames; InputError for sizes off the latent grid."""

    frames: int = 16
    """More frames than this are tiled in time; a tile is one frame longer."""
    frame_stride: int = 12
    """Frames between the starts of neighbouring tiles."""
    spatial: bool = False
    """Whether frames larger than a tile are tiled in height and width too."""
    size: int = 256
    """Height and width of a tile."""
    stride: int = 192
    """Pixels between the starts of neighbouring tiles."""
    temporal_ratio: int = 4
    """Frames per latent frame."""
    spatial_ratio: int = 8
    """Pixels per latent along height and width."""

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
    """How one axis is cut."""

    size: int
    """Length of a tile of the input."""
    threshold: int
    """Inputs up to this length are not cut."""
    stride: int
    """Input positions between the starts of neighbouring tiles."""
    out_stride: int
    """`stride` in positions of the output."""
    blend: int
    """Output positions over which neighbouring tiles are blended."""

    def starts(self, length: int) -> range:
        """Start of each tile along an input of this length."""
        return range(0, length, self.stride)


@dataclass(frozen=True)
class Grid:
    """A `Tiling` in one direction: encoding or decoding."""

    time: Axis
    space: Axis
    spatial: bool

    def tiles_space(self, height: int, width: int) -> bool:
        """Whether frames of this input size are cut into tiles."""
        return self.spatial and max(height, width) > self.space.threshold

    def time_spans(self, frames: int) -> list[int]:
        """First input frame of each tile. A later tile drops its first output frame, so one of one frame is skipped."""
        if frames <= self.time.threshold:
            return [0]
        return [start for start in self.time.starts(frames) if start == 0 or frames - start > 1]

    def count(self, frames: int, height: int, width: int) -> int:
        """Number of tiles computed for an input of this size."""
        cut = self.tiles_space(height, width)
        area = len(self.space.starts(height)) * len(self.space.starts(width)) if cut else 1
        return len(self.time_spans(frames)) * area


def encode_grid(tiling: Tiling) -> Grid:
    """Grid of encoding: pixels in, latents out."""
    f, s = tiling.temporal_ratio, tiling.spatial_ratio
    time_blend, space_blend = tiling.frames - tiling.frame_stride, tiling.size - tiling.stride
    time = Axis(tiling.frames + 1, tiling.frames, tiling.frame_stride, tiling.frame_stride // f, time_blend // f)
    space = Axis(tiling.size, tiling.size, tiling.stride, tiling.stride // s, space_blend // s)
    return Grid(time, space, tiling.spatial)


def decode_grid(tiling: Tiling) -> Grid:
    """Grid of decoding: latents in, pixels out."""
    f, s = tiling.temporal_ratio, tiling.spatial_ratio
    frames, size = tiling.frames // f, tiling.size // s
    time = Axis(frames + 1, frames, tiling.frame_stride // f, tiling.frame_stride, tiling.frames - tiling.frame_stride)
    space = Axis(size, size, tiling.stride // s, tiling.stride, tiling.size - tiling.stride)
    return Grid(time, space, tiling.spatial)


def run_tiled(source: Tensor, tile: TileFunction, grid: Grid, out_size: tuple[int, int, int]) -> Tensor:
    """Map a video of any length and size tile by tile.

    source: [B,C,F,H,W]. tile: maps a contiguous part of it. out_size: frames, height and width of the whole result.
    Returns [B,C',*out_size] in the dtype and on the device of the tiles. Besides the result, at most two temporal tiles
    and their seams are in memory. Tensors that `tile` returns are copied before blending, never written to.
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
    """Map one temporal tile [B,C,f,H,W] to [B,C',f',*out_size], cut into spatial tiles where the grid asks for it."""
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
    """Yield each row of spatial tiles, as views of the source."""
    height, width = source.shape[HEIGHT:]
    for top in axis.starts(height):
        band = source[..., top : top + axis.size, :]
        yield [band[..., start : start + axis.size] for start in axis.starts(width)]


def blend(before: Tensor, after: Tensor, axis: int, extent: int) -> None:
    """Cross-fade the end of `before` into the start of `after`, in place in `after`, over at most `extent` positions.

    Position x of e becomes (1 - x/e) * before + x/e * after, so the first is `before` alone (MODEL.md section 5). Both
    are floating and have equal shapes except along `axis`.
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
