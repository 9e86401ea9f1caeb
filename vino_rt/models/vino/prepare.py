"""The released preparation of references: target sizes, choice of frames, letterboxing, resizing and patch rows.

It knows numbers and arrays only: no file names, codecs, tokens or weights. Sizes are (height, width) unless a name says
otherwise; pictures are uint8 numpy arrays [H, W, 3] in RGB, clips uint8 [F, H, W, 3]. Source: MODEL.md sections 2, 3.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vino_rt.errors import InputError, ModelError
from vino_rt.request import FRAME_STEP, Pixels

Grid = tuple[int, int, int]
"""Patches of a picture or clip along time, height and width, before the merge."""

VLM_FRAMES = 8
"""Frames of a clip that the VLM sees."""
MAX_ASPECT = 200
"""Largest aspect ratio of a reference, from the release's `smart_resize`."""
FETCH_FACTOR = 28
"""The released first resize rounds to multiples of this, although the processor's patches have another size."""
GRID_REACH = 256
"""Heights tried above and below the ideal height of a letterbox, in units."""


@dataclass(frozen=True)
class PixelRule:
    """Preprocessing of pictures or clips for the vision tower: two resizes, normalisation and patch sizes."""

    min_pixels: int
    """Least pixels after the second resize, counting all frames of a clip."""
    max_pixels: int
    fetch_min_pixels: int
    """Least pixels per frame after the first resize."""
    fetch_max_pixels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fetch_factor: int = FETCH_FACTOR
    """Height and width after the first resize are multiples of this."""

    @property
    def factor(self) -> int:
        """Height and width after the second resize are multiples of this."""
        return self.patch_size * self.merge_size

    @classmethod
    def from_json(cls, data: Mapping[str, Any], fetch: tuple[int, int], where: str) -> "PixelRule":
        """Read a processor's JSON object.

        fetch: pixel limits (least, most) of the first resize, as in the release. Our own models may replace them by an
        object `fetch_size` with `shortest_edge`, `longest_edge` and optionally `factor`, so that a small model need not
        see its clips at 512x512, nor its pictures resampled to multiples of 28. Raises ModelError naming a missing or
        unusable field.
        """
        try:
            if any(int(data[name]) < 1 for name in ("patch_size", "temporal_patch_size", "merge_size")):
                raise ValueError("patch_size, temporal_patch_size or merge_size below 1")
            own = data.get("fetch_size", {"shortest_edge": fetch[0], "longest_edge": fetch[1]})
            if (fetch_factor := int(own.get("factor", FETCH_FACTOR))) < 1:
                raise ValueError("fetch_size.factor below 1")
            return cls(
                int(data["size"]["shortest_edge"]),
                int(data["size"]["longest_edge"]),
                int(own["shortest_edge"]),
                int(own["longest_edge"]),
                int(data["patch_size"]),
                int(data["temporal_patch_size"]),
                int(data["merge_size"]),
                tuple(float(v) for v in data["image_mean"]),
                tuple(float(v) for v in data["image_std"]),
                fetch_factor,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{where}: missing or unusable field {error}; copy the released file") from error


@dataclass(frozen=True)
class Letterbox:
    """Size of a white canvas, and size and position of the picture on it, in pixels."""

    height: int
    width: int
    inner_height: int
    inner_width: int
    top: int
    left: int


def letterbox_grid(width: int, height: int, area: int, unit: int) -> Letterbox:
    """Canvas for a picture: sides in multiples of `unit`, nearest in area (pixels), then in aspect ratio.

    All heights within 256 units of the ideal one are compared, so a tall picture may end up with another shape for the
    sake of the area, as in the release (MODEL.md section 2). Raises InputError for an empty picture.
    """
    _check_size(width, height)
    ratio = width / height
    middle = max(1, round(math.sqrt(area / ratio) / unit))
    best, canvas = (math.inf, math.inf), (unit, unit)
    for rows in range(max(1, middle - GRID_REACH), middle + GRID_REACH + 1):
        ideal = ratio * (rows * unit) / unit
        for columns in (max(1, math.floor(ideal)), max(1, math.ceil(ideal))):
            h, w = rows * unit, columns * unit
            cost = (abs(h * w - area), abs(w / h - ratio))
            if cost < best:
                best, canvas = cost, (h, w)
    scale = min(canvas[1] / width, canvas[0] / height)
    inner_width, inner_height = max(1, round(width * scale)), max(1, round(height * scale))
    top, left = (canvas[0] - inner_height) // 2, (canvas[1] - inner_width) // 2
    return Letterbox(*canvas, inner_height, inner_width, top, left)


def reference_box(name: str, width: int, height: int, area: int, unit: int) -> Letterbox:
    """`letterbox_grid` of an image, with its aspect ratio checked; `name` begins messages.

    Raises InputError for an aspect ratio above 200:1, the limit of the release's `smart_resize`, or for one that at
    this `area` leaves less than one unit of a side.
    """
    _check_shape(name, width, height, min(MAX_ASPECT, area / unit**2))
    box = letterbox_grid(width, height, area, unit)
    # A tall image's canvas may be even longer than the image: the area is matched first.
    _check_shape(f"{name}: the canvas of {width}x{height}", box.width, box.height, MAX_ASPECT)
    return box


def reference_clip(name: str, width: int, height: int, area: int, unit: int) -> tuple[int, int]:
    """(height, width) of a scaled and cropped clip; InputError as for an image; `name` begins messages."""
    _check_shape(name, width, height, min(MAX_ASPECT, area / unit**2))
    return crop_size(*video_size(width, height, area), unit)


def video_size(width: int, height: int, area: int) -> tuple[int, int]:
    """(height, width) that a reference clip is scaled to while decoding: about `area` pixels, in its own shape."""
    _check_size(width, height)
    ratio = width / height
    ideal = math.sqrt(area / ratio)
    return round(ideal), round(ideal * ratio)


def crop_size(height: int, width: int, unit: int) -> tuple[int, int]:
    """Largest multiples of `unit` within (height, width); InputError if a side is below one unit."""
    if height < unit or width < unit:
        raise InputError(f"a clip of {width}x{height} has a side under {unit} pixels; use a less extreme shape")
    return height // unit * unit, width // unit * unit


def frame_count(requested: int, available: int) -> int:
    """Frames used of a reference clip: the largest 4k + 1 within both numbers; InputError if either is below 1."""
    if requested < 1 or available < 1:
        raise InputError(f"{requested} frames of a clip of {available}: both must be at least 1")
    return (min(requested, available) - 1) // FRAME_STEP * FRAME_STEP + 1


def vlm_frame_indices(total: int) -> tuple[int, ...]:
    """Indices of the 8 frames that the VLM sees of a clip of `total`, spread evenly; short clips repeat frames."""
    if total < 1:
        raise InputError(f"a clip of {total} frames: at least 1 is needed")
    return tuple(round((total - 1) * i / (VLM_FRAMES - 1)) for i in range(VLM_FRAMES))


def vlm_frames(clip: Pixels) -> Pixels:
    """The 8 frames of a clip [F, H, W, 3] that the VLM sees, [8, H, W, 3]."""
    return np.ascontiguousarray(clip[list(vlm_frame_indices(len(clip)))])


def smart_resize(height: int, width: int, factor: int, min_pixels: float, max_pixels: float) -> tuple[int, int]:
    """(height, width) in multiples of `factor`, close to the given shape, within the pixel limits (MODEL.md section 3).

    Raises InputError for an empty picture or an aspect ratio over 200.
    """
    _check_shape("a picture", width, height, MAX_ASPECT)
    h, w = (max(factor, round(side / factor) * factor) for side in (height, width))
    if h * w > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        h, w = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif h * w < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        h, w = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return h, w


def fetch_size(height: int, width: int, rule: PixelRule) -> tuple[int, int]:
    """(height, width) after the first resize: multiples of 28 unless the rule says otherwise."""
    return smart_resize(height, width, rule.fetch_factor, rule.fetch_min_pixels, rule.fetch_max_pixels)


def processor_size(frames: int, height: int, width: int, rule: PixelRule) -> tuple[int, int]:
    """(height, width) after the second resize: multiples of `rule.factor`; the pixel limits count all frames."""
    return smart_resize(height, width, rule.factor, rule.min_pixels / frames, rule.max_pixels / frames)


def letterbox(image: Pixels, box: Letterbox) -> Pixels:
    """Scale a picture (Lanczos) and centre it on white: [H, W, 3] -> [box.height, box.width, 3]."""
    canvas = Image.new("RGB", (box.width, box.height), (255, 255, 255))
    inner = _picture(image).resize((box.inner_width, box.inner_height), Image.Resampling.LANCZOS)
    canvas.paste(inner, (box.left, box.top))
    return np.array(canvas)


def fetch_image(image: Pixels, rule: PixelRule) -> Pixels:
    """First resize of a picture for the VLM: bicubic, to `fetch_size`."""
    height, width = fetch_size(image.shape[0], image.shape[1], rule)
    return np.array(_picture(image).resize((width, height), Image.Resampling.BICUBIC))


def vlm_image(image: Pixels, rule: PixelRule) -> tuple[Tensor, Grid]:
    """Letterboxed picture [H, W, 3] -> float32 patch rows [n, 3*2*16*16] and their grid, after both resizes."""
    fetched = _planes(fetch_image(image, rule)[None])
    return patch_rows(_resize(fetched, processor_size(1, fetched.shape[2], fetched.shape[3], rule)).float(), rule)


def vlm_video(frames: Pixels, rule: PixelRule) -> tuple[Tensor, Grid]:
    """Frames [F, H, W, 3] of the source clip -> float32 patch rows and their grid, after both resizes.

    Unlike for a picture, the first resize is computed in floating point and rounded once, and the second is neither
    rounded nor clipped to 0..255.
    """
    planes = _planes(frames).float()
    fetched = _resize(planes, fetch_size(planes.shape[2], planes.shape[3], rule)).clamp(0.0, 255.0).round()
    size = processor_size(len(frames), fetched.shape[2], fetched.shape[3], rule)
    return patch_rows(_resize(fetched, size), rule)


def patch_rows(planes: Tensor, rule: PixelRule) -> tuple[Tensor, Grid]:
    """Normalise float planes [F, C, H, W] in 0..255 and cut them into patch rows [n, C*T*p*p], with their grid.

    Rows are ordered (t, h/m, w/m, m, m), so that the patches of a merge block are adjacent; the values of a row are
    ordered (C, T, p, p). The last frame is repeated to fill T (MODEL.md section 3).
    """
    mean, std = (torch.tensor(v, dtype=torch.float32).mul(255.0)[:, None, None] for v in (rule.mean, rule.std))
    planes = (planes - mean) / std
    if missing := -len(planes) % rule.temporal_patch_size:
        planes = torch.cat((planes, planes[-1:].expand(missing, -1, -1, -1)))
    frames, channels, height, width = planes.shape
    p, m, t = rule.patch_size, rule.merge_size, rule.temporal_patch_size
    grid = (frames // t, height // p, width // p)
    blocks = planes.reshape(grid[0], t, channels, grid[1] // m, m, p, grid[2] // m, m, p)
    return blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, channels * t * p * p), grid


def vae_pixels(frames: Pixels) -> Tensor:
    """Frames [F, H, W, 3] -> float32 [1, 3, F, H, W] in [-1, 1]."""
    # Equal to (x - 127.5) / 127.5, but in this order the rounding is bit for bit the release's.
    return (_planes(frames).float() / 127.5 - 1.0).transpose(0, 1)[None].contiguous()


def crop_to_unit(frames: Pixels, unit: int) -> Pixels:
    """Crop [F, H, W, 3] at the right and bottom to multiples of `unit`; InputError if a side is below one unit."""
    height, width = crop_size(frames.shape[1], frames.shape[2], unit)
    return frames[:, :height, :width]


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise InputError(f"a picture of {width}x{height}: both sides must be at least 1 pixel")


def _check_shape(name: str, width: int, height: int, most: float) -> None:
    _check_size(width, height)
    aspect = max(width, height) / min(width, height)
    if aspect > most:
        raise InputError(f"{name}: {width}x{height} is {aspect:.1f}:1; at most {most:g}:1 is legal: crop it")


def _check_pixels(pixels: Pixels, dims: int) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != dims or pixels.shape[-1] != 3:
        shape = "[H, W, 3]" if dims == 3 else "[F, H, W, 3]"
        raise InputError(f"pixels of type {pixels.dtype} and shape {pixels.shape}: expected uint8 {shape} in RGB")


def _picture(image: Pixels) -> Image.Image:
    _check_pixels(image, 3)
    return Image.fromarray(image)


def _planes(frames: Pixels) -> Tensor:
    _check_pixels(frames, 4)
    return torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2).contiguous()


def _resize(planes: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(planes.shape[2:]) == size:
        return planes
    return F.interpolate(planes, size=size, mode="bicubic", align_corners=False, antialias=True)
