"""The autoencoder's two engine modules against the library, against the golden cases and in ONNX Runtime."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vino_rt.errors import ModelError
from vino_rt.models.vino.vae import VaeDecoder, VaeEncoder
from vino_rt.models.vino.vae_config import MAX_TILE_LATENTS, VaeConfig
from vino_rt.models.vino.vae_layers import frame_causal_attention

GOLDEN = Path(__file__).parents[1] / "golden" / "vino"
RELEASE = GOLDEN / "e2e_ckpt" / "HunyuanVideo-tiny" / "vae"
PREFIXES = {VaeEncoder: ("encoder.", "quant_conv."), VaeDecoder: ("decoder.", "post_quant_conv.")}
# Measured: 1.8e-6 against the library up to 5x9x8 latents, 3e-6 in ONNX Runtime; outputs deviate by 0.2 to 1.
LIMIT = 1e-5
SHAPES = [(1, 4, 6), (2, 5, 3), (3, 2, 7), (5, 4, 6), (1, 1, 1), (5, 1, 2), (4, 9, 8)]


@pytest.fixture(scope="module")
def config() -> VaeConfig:
    return VaeConfig.from_json(json.loads((RELEASE / "config.json").read_text()))


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return load_file(RELEASE / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def stock(config: VaeConfig, weights: dict[str, Tensor]) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo

    model = AutoencoderKLHunyuanVideo(**vars(config))
    model.load_state_dict(weights)
    return model.eval()


def loaded(kind: type[VaeEncoder] | type[VaeDecoder], config: VaeConfig, weights: dict[str, Tensor]) -> Any:
    module = kind(config)
    module.load_state_dict({key: value for key, value in weights.items() if key.startswith(PREFIXES[kind])})
    return module.eval().requires_grad_(False)


def tile(module: nn.Module, latents: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(latents * 100 + height * 10 + width)
    if isinstance(module, VaeDecoder):
        return 2 * torch.randn(1, module.config.latent_channels, latents, height, width, generator=generator)
    return 2 * torch.rand(1, 3, 4 * latents - 3, 8 * height, 8 * width, generator=generator) - 1


@pytest.mark.parametrize("shape", SHAPES)
def test_tile_equals_library(
    config: VaeConfig, weights: dict[str, Tensor], stock: Any, shape: tuple[int, int, int]
) -> None:
    encoder, decoder = loaded(VaeEncoder, config, weights), loaded(VaeDecoder, config, weights)
    pixels, latents = tile(encoder, *shape), tile(decoder, *shape)
    with torch.no_grad():
        expected_moments = stock.quant_conv(stock.encoder(pixels))
        expected_pixels = stock.decoder(stock.post_quant_conv(latents))
    torch.testing.assert_close(encoder(pixels), expected_moments, rtol=0, atol=LIMIT)
    torch.testing.assert_close(decoder(latents), expected_pixels, rtol=0, atol=LIMIT)


def test_golden_decode_tile_is_not_the_untiled_pass(config: VaeConfig, weights: dict[str, Tensor]) -> None:
    # The golden decode of 5 latents went through tiles; the module alone must give the other answer.
    case = GOLDEN / "vae_decode_f5"
    given, expected = load_file(case / "inputs.safetensors"), load_file(case / "outputs.safetensors")
    untiled = json.loads((case / "meta.json").read_text())["tiled_vs_untiled_maxabs"]
    gap = (loaded(VaeDecoder, config, weights)(given["z"]) - expected["sample"]).abs().max().item()
    assert gap == pytest.approx(untiled, abs=LIMIT)


@pytest.mark.parametrize("kind", [VaeEncoder, VaeDecoder])
def test_meta_device_and_released_names(kind: type[VaeEncoder] | type[VaeDecoder]) -> None:
    full = VaeConfig.from_json(json.loads((GOLDEN / "keymap" / "configs.json").read_text())["vae"])
    shapes = json.loads((GOLDEN / "keymap" / "vae.json").read_text())
    with torch.device("meta"):
        module = kind(full)
    expected = {key: shape for key, shape in shapes.items() if key.startswith(PREFIXES[kind])}
    assert {key: list(value.shape) for key, value in module.state_dict().items()} == expected


def test_attention_is_frame_causal() -> None:
    generator = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(1, 4, 3, 5, generator=generator) for _ in range(3))
    out = frame_causal_attention(query, key, value)
    mask = torch.arange(12)[:, None] // 3 >= torch.arange(12)[None] // 3
    rows = [part.flatten(1, 2) for part in (query, key, value)]
    dense = nn.functional.scaled_dot_product_attention(rows[0], rows[1], rows[2], attn_mask=mask)
    torch.testing.assert_close(out.flatten(1, 2), dense, rtol=0, atol=1e-6)
    key[:, 3], value[:, 3] = 7.0, 7.0
    later = frame_causal_attention(query, key, value)
    assert torch.equal(later[:, :3], out[:, :3])
    assert not torch.equal(later[:, 3], out[:, 3])


def test_attention_in_bfloat16_keeps_its_dtype() -> None:
    query, key, value = (torch.randn(1, 5, 7, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    low = frame_causal_attention(query.bfloat16(), key.bfloat16(), value.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), frame_causal_attention(query, key, value), rtol=0, atol=0.05)


def test_export_with_more_frames_than_unrolled_gives_nan() -> None:
    class Attention(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return frame_causal_attention(rows, rows, rows, max_frames=2)

    dim = torch.export.Dim("t", min=2, max=9)
    program = torch.export.export(Attention(), (torch.ones(1, 3, 2, 4),), dynamic_shapes=({1: dim},)).module()
    rows = torch.randn(1, 4, 2, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(program(rows)[:, :2], frame_causal_attention(rows, rows, rows)[:, :2])
    assert program(rows)[:, 2:].isnan().all()


@pytest.mark.parametrize("kind", [VaeEncoder, VaeDecoder])
def test_torch_export_serves_every_tile(
    config: VaeConfig, weights: dict[str, Tensor], kind: type[VaeEncoder] | type[VaeDecoder]
) -> None:
    module = loaded(kind, config, weights)
    program = torch.export.export(module, (tile(module, 3, 4, 5),), dynamic_shapes=module.dynamic_shapes()).module()
    for shape in [(2, 5, 3), (5, 4, 6)]:
        torch.testing.assert_close(program(tile(module, *shape)), module(tile(module, *shape)), rtol=0, atol=LIMIT)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [VaeEncoder, VaeDecoder])
def test_onnx_runtime_serves_every_tile(
    config: VaeConfig, weights: dict[str, Tensor], kind: type[VaeEncoder] | type[VaeDecoder], tmp_path: Path
) -> None:
    import onnxruntime

    module = loaded(kind, config, weights)
    program = torch.onnx.export(
        module,
        (tile(module, 3, 4, 5),),
        dynamo=True,
        opset_version=23,
        optimize=False,
        dynamic_shapes=module.dynamic_shapes(),
        input_names=["given"],
        output_names=["found"],
        verbose=False,
    )
    assert program is not None
    assert set(module.state_dict()) <= set(program.model.graph.initializers)
    assert {node.domain for node in program.model.graph} == {""}
    program.save(tmp_path / "tile.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "tile.onnx", providers=["CPUExecutionProvider"])
    for shape in SHAPES:
        given = tile(module, *shape)
        (found,) = session.run(["found"], {"given": given.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), module(given), rtol=0, atol=LIMIT)
    too_long = tile(module, MAX_TILE_LATENTS + 1, 2, 3)
    (found,) = session.run(["found"], {"given": too_long.numpy()})
    assert torch.from_numpy(found).isnan().any()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"shift_factor": 0.1}, "shift_factor"),
        ({"latent_channels": "16"}, "latent_channels"),
        ({"layers_per_block": True}, "layers_per_block"),
        ({"block_out_channels": [8, 8, 16, 18]}, "18"),
        ({"block_out_channels": [8, 8, 16]}, "down_block_types"),
        ({"block_out_channels": []}, "channels"),
        ({"scaling_factor": 0}, "scaling_factor"),
        ({"act_fn": "gelu"}, "act_fn is 'gelu', expected one of silu, swish"),
        ({"down_block_types": ["DownBlock2D"] * 4}, "DownBlock2D"),
        ({"up_block_types": ["UpBlock2D"] * 4}, "UpBlock2D"),
        ({"temporal_compression_ratio": 8}, "8, 8"),
    ],
)
def test_config_refuses(change: dict[str, Any], named: str) -> None:
    data = json.loads((RELEASE / "config.json").read_text())
    with pytest.raises(ModelError, match=named):
        VaeConfig.from_json(data | change)
    del data["act_fn"]
    with pytest.raises(ModelError, match="act_fn"):
        VaeConfig.from_json(data)


def test_middle_block_without_attention(config: VaeConfig, weights: dict[str, Tensor]) -> None:
    plain = VaeConfig(**{**vars(config), "mid_block_add_attention": False})
    assert not any("attentions" in key for key in VaeDecoder(plain).state_dict())
    assert VaeDecoder(plain)(torch.ones(1, config.latent_channels, 2, 1, 3)).shape == (1, 3, 5, 8, 24)
