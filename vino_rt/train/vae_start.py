"""A start for the autoencoder in closed form: what a linear code of this shape can do, before the first step.

Gradient descent from random kernels needs many thousand steps until a picture is more than its background. Here every
strided convolution of the encoder begins as the principal components of the patches it covers, every convolution of the
decoder behind an upsampling as the least-squares guess of the encoder's features at that level, and both output layers
are fitted behind their norm and activation. Residual branches end in zero and so do nothing yet. What is not fitted
keeps small random kernels, for the gradient to use.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vino_rt.models.vino.vae import VaeDecoder, VaeEncoder
from vino_rt.models.vino.vae_layers import CausalUpsample

RIDGE = 1e-3
"""Ridge of the least-squares fits, as a share of the inputs' mean square."""
ROWS = 40000
"""Most samples that a fit takes."""
OFFSET = 2.0
"""Constant, in units of the features' spread, that keeps a norm over channels from dividing their size away."""
QUIET = 0.1
"""Factor of random kernels beside fitted ones."""


@torch.no_grad()
def fit_start(encoder: VaeEncoder, decoder: VaeDecoder, pixels: Tensor) -> None:
    """Fit both halves to pixels [B, 3, F, H, W] in [-1, 1]; residual branches must end in zero.

    Draws random kernels from PyTorch's global generator.
    """
    _fit_encoder(encoder, pixels)
    _fit_decoder(decoder, encoder(pixels).chunk(2, dim=1)[0], pixels)


def _fit_encoder(encoder: VaeEncoder, pixels: Tensor) -> None:
    stock: Any = encoder.encoder
    first = _kernel(stock.conv_in)
    first.mul_(QUIET)
    for colour in range(3):
        first[colour] = 0
        first[colour, colour, 2, 1, 1] = 1
    hidden, known = stock.conv_in(pixels), 3
    for block in stock.down_blocks:
        hidden = _pass_resnets(block, hidden, known)
        for layer in block.downsamplers or ():
            known = _fit_down(layer.conv, hidden[:, :known])
            hidden = layer(hidden)
    hidden = stock.mid_block(hidden)
    _keep_size(stock.down_blocks[-2].downsamplers[0].conv, hidden, encoder.config.norm_num_groups)
    hidden = stock.mid_block(stock.down_blocks[-1].resnets[0](_again(stock, pixels)))
    codes = min(encoder.config.latent_channels, hidden.shape[1])
    spread = hidden.std(dim=(0, 2, 3, 4))
    best = spread.argsort(descending=True)[:codes]
    target = hidden[:, best]
    target = (target - target.mean(dim=(0, 2, 3, 4), keepdim=True)) / spread[best].view(1, -1, 1, 1, 1)
    seen = stock.conv_act(stock.conv_norm_out(hidden))
    _fit(stock.conv_out, seen, target, slots=range(codes))
    _identity(encoder.quant_conv.weight)


def _again(stock: Any, pixels: Tensor) -> Tensor:
    """The encoder up to its last level, once more."""
    hidden: Tensor = stock.conv_in(pixels)
    for block in list(stock.down_blocks)[:-1]:
        hidden = block(hidden)
    return hidden


def _fit_decoder(decoder: VaeDecoder, latents: Tensor, pixels: Tensor) -> None:
    stock: Any = decoder.decoder
    _identity(decoder.post_quant_conv.weight)
    assert decoder.post_quant_conv.bias is not None
    decoder.post_quant_conv.bias.zero_()
    kernel = _kernel(stock.conv_in)
    kernel.mul_(QUIET)
    nn.init.orthogonal_(middle := torch.empty(kernel.shape[:2]))
    kernel[:, :, 2, 1, 1] = middle
    hidden = stock.mid_block(stock.conv_in(decoder.post_quant_conv(latents)))
    known, wanted = hidden.shape[1], [pixels]
    for layer in (stock.up_blocks[2].upsamplers[0], stock.up_blocks[1].upsamplers[0]):
        frames = int(layer.factor[0])
        axes, rows, grid = _components(wanted[0], frames)
        count = min(len(axes), _kernel(layer.conv).shape[1])
        wanted.insert(0, (rows @ axes[:count].T).view(*grid, count).permute(0, 4, 1, 2, 3))
    for block in stock.up_blocks:
        hidden = _pass_resnets(block, hidden, known)
        for layer in block.upsamplers or ():
            target = wanted.pop(0)
            known = target.shape[1]
            if not wanted:
                target = _mixed(target, _kernel(layer.conv).shape[0])
            _fit_up(layer, hidden, target)
            hidden = layer(hidden)
    seen = stock.conv_act(stock.conv_norm_out(hidden))
    _fit(stock.conv_out, seen, pixels, slots=range(3))


