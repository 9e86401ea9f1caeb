"""The objective `vae`: the autoencoder learns to give pictures and clips back through latents that a model can learn.

The squared error of the pixels, which alone is minimal only where shapes are (L1 has a long rest at the background's
colour: its median does not see what covers less than half), a share of L1 on pixels and on their differences along
height, width and time, which goes on where squares vanish and keeps rims sharp, and a small KL term that keeps latents
near a unit normal. The posterior is sampled, so that the decoder knows latents that are a little off, as a diffusion
model makes them. There is no adversary: the small world has no fine texture to invent. It knows nothing of prompts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vino_rt.backends.base import PRECISIONS
from vino_rt.decode import LOGVAR_RANGE, encode_video, posterior, to_uint8
from vino_rt.errors import ModelError, UsageError
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.prepare import vae_pixels
from vino_rt.models.vino.vae import VaeDecoder, VaeEncoder
from vino_rt.models.vino.vae_config import VaeConfig
from vino_rt.request import Pixels
from vino_rt.tiling import Tiling
from vino_rt.train.export import Precision, export_model
from vino_rt.train.objective import Loss, noise_generator
from vino_rt.train.sample import Fault
from vino_rt.train.settings import take_table
from vino_rt.train.sheet import grid_sheet
from vino_rt.train.source import Source
from vino_rt.train.vae_start import fit_start

SCALE_BATCHES = 24
"""Held-out batches that the scale of latents is measured on."""

BRANCH_ENDS = ("conv2.conv", "to_out.0")
"""Last layers of residual branches, which begin at zero."""
FIRST_LOGVAR = -6.0
"""Log variance of the posterior before training."""
START_BATCHES, START_SAMPLES = 160, 64
"""Batches looked through, and samples used, for the start in closed form."""


@dataclass(frozen=True)
class VaeTable:
    """The table `[settings]` of a stage with objective `vae`."""

    fresh: bool = False
    """Forget the weights of the model directory and begin anew."""
    l1: float = 0.2
    """Weight of L1, on pixels and on differences of neighbours, against the squared error."""
    kl: float = 1e-4
    """Weight of the KL term, in nats for a latent value against the squared error of a pixel value in [-1, 1]."""
    export: Precision = "float32"

    def __post_init__(self) -> None:
        for name in ("l1", "kl"):
            if getattr(self, name) < 0:
                raise UsageError(f"[settings]: {name} is {getattr(self, name)}, expected a weight of at least 0")


class Autoencoder(nn.Module):
    """Encoder and decoder under their released names."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.encoder_part, self.decoder_part = VaeEncoder(config), VaeDecoder(config)

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """pixels [B,3,F,H,W] in [-1,1], noise [B,C,T,h,w] -> reconstruction, mean, log variance."""
        mean, logvar = self.encoder_part(pixels).float().chunk(2, dim=1)
        logvar = logvar.clamp(*LOGVAR_RANGE)
        return self.decoder_part(mean + (0.5 * logvar).exp() * noise), mean, logvar

    def tensors(self) -> dict[str, Tensor]:
        """Weights under the names of a model directory's `vae`."""
        return {**self.encoder_part.state_dict(), **self.decoder_part.state_dict()}


@dataclass(frozen=True, eq=False)
class VaeBatch:
    """Targets of one batch, uint8 [B, F, H, W, 3], with the samples' names."""

    pixels: Tensor
    keys: tuple[str, ...]
    faults: tuple[Fault, ...] = ()


