"""Random weights that keep values finite through many layers: a trained model's are not needed to time one."""

import math
from typing import Any

import torch
from torch import Tensor


def random_weight(name: str, shape: tuple[int, ...], **how: Any) -> Tensor:
    """A parameter of that name and shape, float32 unless `how`, which `torch.randn` takes, says otherwise.

    Matrices keep the variance of what they multiply, scales lie about 1 and shifts about 0.
    """
    spread = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.02
    centre = float(len(shape) == 1 and name.endswith("weight"))
    return torch.randn(shape, **how).mul_(spread).add_(centre)
