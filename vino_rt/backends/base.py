"""The protocol every backend fulfils: named, typed, checked tensors in and out; knows no library and no model.

A `Kind` says what one engine computes: its reference module, its weights' names and its tensors. A `Backend` turns a
kind, its weights and an artefact of the store into an `Engine`. Some libraries do not check what they are given and
read past the end, so `Engine.run` checks every name, type, shape and stride first.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vino_rt.errors import EngineError

Dim = int | str
"""A fixed size, or the name of a dynamic one; equal names mean equal sizes."""
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Element types that an engine's weights and values may have, by the name a recipe gives them."""
INT8, INT8_ATTENTION = "int8", "int8-attention"
"""Quantised precisions. Inputs and outputs are float32; the matmuls of linear layers, and with the second name those of
attention as well, are computed in int8.
"""
REBUILD = "build it again with `vino-rt build`"
"""The way out that errors name where an engine is not what it should be."""
SMALLER = "use a smaller size or fewer frames"
"""The way out that errors name where an engine runs out of memory."""
QUANTISED = frozenset({INT8, INT8_ATTENTION})
DTYPES = {**PRECISIONS, "int32": torch.int32, "int64": torch.int64}
CPU = torch.device("cpu")


def run_elsewhere(kind: str) -> str:
    """The way out that errors name where a backend cannot run a kind."""
    return f'let the recipe run this kind with PyTorch instead: [kinds] {kind} = "eager"'