class VaeObjective:
    """See the module; built by `open_objective`."""

    def __init__(self, model: ModelDir, source: Source, table: Mapping[str, object], seed: int) -> None:
        """Raises UsageError for an entry of the table that cannot be used, ModelError for weights of another config."""
        self.directory, self.source, self.seed = model, source, seed
        self.table = take_table(table, VaeTable, "[settings]")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model: Autoencoder = Autoencoder(model.vae)
            if self.table.fresh:
                start_fresh(self.model, source)
        if not self.table.fresh:
            names = {**self.model.tensors()}
            weights = model.part("vae").load(names, torch.float32, {name: t.shape for name, t in names.items()})
            self.model.encoder_part.load_state_dict({n: weights[n] for n in self.model.encoder_part.state_dict()})
            self.model.decoder_part.load_state_dict({n: weights[n] for n in self.model.decoder_part.state_dict()})
        channels_last(self.model)

    def batch(self, index: int) -> VaeBatch:
        """The targets of batch `index`."""
        loaded = self.source.load(index)
        pixels = torch.from_numpy(np.stack([sample.target for sample in loaded.samples]))
        return VaeBatch(pixels, tuple(sample.key for sample in loaded.samples), loaded.faults)

    def loss(self, batch: VaeBatch, index: int) -> Loss:
        """See the module; parts are `l1`, `edges`, `kl` and the mean `psnr` in dB of the pixels."""
        self.source.count(batch.faults)
        device = next(self.model.parameters()).device
        pixels = pixel_tensor(batch.pixels.to(device))
        count, _, frames, height, width = pixels.shape
        shape = count, self.directory.vae.latent_channels, (frames - 1) // 4 + 1, height // 8, width // 8
        noise = torch.randn(shape, generator=noise_generator(self.seed, index))
        back, mean, logvar = self.model(pixels, noise.to(device))
        back = back.float()
        l1 = (back - pixels).abs().mean()
        edges = edge_difference(back, pixels)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        error = (back - pixels).square().mean()
        # Not `math.log10`, which raises where the error is infinite: that is for the loop to tell.
        psnr = 10 * torch.log10(4 / error.detach().double().clamp(min=1e-10))
        parts = {"l1": l1.item(), "edges": edges.item(), "kl": kl.item(), "psnr": psnr.item()}
        return Loss(error + self.table.l1 * (l1 + edges) + self.table.kl * kl, parts)

    def shards(self) -> Sequence[nn.Module]:
        """Encoder and decoder."""
        return [self.model.encoder_part, self.model.decoder_part]

    @torch.no_grad()
    def sheet(self) -> Pixels:
        """Held-out samples above what comes back: uint8 [H, W, 3]."""
        rows = []
        for number in range(4):
            target = self.source.held_out().load(number).samples[0].target
            back = to_uint8(self.model.decoder_part(self._latents(target)).float())
            rows += [target[:: max(1, len(target) // 4)], back.numpy()[:: max(1, len(target) // 4)]]
        return grid_sheet(rows)

    def export(self, out: Path) -> None:
        """Write the model directory with this autoencoder, and the scale at which its latents have unit variance.

        ModelError when there is no such scale.
        """
        spread = self.latent_spread()
        if not 0 < spread < math.inf:
            raise ModelError(
                f"latents of held-out samples have the root mean square {spread}, which nothing can be scaled by: this "
                "autoencoder is broken and no model of it was written; begin anew with a lower learning rate"
            )
        configs = {"vae": {"scaling_factor": round(1 / spread, 6)}}
        export_model(
            self.directory, out, {"vae": self.model.tensors()}, dtype=PRECISIONS[self.table.export], configs=configs
        )

    @torch.no_grad()
    def latent_spread(self) -> float:
        """Root mean square of latents over held-out samples."""
        squares = [
            self._latents(sample.target).square().mean()
            for number in range(SCALE_BATCHES)
            for sample in self.source.held_out().load(number).samples[:8]
        ]
        return float(torch.stack(squares).mean().sqrt())

    def _latents(self, target: Pixels) -> Tensor:
        device = next(self.model.parameters()).device
        return posterior(encode_video(vae_pixels(target).to(device), self.model.encoder_part, Tiling()))


def channels_last(module: nn.Module) -> None:
    """Lay kernels out with channels last, where convolutions over few channels take a quarter less time on a CPU."""
    for parameter in module.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)


def start_fresh(model: Autoencoder, source: Source) -> None:
    """Weights to train from nothing, from PyTorch's global generator and a few samples; see `vae_start`.

    Residual branches begin at zero. The posterior begins narrow, so that the decoder sees latents and not their noise.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv3d | nn.Linear):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5 * (not name.endswith(BRANCH_ENDS)))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    fit_start(model.encoder_part, model.decoder_part, pixel_tensor(_start_samples(source)))
    last = model.encoder_part.quant_conv
    channels = last.out_channels // 2
    assert last.bias is not None
    with torch.no_grad():
        last.weight[channels:] = 0
        last.bias[channels:] = FIRST_LOGVAR


def _start_samples(source: Source) -> Tensor:
    """uint8 [B, F, H, W, 3]: targets of the size of which the first batches have most pixels."""
    found: dict[tuple[int, ...], list[Pixels]] = {}
    for index in range(START_BATCHES):
        for sample in source.load(index).samples:
            found.setdefault(sample.target.shape, []).append(sample.target)
    most = max(found.values(), key=lambda targets: sum(target.size for target in targets[:START_SAMPLES]))
    return torch.from_numpy(np.stack(most[:START_SAMPLES]))


def pixel_tensor(pixels: Tensor) -> Tensor:
    """uint8 [B, F, H, W, 3] -> float32 [B, 3, F, H, W] in [-1, 1], channels last in memory."""
    return (pixels.permute(0, 4, 1, 2, 3).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last_3d)


def edge_difference(first: Tensor, second: Tensor) -> Tensor:
    """Mean L1 between the differences of neighbours along every axis of [B,C,F,H,W] that has any."""
    gap = first - second
    parts = [gap.diff(dim=axis).abs().mean() for axis in (2, 3, 4) if gap.shape[axis] > 1]
    return torch.stack(parts).mean()
