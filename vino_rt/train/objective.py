"""What the training loop asks of the thing it trains; the loop knows this protocol and nothing else of it.

Step s (from 0) of W processes that each accumulate A micro-batches takes the micro-batches s*A*W + a*W + rank, so that
W processes of A equal one process of A*W.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Loss:
    """The loss of one micro-batch."""

    value: Tensor
    """Scalar that is differentiated: the mean over the samples of the micro-batch."""
    parts: Mapping[str, float]
    """What to log beside it, by name; a micro-batch names only what it has."""


def noise_generator(seed: int, index: int) -> torch.Generator:
    """The generator of a micro-batch's noise, for any seed that a stage may have."""
    return torch.Generator().manual_seed((seed * 1_000_003 + index) % (1 << 63))


class Objective(Protocol):
    """A model, its data and its loss."""

    @property
    def model(self) -> nn.Module:
        """Everything trainable and what its forward needs; float32 master weights; frozen parts need no gradient."""

    def batch(self, index: int) -> Any:
        """Micro-batch `index`, counted over the whole run: a picklable tree of tensors on the CPU.

        A pure function of config, seed and index: worker processes call it, and a resumed run calls it again. A field
        or entry `keys` with the names of the samples, where there is one, appears in messages and is counted.
        """

    def loss(self, batch: Any, index: int) -> Loss:
        """Loss of a micro-batch on the model's device; its noise comes from a generator seeded by seed and index."""

    def shards(self) -> Sequence[nn.Module]:
        """Submodules that are sharded, or recomputed, on their own, innermost first; called through `forward` only."""

    def sheet(self) -> NDArray[np.uint8] | None:
        """Contact sheet uint8 [H, W, 3] of samples drawn with the weights the model has now; None: there is none."""

    def export(self, out: Path) -> None:
        """Write a model directory with the weights the model has now into the empty directory `out`."""
