"""Building blocks of the MMDiT in plain PyTorch: token rows in, token rows out. They know no batches and no files.

Shape letters: L rows of the joint sequence, I rows of the image stream, T rows of the text stream, S steps,
D width, H heads, C channels of a head. Parameter names are the released ones.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6
SINUSOID_SIZE = 256
MAX_PERIOD = 10000.0


def split_heads(x: Tensor, channels: int) -> Tensor:
    """[L, D] -> [L, H, C] for heads of C `channels`; L may be 0."""
    return x.reshape(x.shape[0], x.shape[1] // channels, channels)


def widen(x: Tensor) -> Tensor:
    """x in float32, or unchanged if it is wider: the float64 reference of engines must not be narrowed."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def embedding(rows: int, width: int) -> nn.Embedding:
    """An uninitialised embedding: random initialisation on the meta device imports torch's compiler, taking seconds."""
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


class JoinedLinear(nn.Linear):
    """A Linear whose input channels come in several tensors, to be concatenated."""

    def forward(self, *parts: Tensor) -> Tensor:
        """[L, I1], [L, I2], ... -> [L, O]."""
        return super().forward(torch.cat(parts, dim=-1))


def gelu(x: Tensor) -> Tensor:
    """The tanh form of GELU (MODEL.md section 4).

    Training in bfloat16 on a CPU uses the exact form: the two differ by at most 5e-4, an eighth of bfloat16's rounding
    at 1, and PyTorch's kernel and gradient of the exact form take a fifth of the time.
    """
    exact = x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
    return F.gelu(x, approximate="none" if exact else "tanh")


def sinusoid(values: Tensor) -> Tensor:
    """Embed scalars [S] as [S, 256], cosines first, periods up to 10000, in float32 or wider (MODEL.md section 4)."""
    half = SINUSOID_SIZE // 2
    wide = widen(values)
    frequency = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half, dtype=wide.dtype, device=values.device) / half)
    angle = wide[:, None] * frequency[None]
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


def rope_table(positions: Tensor, axes: tuple[int, int, int], theta: float) -> tuple[Tensor, Tensor]:
    """Rotation of each row from its integer position, computed in float32 (MODEL.md section 4).

    positions: integer [L, 3] as (t, h, w). axes: channels of a head that each of the three rotates. theta: base.
    Returns cosines and sines, float32 [L, C/2], one entry per interleaved channel pair; position 0 rotates nothing.
    """
    angles = []
    for axis, size in enumerate(axes):
        exponent = torch.arange(0, size, 2, dtype=torch.float32, device=positions.device) / size
        angles.append(positions[:, axis, None].float() * (1.0 / theta**exponent)[None])
    angle = torch.cat(angles, dim=-1)
    return angle.cos(), angle.sin()


class RMSNorm(nn.Module):
    """RMS normalisation: variance in float32, cast back, then times the weight (MODEL.md section 3)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] -> the same shape and dtype."""
        wide = widen(x)
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + NORM_EPS)
        return (wide * scale).to(x.dtype) * self.weight


class EmbeddingMLP(nn.Module):
    """Linear, SiLU, Linear: embeds times, guidance and pooled text."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(size, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[S, size] -> [S, D]."""
        out: Tensor = self.linear_2(F.silu(self.linear_1(x)))
        return out


class Projection(nn.Module):
    """A Linear under a given name, to match released parameter names such as `net.0.proj` and `norm.linear`."""

    def __init__(self, name: str, size: int, width: int) -> None:
        super().__init__()
        self.add_module(name, nn.Linear(size, width))
        self._name = name

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] -> [..., width]."""
        out: Tensor = self.get_submodule(self._name)(x)
        return out


class FeedForward(nn.Module):
    """Two-layer MLP of a block; `silu` in the refiner, tanh GELU elsewhere."""

    def __init__(self, width: int, hidden: int, *, silu: bool = False) -> None:
        super().__init__()
        self.silu = silu
        self.net = nn.ModuleList([Projection("proj", width, hidden), nn.Identity(), nn.Linear(hidden, width)])

    def forward(self, x: Tensor) -> Tensor:
        """[L, D] -> [L, D]."""
        hidden = self.net[0](x)
        hidden = F.silu(hidden) if self.silu else gelu(hidden)
        out: Tensor = self.net[2](hidden)
        return out
