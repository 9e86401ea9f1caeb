"""The reference modules with our Triton kernels in the place of their hot operations; nothing is built.

On a CUDA device Triton compiles a kernel when it is first called, unless its cache on the disk holds it. Warming up
calls each before the first request. A later request may still compile: for another number of branches and for a short
sequence. On a CPU the kernels' references run, which shows that the model hands them what they expect.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from vino_rt.backends.base import CPU, Engine, Kind
from vino_rt.backends.eager import EagerBackend, EagerEngine, load_module
from vino_rt.errors import EngineError
from vino_rt.models.vino.ops import Operations, operations


class TritonEngine(EagerEngine):
    """A reference module run by PyTorch, its hot operations by kernels."""

    def __init__(self, kind: Kind, module: torch.nn.Module, device: torch.device, bodies: Operations) -> None:
        super().__init__(kind, module, device)
        self._bodies = bodies

    def _run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        with operations(self._bodies):
            return super()._run(inputs)


class TritonBackend(EagerBackend):
    """PyTorch with our kernels; a CUDA device needs Triton."""

    name = "triton"

    def __init__(self, device: torch.device = CPU) -> None:
        super().__init__(device)
        if device.type == "cuda" and find_spec("triton") is None:
            raise EngineError("backend 'triton' needs its library; install it with: pip install 'vino-rt[gpu]'")

    def open(self, kind: Kind, artefact: Path | None, weights: Sequence[Mapping[str, Tensor]]) -> list[Engine]:
        """See `EagerBackend.open`."""
        from vino_rt.kernels import kernel_operations

        bodies = kernel_operations()
        return [TritonEngine(kind, load_module(kind, layer), self.device, bodies) for layer in self.placed(weights)]
