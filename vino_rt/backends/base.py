"""The protocol of backends: engines that take and return named, typed, checked tensors. Knows no library, no model.

A `Kind` says what an engine computes: its reference module, the names of its weights, and its tensors. A `Backend`
makes an `Engine` from a kind, its weights and an artefact of the store. Some libraries do not check their inputs and
read past the end of a tensor that is too small, so `Engine.run` checks every name, type, shape and stride first.
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
"""Quantised precisions with float32 inputs and outputs: `int8` computes the matmuls of linear layers in int8,
`int8-attention` those of attention as well.
"""
REBUILD = "build it again with `vino-rt build`"
"""Advice in errors about an engine that is damaged or out of date."""
SMALLER = "use a smaller size or fewer frames"
"""Advice in errors about an engine that ran out of memory."""
QUANTISED = frozenset({INT8, INT8_ATTENTION})
DTYPES = {**PRECISIONS, "int32": torch.int32, "int64": torch.int64}
CPU = torch.device("cpu")


def run_elsewhere(kind: str) -> str:
    """Advice in errors about a kind that a backend cannot run."""
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
    """The tensors of one engine kind, in the order in which its module takes and returns them."""

    kind: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def fit(self, device: torch.device, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert some of the inputs to what an engine takes: on its device, in the spec's dtypes, contiguous."""
        dtypes = {spec.name: DTYPES[spec.dtype] for spec in self.inputs}
        return {name: tensor.to(device, dtypes[name]).contiguous() for name, tensor in tensors.items()}

    def check(self, inputs: Mapping[str, Tensor], device: torch.device = CPU) -> dict[str, int]:
        """Check tensors against the spec, in any order, and return the dynamic sizes by name.

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
    """Prefix of the module's parameter names in that directory; `{layer}` stands for the layer's number."""
    layers: int
    """Number of engines of this kind in the model; they share everything but their weights."""
    build: Callable[[], nn.Module]
    """Make the reference module; under `torch.device("meta")` it allocates nothing."""
    examples: Callable[[], list[dict[str, Tensor]]]
    """Deterministic inputs to verify with. The first is also traced; its dynamic sizes differ and are at least 2."""

    dynamic: Callable[[], tuple[Mapping[int, Any], ...]] | None = None
    """Dynamic shapes for `torch.export` where sizes depend on each other; None: every named size is independent."""
    precision: str = "float32"
    """Dtype of the weights and of all floating tensors except the `wide` ones; or a quantised precision."""
    wide: frozenset[str] = frozenset()
    """Tensors that are float32 at every precision, such as timesteps and rotation tables."""
    table: Callable[[], Mapping[str, tuple[int, ...]]] | None = None
    """Names and shapes of the weights, for modules that are slow to import; None: read off the module."""

    @property
    def name(self) -> str:
        """Name of the kind, as recipes and the store spell it."""
        return self.spec.kind

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the weights."""
        return PRECISIONS.get(self.precision, torch.float32)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes of a layer's weights, named as in the module."""
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
    """Build a module whose parameters have this dtype; works on the meta device, where a later cast would fail."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return build()
    finally:
        torch.set_default_dtype(before)


class Engine(ABC):
    """One engine kind with the weights of a layer, ready to run; not thread-safe."""

    def __init__(self, spec: EngineSpec, device: torch.device = CPU) -> None:
        self.spec, self.device = spec, device
        self._names = tuple(tensor.name for tensor in spec.inputs)

    def fit(self, **tensors: Tensor) -> dict[str, Tensor]:
        """Convert some of the inputs to what this engine takes: on its device, in its dtypes, contiguous."""
        return self.spec.fit(self.device, tensors)

    def run(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Check the inputs against the spec, compute, and return the outputs in the spec's order.

        Raises EngineError for inputs that do not match or a library that fails, OutOfMemory.
        """
        self.spec.check(inputs, self.device)
        return self._run({name: inputs[name] for name in self._names})

    @abstractmethod
    def _run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Compute on checked inputs, which come in the spec's order."""

    def close(self) -> None:  # noqa: B027 (most engines hold nothing but memory)
        """Release what the engine holds; it must not be run afterwards."""


@dataclass(frozen=True)
class BackendOptions:
    """Options for making a backend; each backend uses those that apply to it."""

    device: torch.device = CPU
    threads: int | None = None
    """CPU threads of a compiled engine; None: the library's default."""
    max_autotune: bool = False
    """Whether AOTInductor packages are built with autotuned kernels."""


class Backend(ABC):
    """A library that runs engines. The class attributes tell other code how to treat it."""

    name: str
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    """Precisions that it computes in."""
    sized: bool = False
    """Whether an artefact serves only the sizes of the recipe's buckets."""
    needs_artefact: bool = True
    """Whether its engines are built and stored."""
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
        """Make the backend from a recipe's options."""
        return cls(options.device)

    @abstractmethod
    def version(self) -> str:
        """Version of the library, part of an engine's key; EngineError naming what to install if it is missing."""

    @abstractmethod
    def open(self, kind: Kind, artefact: Path | None, weights: Sequence[Mapping[str, Tensor]]) -> list[Engine]:
        """Open one engine per layer.

        artefact: path of the built engine, None if the backend needs none. weights: one mapping per layer, with the
        parameter names of the kind's module. Raises EngineError and OutOfMemory.
        """

    def check(self, kind: Kind) -> None:
        """Raise EngineError if this machine cannot run engines of a kind; called before any is built or opened."""
        self.version()

    def required(self, kind: Kind, artefact: Path | None) -> Path:
        """The artefact; EngineError if there is none."""
        if artefact is None:
            raise EngineError(f"backend {self.name!r} needs a built engine for kind {kind.name!r}")
        return artefact

    def target(self) -> tuple[str, ...]:
        """What an artefact depends on besides this machine's architecture; part of an engine's key."""
        return ()

    def has_constants(self, kind: Kind) -> bool:
        """Whether an artefact of this kind contains weights and so serves only the model that it was built with."""
        return False
