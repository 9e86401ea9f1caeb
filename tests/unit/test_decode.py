"""Tiled encode and decode against the library's tiling and the golden cases; posterior, bytes, memory and cancel."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vino_rt import decode
from vino_rt.errors import Cancelled, EngineError, InputError
from vino_rt.models.vino.vae import VaeDecoder, VaeEncoder
from vino_rt.models.vino.vae_config import VaeConfig
from vino_rt.tiling import Tiling, blend

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "vino"
RELEASE = GOLDEN / "e2e_ckpt" / "HunyuanVideo-tiny" / "vae"
# The tiling itself is bitwise the library's; what remains is the middle block.
LIMIT = 1e-5


@pytest.fixture(scope="module")
def config() -> VaeConfig:
    return VaeConfig.from_json(json.loads((RELEASE / "config.json").read_text()))


@pytest.fixture(scope="module")
def stock(config: VaeConfig) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo

    model = AutoencoderKLHunyuanVideo(**vars(config))
    model.load_state_dict(load_file(RELEASE / "diffusion_pytorch_model.safetensors"))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tiles(config: VaeConfig, stock: Any) -> tuple[VaeEncoder, VaeDecoder]:
    encoder, decoder = VaeEncoder(config), VaeDecoder(config)
    for module in (encoder, decoder):
        module.load_state_dict({key: value for key, value in stock.state_dict().items() if key in module.state_dict()})
        module.eval().requires_grad_(False)
    return encoder, decoder


def library_tiling(stock: Any, tiling: Tiling) -> None:
    stock.enable_tiling(tiling.size, tiling.size, tiling.frames, tiling.stride, tiling.stride, tiling.frame_stride)
    stock.use_tiling = tiling.spatial


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_golden_encode(tiles: tuple[VaeEncoder, VaeDecoder]) -> None:
    case = GOLDEN / "vae_encode_f17"
    given, expected = load_file(case / "inputs.safetensors"), load_file(case / "outputs.safetensors")
    moments = decode.encode_video(given["sample"], tiles[0], Tiling())
    torch.testing.assert_close(moments, expected["parameters"], rtol=0, atol=LIMIT)
    torch.testing.assert_close(decode.posterior(moments), expected["mean"], rtol=0, atol=LIMIT)


def test_golden_decode(config: VaeConfig, tiles: tuple[VaeEncoder, VaeDecoder]) -> None:
    case = GOLDEN / "vae_decode_f5"
    given, expected = load_file(case / "inputs.safetensors"), load_file(case / "outputs.safetensors")
    scaled = given["z"] * config.scaling_factor
    pixels = decode.decode_latents(scaled, tiles[1], Tiling(), config.scaling_factor)
    torch.testing.assert_close(pixels, expected["sample"], rtol=0, atol=LIMIT)


TIMES = [1, 5, 13, 17, 21, 25, 29, 37, 41]
CASES = [(frames, 24, 40, Tiling()) for frames in TIMES] + [
    (1, 320, 448, Tiling(spatial=True, size=128, stride=96)),
    (1, 40, 56, Tiling(spatial=True, size=32, stride=24)),
    (29, 40, 56, Tiling(spatial=True, size=32, stride=24)),
    (17, 8, 72, Tiling(spatial=True, size=32, stride=8)),
    (21, 48, 16, Tiling(spatial=True, size=16, stride=16)),
    (33, 24, 24, Tiling(frames=8, frame_stride=4)),
    (29, 24, 24, Tiling(frames=8, frame_stride=8)),
    (29, 24, 24, Tiling(frames=12, frame_stride=4)),
    (29, 24, 32, Tiling(spatial=True)),
]


@pytest.mark.parametrize(("frames", "height", "width", "tiling"), CASES)
def test_tiling_is_the_librarys(stock: Any, frames: int, height: int, width: int, tiling: Tiling) -> None:
    # With the library's own layers on the tiles nothing but the tiling differs: equality is bitwise.
    library_tiling(stock, tiling)
    pixels, latents = noise(1, 3, frames, height, width), noise(1, 4, (frames + 3) // 4, height // 8, width // 8)
    moments = decode.encode_video(pixels, lambda part: stock.quant_conv(stock.encoder(part)), tiling)
    assert torch.equal(moments, stock.encode(pixels).latent_dist.parameters)
    images = decode.decode_latents(latents, lambda part: stock.decoder(stock.post_quant_conv(part)), tiling, 1.0)
    assert torch.equal(images, stock.decode(latents).sample)


@pytest.mark.parametrize(("frames", "height", "width", "tiling"), CASES[6:7] + CASES[11:13])
def test_whole_path_equals_library(
    stock: Any, tiles: tuple[VaeEncoder, VaeDecoder], frames: int, height: int, width: int, tiling: Tiling
) -> None:
    library_tiling(stock, tiling)
    pixels, latents = noise(1, 3, frames, height, width), noise(1, 4, (frames + 3) // 4, height // 8, width // 8)
    expected = stock.encode(pixels).latent_dist.parameters
    torch.testing.assert_close(decode.encode_video(pixels, tiles[0], tiling), expected, rtol=0, atol=LIMIT)
    images = decode.decode_latents(latents, tiles[1], tiling, 1.0)
    torch.testing.assert_close(images, stock.decode(latents).sample, rtol=0, atol=LIMIT)


def nearest(part: Tensor) -> Tensor:
    """A decoder without weights: every latent repeated over its pixels."""
    frames = torch.arange(4 * part.shape[2] - 3).add(3).div(4, rounding_mode="floor")
    return part[:, :3, frames].repeat_interleave(8, 3).repeat_interleave(8, 4)


def test_tiles_are_contiguous_and_left_alone() -> None:
    seen: list[Tensor] = []

    def tile(part: Tensor) -> Tensor:
        assert part.is_contiguous()
        seen.append(nearest(part))
        return seen[-1]

    latents = noise(1, 4, 9, 5, 7)
    before = latents.clone()
    pixels = decode.decode_latents(latents, tile, Tiling(spatial=True, size=32, stride=24), 0.5)
    # Blending equal overlaps changes nothing, so the whole is what one pass would give.
    torch.testing.assert_close(pixels, nearest(latents / 0.5), rtol=0, atol=1e-6)
    assert torch.equal(latents, before)
    again = iter(seen)
    decode.decode_latents(
        latents, lambda part: check(nearest(part), next(again)), Tiling(spatial=True, size=32, stride=24), 0.5
    )


def check(expected: Tensor, kept: Tensor) -> Tensor:
    assert torch.equal(expected, kept), "a tile's memory was written to"
    return expected


def test_progress_and_cancel() -> None:
    reports: list[tuple[int, int]] = []
    tiling = Tiling(spatial=True, size=32, stride=24)
    decode.decode_latents(noise(1, 4, 7, 5, 7), nearest, tiling, 1.0, on_tile=lambda *now: reports.append(now))
    # 7 latents are two tiles in time (a third would hold one frame, and drop it), 5x7 are 2x3 in space.
    assert reports == [(done, 12) for done in range(1, 13)]

    def checkpoint() -> None:
        if len(reports) == 14:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        decode.decode_latents(
            noise(1, 4, 7, 5, 7), nearest, tiling, 1.0, checkpoint=checkpoint, on_tile=lambda *now: reports.append(now)
        )
    assert len(reports) == 14


def test_blend_starts_at_zero() -> None:
    before, after = torch.full((1, 1, 6, 1, 1), 4.0), torch.zeros(1, 1, 5, 1, 1)
    blend(before, after, 2, 4)
    assert after.flatten().tolist() == [4.0, 3.0, 2.0, 1.0, 0.0]


def test_posterior() -> None:
    moments = torch.cat(
        [noise(1, 2, 3, 1, 2), torch.tensor([-100.0, 50.0]).reshape(1, 2, 1, 1, 1).expand(1, 2, 3, 1, 2)], 1
    )
    mean = moments[:, :2]
    assert torch.equal(decode.posterior(moments), mean)
    drawn = decode.posterior(moments, torch.Generator().manual_seed(5))
    assert torch.equal(drawn, decode.posterior(moments, torch.Generator().manual_seed(5)))
    assert not torch.equal(drawn, decode.posterior(moments, torch.Generator().manual_seed(6)))
    unit = torch.randn(mean.shape, generator=torch.Generator().manual_seed(5))
    std = torch.tensor([-15.0, 10.0]).exp().reshape(1, 2, 1, 1, 1)
    torch.testing.assert_close(drawn, mean + std * unit)
    with pytest.raises(InputError, match=r"\[1, 3, 1, 1, 1\]"):
        decode.posterior(torch.zeros(1, 3, 1, 1, 1))


def test_to_uint8_truncates_and_clips() -> None:
    values = torch.tensor([-2.0, -1.0, -0.999, 0.0, 0.0039, 0.9999, 1.0, 3.0])
    pixels = torch.stack([values, values.flip(0), torch.zeros(8)]).reshape(1, 3, 2, 1, 4)
    found = decode.to_uint8(pixels)
    assert found.shape == (2, 1, 4, 3)
    assert found[..., 0].flatten().tolist() == [0, 0, 0, 127, 127, 254, 255, 255]
    assert found[..., 1].flatten().tolist() == [255, 255, 254, 127, 127, 0, 0, 0]
    assert (found[..., 2] == 127).all()
    pixels[0, 1, 1, 0, 2] = float("nan")
    with pytest.raises(EngineError, match="frame 1 "):
        decode.to_uint8(pixels)
    with pytest.raises(InputError, match=r"\[3, 2, 1, 4\]"):
        decode.to_uint8(pixels[0])


@pytest.mark.parametrize(
    ("shape", "named"),
    [((1, 3, 4, 8, 8), "4 frames"), ((1, 3, 5, 8, 12), "12x8"), ((1, 3, 5, 8), "5, 8"), ((1, 3, 0, 8, 8), "0")],
)
def test_encode_refuses(shape: tuple[int, ...], named: str) -> None:
    with pytest.raises(InputError, match=named):
        decode.encode_video(torch.zeros(shape), lambda part: part, Tiling())


@pytest.mark.parametrize(
    "numbers", [{"size": 100}, {"stride": 0}, {"frames": 8, "frame_stride": 12}, {"frame_stride": 3}]
)
def test_tiling_refuses(numbers: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="stride"):
        Tiling(**numbers)


MEASURE = """
import sys, torch
from vino_rt.decode import LIBRARY_BYTES, decode_latents, decode_memory
from vino_rt.models.vino.vae import VaeDecoder
from vino_rt.models.vino.vae_config import VaeConfig
from vino_rt.tiling import Tiling
def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
torch.set_num_threads(1)
frames, height, width, spatial = map(int, sys.argv[1:])
config = VaeConfig(3, 3, 4, ("HunyuanVideoDownBlock3D",) * 4, ("HunyuanVideoUpBlock3D",) * 4, (16, 32, 32, 32), 1,
                   "silu", 8, 0.476986, 8, 4, True)
tiling = Tiling(spatial=bool(spatial), size=64, stride=48)
decoder = VaeDecoder(config).eval().requires_grad_(False)
latents = torch.randn(1, 4, (frames + 3) // 4, height // 8, width // 8)
before = status("VmRSS")
decode_latents(latents, decoder, tiling, 0.5)
bound = decode_memory(frames, height, width, config, tiling)
print(status("VmHWM") - before, bound, bound - LIBRARY_BYTES)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("size", [(17, 128, 112, 0), (21, 112, 96, 1)])
def test_memory_stays_under_the_stated_bound(size: tuple[int, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, size)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    used, bound, tensors = map(int, done.stdout.split())
    assert used < bound
    assert used > tensors / 4, "the bound says nothing"


def test_memory_grows_by_the_result_alone(config: VaeConfig) -> None:
    def bytes_of(frames: int, side: int, spatial: bool) -> int:
        return decode.decode_memory(frames, side, side, config, Tiling(spatial=spatial))

    longer = bytes_of(89, 480, False) - bytes_of(17, 480, False)
    assert longer == 4 * (3 * 72 * 480**2 + 2 * 4 * 18 * 60**2)
    assert bytes_of(17, 1024, True) < bytes_of(17, 1024, False) / 3
