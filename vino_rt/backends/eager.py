"""The reference modules behind the engine protocol; every other backend is compared with them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vino_rt.backends.base import PRECISIONS, Backend, Engine, Kind, torch_version
from vino_rt.errors import ModelError


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 matmuls and convolutions on CUDA devices in float32 inside the block, and not in TF32.

    By default cuDNN's convolutions round their inputs to TF32, which has the mantissa of float16.
    """
    cudnn: Any = torch.backends.cudnn
    settings = cudnn.conv, torch.backends.cuda.matmul
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


class EagerEngine(Engine):
    """A reference module run by PyTorch."""

    def __init__(self, kind: Kind, module: nn.Module, device: torch.device) -> None:
        super().__init__(kind.spec, device)
        self._module = module
        self._exact = device.type == "cuda" and kind.precision == "float32"

    @torch.inference_mode()
    def _run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        scope: AbstractContextManager[None] = full_float32() if self._exact else nullcontext()
        with scope:
            outputs = self._module(*inputs.values())
        return outputs if isinstance(outputs, tuple) else (outputs,)


class EagerBackend(Backend):
    """PyTorch without a compiler; it needs no artefact."""

    name = "eager"
    precisions = tuple(PRECISIONS)
    needs_artefact = False
    offloads = True

    def version(self) -> str:
        """Version of torch without its local build tag."""
        return torch_version()

    def open(self, kind: Kind, artefact: Path | None, weights: Sequence[Mapping[str, Tensor]]) -> list[Engine]:
        """Load each layer's weights into a module built on the meta device; copies only to move between devices."""
        return [EagerEngine(kind, load_module(kind, layer), self.device) for layer in self.placed(weights)]

    def placed(self, weights: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """The weights of each layer on the device."""
        return [{name: tensor.to(self.device) for name, tensor in layer.items()} for layer in weights]


def load_module(kind: Kind, weights: Mapping[str, Tensor]) -> nn.Module:
    """Reference module of a kind on exactly the given weights; ModelError names missing, unknown and misshapen ones."""
    with torch.device("meta"):
        module = kind.build()
    try:
        module.load_state_dict(dict(weights), assign=True)
    except RuntimeError as error:
        raise ModelError(f"weights of engine kind {kind.name!r} do not fit: {error}") from error
    return module.eval().requires_grad_(False)
