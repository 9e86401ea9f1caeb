"""The reference modules themselves behind the engine protocol: the judge of every other backend."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vino_rt.backends.base import Backend, Engine, Kind
from vino_rt.errors import ModelError


class EagerEngine(Engine):
    """A reference module run by PyTorch."""

    def __init__(self, kind: Kind, module: nn.Module) -> None:
        super().__init__(kind.spec)
        self._module = module

    @torch.inference_mode()
    def _run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        outputs = self._module(*inputs.values())
        return outputs if isinstance(outputs, tuple) else (outputs,)


class EagerBackend(Backend):
    """PyTorch without a compiler; it needs no artefact."""

    name = "eager"

    def version(self) -> str:
        """Version of torch without its local build tag."""
        return str(torch.__version__).split("+")[0]

    def open(self, kind: Kind, artefact: Path | None, weights: Sequence[Mapping[str, Tensor]]) -> list[Engine]:
        """Put each layer's weights, uncopied, into a module built without storage."""
        return [EagerEngine(kind, load_module(kind, layer)) for layer in weights]


def load_module(kind: Kind, weights: Mapping[str, Tensor]) -> nn.Module:
    """Reference module of a kind on exactly the given weights; ModelError names missing, unknown and misshapen ones."""
    with torch.device("meta"):
        module = kind.build()
    try:
        module.load_state_dict(dict(weights), assign=True)
    except RuntimeError as error:
        raise ModelError(f"weights of engine kind {kind.name!r} do not fit: {error}") from error
    return module.eval().requires_grad_(False)
