"""The reference modules with our Triton kernels in place of their hot operations; nothing is built ahead of time.

On a CUDA device Triton compiles a kernel when it is first called, unless its cache on the disk has it, and builds a
small launcher in C: the machine needs a C compiler and Python's headers. Opening the backend compiles one kernel, so
that a machine that cannot is refused then. `Runtime.warm_up` calls every kernel before the first request; a later
request may still compile for another number of branches or a short sequence. On a CPU the kernels' references run,
which shows that the model hands them what they expect.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from vino_rt.backends.base import Engine, Kind
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
    """PyTorch with our kernels; a CUDA device needs Triton, a C compiler and Python's headers."""

    name = "triton"

    def check(self, kind: Kind) -> None:
        """Raise EngineError where Triton is missing or cannot compile on this machine."""
        super().check(kind)
        if self.device.type != "cuda":
            return
        if find_spec("triton") is None:
            raise EngineError("backend 'triton' needs its library; install it with: pip install 'vino-rt[gpu]'")
        from vino_rt.kernels import compile_one_kernel

        compile_one_kernel(self.device)

    def open(self, kind: Kind, artefact: Path | None, weights: Sequence[Mapping[str, Tensor]]) -> list[Engine]:
        """See `EagerBackend.open`; checks that kernels can be compiled before weights are moved."""
        from vino_rt.kernels import kernel_operations

        self.check(kind)
        bodies = kernel_operations()
        return [TritonEngine(kind, load_module(kind, layer), self.device, bodies) for layer in self.placed(weights)]
