"""Cases of kind vae: pixels to the posterior, or latents to pixels, with the tiling the case was made with."""

import json

import torch
from torch import Tensor

from tests.parity.case import BrokenCase, Case, release_part
from tests.parity.measure import BF16, VAE, Judge
from vino_rt.decode import LOGVAR_RANGE, decode_latents, encode_video
from vino_rt.models.vino.vae import VaeDecoder, VaeEncoder
from vino_rt.models.vino.vae_config import VaeConfig
from vino_rt.tiling import Tiling

WEIGHTS = "diffusion_pytorch_model.safetensors"


def judge(case: Case, judge: Judge) -> None:
    """Judge what there is: `sample` in and the posterior out, or `z` in and `sample` out; plain and in bfloat16."""
    encodes = "sample" in case.inputs
    if not encodes:
        case.input("z")
    exact = run(case, torch.float32)
    low = run(case, torch.bfloat16) if any(name.endswith(BF16) for name in case.outputs) else {}
    for name in case.outputs:
        if name in exact:
            judge.close(name, exact[name], VAE)
        elif name.endswith(BF16) and name.removesuffix(BF16) in low:
            judge.low_precision(name, low[name.removesuffix(BF16)])


def run(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """Outputs by golden name."""
    config, weights = load(case)
    grid = tiling(case)
    with torch.inference_mode():
        if "sample" in case.inputs:
            encoder = module(VaeEncoder(config), weights).to(dtype)
            return posterior_parts(encode_video(case.inputs["sample"].to(dtype), encoder, grid))
        decoder = module(VaeDecoder(config), weights).to(dtype)
        # `z` is already divided by the scaling factor.
        return {"sample": decode_latents(case.inputs["z"].to(dtype), decoder, grid, 1.0)}


def posterior_parts(moments: Tensor) -> dict[str, Tensor]:
    """Moments as the release names their parts; the log variance is clamped (MODEL.md section 5)."""
    mean, logvar = moments.chunk(2, dim=1)
    logvar = logvar.clamp(*LOGVAR_RANGE)
    return {"parameters": moments, "mean": mean, "logvar": logvar, "std": (0.5 * logvar).exp()}


def load(case: Case) -> tuple[VaeConfig, dict[str, Tensor]]:
    """The autoencoder's config and weights: the case's own, else those of the release."""
    from safetensors.torch import load_file

    directory = release_part(case.release, "vae") / "vae"
    own = case.path / "config.json"
    config = VaeConfig.from_json(
        {
            k: v
            for k, v in json.loads((own if own.is_file() else directory / "config.json").read_text()).items()
            if k[0] != "_"
        }
    )
    return config, case.weights() or load_file(directory / WEIGHTS)


def module(half: VaeEncoder | VaeDecoder, weights: dict[str, Tensor]) -> VaeEncoder | VaeDecoder:
    """Give encoder or decoder its weights out of those of both."""
    half.load_state_dict({name: weights[name] for name in half.state_dict()})
    return half.eval().requires_grad_(False)


def tiling(case: Case) -> Tiling:
    """The tiling that `meta.json` records; BrokenCase for one that ours does not have."""
    given = case.meta.get("tiling_defaults", {})
    sides = {given.get(f"tile_sample_min_{side}", 256) for side in ("height", "width")}
    strides = {given.get(f"tile_sample_stride_{side}", 192) for side in ("height", "width")}
    framewise = given.get("use_framewise_encoding", True) and given.get("use_framewise_decoding", True)
    if not framewise or len(sides) != 1 or len(strides) != 1:
        raise BrokenCase(f"{case.path}: tiling {given} is not ours: tiles are square and cut in time")
    return Tiling(
        frames=given.get("tile_sample_min_num_frames", 16),
        frame_stride=given.get("tile_sample_stride_num_frames", 12),
        spatial=given.get("use_tiling", False),
        size=sides.pop(),
        stride=strides.pop(),
    )
