"""The protocol every backend fulfils: named, typed, checked tensors in and out; knows no library and no model.

A `Kind` says what one engine computes: its reference module, its weights' names and its tensors. A `Backend` turns a
kind, its weights and an artefact of the store into an `Engine`. Some libraries do not check what they are given and
read past the end, so `Engine.run` checks every name, type, shape and stride first.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vino_rt.errors import EngineError

Dim = int | str
"""A fixed size, or the name of a dynamic one; equal names mean equal sizes."""
DTYPES = {"float32": torch.float32, "int32": torch.int32, "int64": torch.int64}


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of one input or output."""

    name: str
    dims: tuple[Dim, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class EngineSpec:
    """All tensors of one engine, in call order."""

    kind: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def check(self, inputs: Mapping[str, Tensor]) -> dict[str, int]:
        """Compare the given tensors with the spec and return the dynamic sizes by name.

        Raises EngineError naming the tensor and what differs.
        """
        names = [spec.name for spec in self.inputs]
        if list(inputs) != names:
            raise EngineError(f"{self.kind}: given tensors {list(inputs)}, expected {names} in this order")
        sizes: dict[str, int] = {}
        for spec in self.inputs:
            self._check_one(spec, inputs[spec.name], sizes)
        return sizes

    def _check_one(self, spec: TensorSpec, tensor: Tensor, sizes: dict[str, int]) -> None:
        where = f"{self.kind}: tensor {spec.name!r}"
        if tensor.dtype is not DTYPES[spec.dtype]:
            raise EngineError(f"{where} is {tensor.dtype}, expected {spec.dtype}")
        if tensor.dim() != len(spec.dims):
            raise EngineError(f"{where} has shape {tuple(tensor.shape)}, expected {spec.dims}")
        if not tensor.is_contiguous():
            raise EngineError(f"{where} is not contiguous (strides {tensor.stride()}); call .contiguous() first")
        for size, dim in zip(tensor.shape, spec.dims, strict=True):
            expected = sizes.setdefault(dim, size) if isinstance(dim, str) else dim
            if size != expected:
                raise EngineError(f"{where} has shape {tuple(tensor.shape)}; {dim} is {expected} in this call")


@dataclass(frozen=True)
class Kind:
    """One engine kind of a model family: what it computes, on which weights, with which tensors."""

    spec: EngineSpec
    part: str
    """Directory of the model that holds the weights."""
    prefix: str
    """What precedes the module's own parameter names in that directory; `{layer}` stands for the layer's number."""
    layers: int
    """How many engines of this kind the model runs; more than one share everything but their weights."""
    build: Callable[[], nn.Module]
    """Make the reference module; call it under `torch.device("meta")` to allocate nothing."""
    examples: Callable[[], list[dict[str, Tensor]]]
    """Deterministic inputs to trace (the first: every dynamic size at least 2, all different) and to verify with."""

    dynamic: Callable[[], tuple[Mapping[int, Any], ...]] | None = None
    """How dynamic sizes depend on each other, for `torch.export`; None when every named size is free."""

    @property
    def name(self) -> str:
        """Name of the kind, as recipes and the store spell it."""
        return self.spec.kind


class Engine(ABC):
    """One compiled kind with its weights, ready to run; `run` may be called from one thread at a time."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec

    def run(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Check the inputs against the spec, compute, and return the outputs in the spec's order."""
        self.spec.check(inputs)
        return self._run(inputs)

    @abstractmethod
    def _run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]: ...

    def close(self) -> None:  # noqa: B027 (most engines hold nothing but memory)
        """Give back what the engine holds; it must not be run afterwards."""


class Backend(ABC):
    """A library that runs engines."""

    name: str

    @abstractmethod
    def version(self) -> str:
        """Version of the library, part of an engine's key; EngineError naming what to install when it is missing."""

    @abstractmethod
    def open(self, kind: Kind, artefact: Path | None, weights: Sequence[Mapping[str, Tensor]]) -> list[Engine]:
        """Open one engine per layer; `weights` has one mapping per layer, names as in the kind's module."""

    def target(self) -> tuple[str, ...]:
        """What of this machine an artefact is tied to beyond its architecture, part of an engine's key."""
        return ()

    def settings(self) -> dict[str, Any]:
        """What else changes the result of this backend (threads, flags), for `inspect`."""
        return {}