def _pass_resnets(block: Any, hidden: Tensor, known: int) -> Tensor:
    """Through residual blocks that do nothing yet; where the width changes, the channels that count are kept."""
    for resnet in block.resnets:
        if resnet.conv_shortcut is not None:
            kernel = _kernel(resnet.conv_shortcut)
            kernel.mul_(QUIET)
            _identity(kernel[:, : min(known, len(kernel))])
        hidden = resnet(hidden)
    return hidden


def _fit_down(conv: Any, hidden: Tensor) -> int:
    """Principal components of the patches under a strided convolution; how many channels they fill."""
    kernel, bias = _kernel(conv), conv.conv.bias
    frames = conv.conv.stride[0]
    axes, rows, _ = _components(hidden, frames)
    count = min(len(kernel), len(axes))
    chosen = axes[:count].reshape(count, hidden.shape[1], frames, 2, 2)
    kernel.mul_(QUIET)
    kernel[:count] = 0
    kernel[:count, : hidden.shape[1], 3 - frames :, 1:, 1:] = chosen
    bias[:count] = -axes[:count] @ rows.mean(0)
    return count


def _components(hidden: Tensor, frames: int) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Patches of `frames` x 2 x 2 as a causal convolution of that stride has them: axes, largest first, rows, grid."""
    padded = F.pad(hidden, (0, 0, 0, 0, frames - 1, 0), mode="replicate")
    patches = padded.unfold(2, frames, frames).unfold(3, 2, 2).unfold(4, 2, 2).permute(0, 2, 3, 4, 1, 5, 6, 7)
    rows = patches.flatten(0, 3).flatten(1)
    _, _, axes = torch.linalg.svd(_some(rows - rows.mean(0)), full_matrices=False)
    return axes, rows, tuple(patches.shape[:4])


def _keep_size(conv: Any, hidden: Tensor, groups: int) -> None:
    """Spread channels over the groups of the coming norm, large ones first, half of each group offset either way."""
    kernel, bias = _kernel(conv), conv.conv.bias
    order = torch.arange(len(kernel)).view(-1, groups).T.flatten()
    sign = torch.ones(groups, len(kernel) // groups)
    sign[:, len(kernel) // groups // 2 :] = -1
    kernel.copy_(kernel[order].clone())
    bias.copy_(bias[order] + OFFSET * hidden.std() * sign.flatten())


def _fit_up(layer: CausalUpsample, hidden: Tensor, target: Tensor) -> None:
    repeated = F.interpolate(hidden, scale_factor=layer.factor, mode="nearest")[:, :, int(layer.factor[0]) - 1 :]
    _fit(layer.conv, repeated, target, slots=range(target.shape[1]))


def _mixed(target: Tensor, width: int) -> Tensor:
    """Colours as `width` mixtures, offset to either side, so that a norm over groups of them keeps their size."""
    mixture = torch.randn(width, target.shape[1])
    sign = torch.ones(width)
    sign[1::2] = -1
    mixed = torch.einsum("wc,bcfhx->bwfhx", mixture, target)
    return mixed + (OFFSET * mixed.std() * sign).view(1, -1, 1, 1, 1)


def _fit(conv: Any, inputs: Tensor, target: Tensor, slots: range) -> None:
    """Least squares: kernel and bias of a causal convolution of stride 1 that give `target` in the channels `slots`."""
    kernel, bias = _kernel(conv), conv.conv.bias
    size = kernel.shape[2]
    padded = F.pad(inputs, conv.time_causal_padding, mode="replicate")
    patches = padded.unfold(2, size, 1).unfold(3, size, 1).unfold(4, size, 1)
    b, f, y, x = (torch.randint(length, (ROWS,)) for length in (target.shape[0], *target.shape[2:]))
    rows, wanted = patches[b, :, f, y, x].flatten(1).double(), target[b, :, f, y, x].double()
    mean, level = rows.mean(0), wanted.mean(0)
    rows, wanted = rows - mean, wanted - level
    gram = rows.T @ rows
    gram.diagonal().add_(RIDGE * gram.diagonal().mean() + 1e-9)
    solution = torch.linalg.solve(gram, rows.T @ wanted)
    kernel.mul_(QUIET)
    kernel[slots] = solution.T.reshape(len(slots), *kernel.shape[1:]).to(kernel.dtype)
    bias[slots] = (level - mean @ solution).to(bias.dtype)


def _some(rows: Tensor) -> Tensor:
    return rows[torch.randperm(len(rows))[:ROWS]]


def _kernel(conv: Any) -> Tensor:
    weight: Tensor = conv.conv.weight.data
    return weight


def _identity(kernel: Tensor) -> None:
    """Channels that exist on both sides go through a 1x1x1 kernel as they are."""
    count = min(kernel.shape[:2])
    kernel[:, :count] = 0
    kernel[:count, :count, 0, 0, 0] = torch.eye(count)
