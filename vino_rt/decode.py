"""Frames to latents and latents to frames: validation, tiling, the latents' scale, the posterior, and memory needed.

It knows neither the autoencoder's layers nor a backend: the function that maps one tile is passed in.

Shapes: B batch (1 from the runtime), C latent channels, T latent frames, F = 4(T-1)+1 frames, H W pixels, h = H/8.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vino_rt.errors import EngineError, InputError
from vino_rt.progress import OnPart
from vino_rt.tiling import TileFunction, Tiling, decode_grid, encode_grid, run_tiled

if TYPE_CHECKING:
    from vino_rt.models.vino.vae_config import VaeConfig

LOGVAR_RANGE = (-30.0, 20.0)
"""Bounds of the posterior's log variance (MODEL.md section 5)."""

LIBRARY_BYTES = 384 * 2**20
"""Allowance in `decode_memory` for code compiled for each new shape and for holes in the allocator's heap."""

Checkpoint = Callable[[], None]
"""Called between units of work, such as tiles; raises to stop the work."""


def encode_video(
    pixels: Tensor,
    encode_tile: TileFunction,
    tiling: Tiling,
    *,
    checkpoint: Checkpoint | None = None,
    on_tile: OnPart | None = None,
) -> Tensor:
    """Map pixels to the moments of the posterior, in tiles (MODEL.md section 5).

    pixels: floating [B,3,F,H,W] in [-1,1], (F-1) % 4 == 0, H and W multiples of 8.
    encode_tile: [B,3,f,H',W'] -> [B,2C,(f-1)/4+1,H'/8,W'/8], engine kind `vae_encode`.
    Returns [B,2C,T,h,w], mean then log variance. Raises InputError for a size off the grid; `checkpoint` may raise.
    """
    frames, height, width = _size(pixels, "pixels")
    f, s = tiling.temporal_ratio, tiling.spatial_ratio
    if (frames - 1) % f or height % s or width % s:
        raise InputError(
            f"cannot encode {frames} frames of {width}x{height}; frames must be {f}k+1 and both sides multiples of {s}"
        )
    grid = encode_grid(tiling)
    counted = _counted(encode_tile, grid.count(frames, height, width), checkpoint, on_tile)
    return run_tiled(pixels, counted, grid, ((frames - 1) // f + 1, height // s, width // s))


def decode_latents(
    latents: Tensor,
    decode_tile: TileFunction,
    tiling: Tiling,
    scaling_factor: float,
    *,
    checkpoint: Checkpoint | None = None,
    on_tile: OnPart | None = None,
) -> Tensor:
    """Map the generator's latents to pixels, in tiles (MODEL.md section 5).

    latents: floating [B,C,T,h,w], the autoencoder's latents times `scaling_factor`.
    decode_tile: [B,C,t,h',w'] -> [B,3,4(t-1)+1,8h',8w'], engine kind `vae_decode`; it gets latents without the factor.
    Returns [B,3,F,H,W], about [-1,1], not clipped. Raises InputError for an impossible shape; `checkpoint` may raise.
    """
    frames, height, width = _size(latents, "latents")
    grid = decode_grid(tiling)
    counted = _counted(decode_tile, grid.count(frames, height, width), checkpoint, on_tile)
    size = ((frames - 1) * tiling.temporal_ratio + 1, height * tiling.spatial_ratio, width * tiling.spatial_ratio)
    return run_tiled(latents / scaling_factor, counted, grid, size)


def posterior(moments: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The latent of a posterior: its mode, or with a generator a seeded sample (MODEL.md section 5).

    moments: floating [B,2C,T,h,w], mean then log variance. Returns [B,C,T,h,w], not yet times the scaling factor.
    The noise is drawn in float32 on the generator's device, so one seed gives one sample whatever the moments' dtype.
    """
    if moments.ndim != 5 or moments.shape[1] % 2:
        raise InputError(f"moments must be [B,2C,T,h,w], got {list(moments.shape)}")
    mean, logvar = moments.chunk(2, dim=1)
    if generator is None:
        return mean
    noise = torch.randn(mean.shape, generator=generator, device=generator.device)
    return mean + (0.5 * logvar.clamp(*LOGVAR_RANGE)).exp() * noise.to(mean)


def to_uint8(pixels: Tensor) -> Tensor:
    """Pixels as bytes: trunc(clip(127.5*x + 127.5, 0, 255)) in float32 (MODEL.md section 5).

    pixels: floating [1,3,F,H,W]. Returns uint8 [F,H,W,3], contiguous, on the CPU. Raises EngineError for NaN: an engine
    that gives one is broken, and a black frame would hide it.
    """
    if pixels.ndim != 5 or pixels.shape[0] != 1 or pixels.shape[1] != 3:
        raise InputError(f"pixels must be [1,3,F,H,W], got {list(pixels.shape)}")
    frames, height, width = pixels.shape[2:]
    result = torch.empty((frames, height, width, 3), dtype=torch.uint8)
    # Frame by frame: a float copy of a whole clip would double the memory of a decode.
    for index in range(frames):
        frame = pixels[0, :, index].float()
        if frame.isnan().any():
            raise EngineError(
                f"decoded frame {index} holds NaN; check the engine with `vino-rt inspect` and rebuild it"
            )
        result[index] = (frame * 127.5 + 127.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
    return result


def decode_memory(frames: int, height: int, width: int, config: "VaeConfig", tiling: Tiling, itemsize: int = 4) -> int:
    """Upper bound in bytes of what a decode of this size adds to the process on the CPU, weights excluded.

    frames, height, width: of the result, in pixels. itemsize: bytes of a value inside the autoencoder; the result is
    float32. Counts the result, one tile in time of it with copy and seams, the
    latents, and what the autoencoder needs for one tile (`VaeConfig.decode_work`). Once a clip is longer than a tile,
    only the result grows with `frames`; once a frame is larger than a tile, only pixels grow with its area.
    """
    grid = decode_grid(tiling)
    latents = (frames - 1) // tiling.temporal_ratio + 1
    rows, columns = height // tiling.spatial_ratio, width // tiling.spatial_ratio
    cut = grid.tiles_space(rows, columns)
    t = min(latents, grid.time.size)
    high, wide = (min(side, grid.space.size) if cut else side for side in (rows, columns))
    chunk = ((t - 1) * tiling.temporal_ratio + 1) * height * width
    images = config.out_channels * (frames * height * width + 3 * chunk)
    latent_values = 2 * config.latent_channels * latents * rows * columns
    return LIBRARY_BYTES + 4 * (images + latent_values) + config.decode_work(t, high, wide, itemsize)


def _size(video: Tensor, name: str) -> tuple[int, int, int]:
    """Frames, height and width of a floating [B,C,F,H,W] tensor; InputError for any other tensor."""
    if video.ndim != 5 or not video.numel() or not video.is_floating_point():
        raise InputError(
            f"{name} must be floating [B,C,F,H,W] with no empty axis, got {video.dtype} {list(video.shape)}"
        )
    frames, height, width = video.shape[2:]
    return frames, height, width


def _counted(tile: TileFunction, total: int, checkpoint: Checkpoint | None, on_tile: OnPart | None) -> TileFunction:
    """`tile`, with the cancellation check before each call and the progress report after it."""
    done = 0

    def run(part: Tensor) -> Tensor:
        nonlocal done
        if checkpoint is not None:
            checkpoint()
        result = tile(part)
        done += 1
        if on_tile is not None:
            on_tile(done, total)
        return result

    return run
