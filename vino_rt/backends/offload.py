"""Engines whose weights stay in host memory and are on the GPU only while they run.

For kinds that run once per schedule or prompt: the AdaLN Linears alone are 6.8 GB of VINO in bfloat16 and are read once
per schedule (MODEL.md section 9). The arithmetic is that of the engine itself, so that results are the same bits.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vino_rt.backends.base import Backend, Engine, Kind


class OffloadedEngine(Engine):
    """One layer of a kind, opened by its backend for each run and dropped after it."""

    def __init__(self, backend: Backend, kind: Kind, weights: Mapping[str, Tensor]) -> None:
        """weights: in host memory, names as in the kind's module."""
        super().__init__(kind.spec, backend.device)
        self._backend, self._kind, self._weights = backend, kind, weights

    def _run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        moved = {name: weight.to(self.device) for name, weight in self._weights.items()}
        (engine,) = self._backend.open(self._kind, None, [moved])
        del moved
        outputs = engine.run(**inputs)
        engine.close()
        del engine
        if self.device.type == "cuda":
            # Otherwise PyTorch keeps the memory, where no other library that uses the GPU finds it.
            torch.cuda.empty_cache()
        return outputs


def open_offloaded(backend: Backend, kind: Kind, weights: Sequence[Mapping[str, Tensor]]) -> list[Engine]:
    """One engine per layer on weights in host memory; the backend must be one that `offloads`."""
    assert backend.offloads, f"{backend.name} keeps weights on the device"
    return [OffloadedEngine(backend, kind, layer) for layer in weights]