def torch_version() -> str:
    """Version of torch without its local build tag."""
    return str(torch.__version__).split("+")[0]


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of one input or output."""

    name: str
    dims: tuple[Dim, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class EngineSpec:
    """All tensors of one engine, in the order in which its module takes and returns them."""

    kind: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def fit(self, device: torch.device, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert some of the inputs to what an engine on this device takes: there, in the spec's types, contiguous."""
        dtypes = {spec.name: DTYPES[spec.dtype] for spec in self.inputs}
        return {name: tensor.to(device, dtypes[name]).contiguous() for name, tensor in tensors.items()}

    def check(self, inputs: Mapping[str, Tensor], device: torch.device = CPU) -> dict[str, int]:
        """Compare the given tensors, in any order, with the spec and return the dynamic sizes by name.

        Raises EngineError naming the tensor and what differs: name, device, type, shape or strides.
        """
        names = [spec.name for spec in self.inputs]
        if inputs.keys() != set(names):
            raise EngineError(f"{self.kind}: given tensors {', '.join(inputs)}; expected {', '.join(names)}")
        for name, tensor in inputs.items():
            if tensor.device != device:
                raise EngineError(f"{self.kind}: tensor {name!r} is on {tensor.device}, the engine on {device}")
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
    precision: str = "float32"
    """Type of the weights and of all floating tensors but the `wide` ones."""
    wide: frozenset[str] = frozenset()
    """Tensors that are float32 at any precision: times and rotation tables lose their meaning in fewer bits."""
    table: Callable[[], Mapping[str, tuple[int, ...]]] | None = None
    """Names and shapes of the weights where the module's code takes long to import; None: read off the module."""

    @property
    def name(self) -> str:
        """Name of the kind, as recipes and the store spell it."""
        return self.spec.kind

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the weights."""
        return PRECISIONS.get(self.precision, torch.float32)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes of a layer's weights, as the module has them."""
        if self.table is not None:
            return self.table()
        with torch.device("meta"):
            return {name: tuple(tensor.shape) for name, tensor in self.build().state_dict().items()}

    def at(self, precision: str) -> "Kind":
        """This kind in another precision: one of `PRECISIONS` or of `QUANTISED`."""
        if precision == self.precision:
            return self
        if precision in QUANTISED:
            return replace(self.at("float32"), precision=precision)
        dtype = PRECISIONS[precision]
        build, examples = self.build, self.examples

        def cast(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
            values = [spec.dtype in PRECISIONS and spec.name not in self.wide for spec in specs]
            return tuple(replace(s, dtype=precision) if v else s for s, v in zip(specs, values, strict=True))

        spec = EngineSpec(self.spec.kind, cast(self.spec.inputs), cast(self.spec.outputs))
        return replace(
            self,
            spec=spec,
            build=lambda: _made_in(dtype, build),
            examples=lambda: [spec.fit(CPU, example) for example in examples()],
            precision=precision,
        )


def _made_in(dtype: torch.dtype, build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module with parameters of a type; a cast afterwards would fail on tensors without storage."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return build()
    finally:
        torch.set_default_dtype(before)


class Engine(ABC):
    """One compiled kind with its weights, ready to run; `run` may be called from one thread at a time."""

    def __init__(self, spec: EngineSpec, device: torch.device = CPU) -> None:
        self.spec, self.device = spec, device
        self._names = tuple(tensor.name for tensor in spec.inputs)

    def fit(self, **tensors: Tensor) -> dict[str, Tensor]:
        """Convert some of the inputs to what this engine takes: on its device, in its types, contiguous."""
        return self.spec.fit(self.device, tensors)

    def run(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Check the inputs against the spec, compute, and return the outputs in the spec's order."""
        self.spec.check(inputs, self.device)
        return self._run({name: inputs[name] for name in self._names})

    @abstractmethod
    def _run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Compute on checked inputs, which come in the spec's order."""

    def close(self) -> None:  # noqa: B027 (most engines hold nothing but memory)
        """Give back what the engine holds; it must not be run afterwards."""


@dataclass(frozen=True)
class BackendOptions:
    """What a backend is made with; each takes of it what concerns it."""

    device: torch.device = CPU
    threads: int | None = None
    """How many a compiled engine on the CPU computes with; None: the library's own default."""
    max_autotune: bool = False
    """Whether packages of AOTInductor were built with a search for the fastest kernels."""


class Backend(ABC):
    """A library that runs engines. Its class attributes are what code outside needs to know of it."""

    name: str
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    """Precisions that it computes in."""
    sized: bool = False
    """Whether an artefact serves the sizes of the recipe's buckets alone."""
    needs_artefact: bool = True
    """Whether its engines are built and kept in the store."""
    pool_per_kind: bool = False
    """Whether each kind keeps a memory pool of its own; else all kinds take activations from one."""
    offloads: bool = False
    """Whether engines open fast enough to be opened anew for each run, so that weights can stay in host memory."""
    embeds_kernels: bool = False
    """Whether an artefact for a GPU holds compiled kernels of `vino_kernels`."""

    def __init__(self, device: torch.device = CPU) -> None:
        self.device = device

    @classmethod
    def create(cls, options: BackendOptions) -> "Backend":
        """Make a backend for a device that it supports."""
        return cls(options.device)

    @abstractmethod
    def version(self) -> str:
        """Version of the library, part of an engine's key; EngineError naming what to install when it is missing."""

    @abstractmethod
    def open(self, kind: Kind, artefact: Path | None, weights: Sequence[Mapping[str, Tensor]]) -> list[Engine]:
        """Open one engine per layer; `weights` has one mapping per layer, names as in the kind's module."""

    def check(self, kind: Kind) -> None:
        """Raise EngineError where this machine cannot run engines of a kind, before any is built or opened."""
        self.version()

    def required(self, kind: Kind, artefact: Path | None) -> Path:
        """The artefact, for backends that cannot do without; EngineError where there is none."""
        if artefact is None:
            raise EngineError(f"backend {self.name!r} needs a built engine for kind {kind.name!r}")
        return artefact

    def target(self) -> tuple[str, ...]:
        """What of this machine an artefact is tied to beyond its architecture, part of an engine's key."""
        return ()

    def has_constants(self, kind: Kind) -> bool:
        """Whether an artefact of this kind serves only the model whose weights it was built with."""
        return False
