"""Reference module -> exported program in which every dynamic size is symbolic; no weights are ever allocated.

Two forms: with weights as parameters of the program, for ONNX files, or with weights as arguments after the inputs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from vino_rt.backends.base import CPU, Kind


class WithArguments(nn.Module):
    """Wraps a module so that it is called with a list of inputs and a list of weights."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        # In a tuple, so that its weights are not registered here: they would become constants of the program.
        self._box = (module,)
        self._names = tuple(module.state_dict())

    def forward(self, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
        """Run the module with these weights, in the order of its state dict, instead of its own."""
        (module,) = self._box
        named = dict(zip(self._names, weights, strict=True))
        return torch.func.functional_call(module, named, tuple(inputs))


def export_program(kind: Kind) -> torch.export.ExportedProgram:
    """Trace a kind's module on its first example; its weights are the program's parameters."""
    mode, module = _fake_module(kind)
    return torch.export.export(module, tuple(_fake_inputs(kind, mode)), dynamic_shapes=_dynamic_shapes(kind))


def export_with_arguments(kind: Kind, device: torch.device = CPU) -> torch.export.ExportedProgram:
    """Trace a kind's module with two lists as arguments: the spec's inputs, and the weights in state dict order.

    Traced as if on the device, which need not be present.
    """
    mode, module = _fake_module(kind)
    example = list(kind.examples()[0].values())
    with mode:
        weights = [torch.empty_like(tensor, device=device) for tensor in module.state_dict().values()]
        inputs = [torch.empty_like(tensor, device=device) for tensor in example]
    shapes: tuple[list[Any], list[Any]] = (list(_dynamic_shapes(kind)), [{} for _ in weights])
    return torch.export.export(WithArguments(module), (inputs, weights), dynamic_shapes=shapes)


def _fake_module(kind: Kind) -> tuple[FakeTensorMode, nn.Module]:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        return mode, kind.build().eval().requires_grad_(False)


def _fake_inputs(kind: Kind, mode: FakeTensorMode) -> list[Tensor]:
    return [mode.from_tensor(tensor) for tensor in kind.examples()[0].values()]


def _dynamic_shapes(kind: Kind) -> tuple[Any, ...]:
    if kind.dynamic is not None:
        return kind.dynamic()
    return tuple(
        {i: torch.export.Dim.DYNAMIC for i, dim in enumerate(spec.dims) if isinstance(dim, str)}
        for spec in kind.spec.inputs
    )
