"""An opened plan: checks of its tensors against the kind's, its profiles, and the scratch memory of its contexts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vino_rt.backends.base import DTYPES, REBUILD, Kind
from vino_rt.backends.tensorrt.device import Device
from vino_rt.backends.tensorrt.library import ROOM, dtype_of, made, refusal
from vino_rt.errors import EngineError, EngineMismatch
from vino_rt.memory import GIB, named_shortage

Shape = tuple[int, ...]


class Scratch:
    """One scratch block for all contexts of a backend; on a single stream they never run at the same time."""

    def __init__(self, device: Device) -> None:
        self._device, self._size = device, 1
        self._block: Tensor | None = None
        self._outgrown: list[Tensor] = []

    def reserve(self, size: int) -> None:
        """Require at least this many bytes; `block` then returns a new block if the current one is too small."""
        self._size = max(self._size, size)

    def block(self) -> Tensor:
        """The current block, uint8, allocated on first use. It may change: contexts must be given the current one."""
        if self._block is None or self._block.numel() < self._size:
            if self._block is not None:
                # Keep it alive: recorded launches go on using it whenever they are replayed.
                self._outgrown.append(self._block)
            with named_shortage(f"TensorRT computes in one block of {self._size / GIB:.1f} GiB; {ROOM}"):
                self._block = self._device.empty((self._size,), torch.uint8)
        return self._block


@dataclass(frozen=True)
class Profile:
    """Sizes that a plan was built for: the smallest and largest shape of each input."""

    index: int
    least: Mapping[str, Shape]
    most: Mapping[str, Shape]

    @property
    def exact(self) -> bool:
        """Whether it has a single size."""
        return self.least == self.most

    @property
    def elements(self) -> int:
        """Number of elements of all inputs at their largest."""
        return sum(torch.Size(shape).numel() for shape in self.most.values())

    def takes(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether inputs of these shapes lie within the profile."""
        return all(
            a <= size <= b for n, s in shapes.items() for a, size, b in zip(self.least[n], s, self.most[n], strict=True)
        )


@dataclass(eq=False)
class Plan:
    """A deserialised TensorRT engine and everything its contexts share."""

    kind: Kind
    inputs: tuple[str, ...]
    """The kind's inputs that the plan reads."""
    library: Any
    runtime: Any
    """Must live as long as the engine."""
    engine: Any
    logger: Any
    device: Device
    scratch: Scratch

    def __post_init__(self) -> None:
        self.profiles = tuple(self._profile(index) for index in range(self.engine.num_optimization_profiles))
        for profile in self.profiles:
            self.scratch.reserve(self.engine.get_device_memory_size_for_profile_v2(profile.index))

    def _profile(self, index: int) -> Profile:
        found = {name: self.engine.get_tensor_profile_shape(name, index) for name in self.inputs}
        return Profile(index, *({n: tuple(dims[i]) for n, dims in found.items()} for i in (0, 2)))

    def check_tensors(self, weights: Mapping[str, Tensor]) -> None:
        """Raise EngineMismatch naming a tensor that is missing, unknown, or differs in dtype, shape or location."""
        mode, spec = self.library.TensorIOMode, self.kind.spec
        held = {}
        for index in range(self.engine.num_io_tensors):
            name = self.engine.get_tensor_name(index)
            held[name] = self.engine.get_tensor_mode(name)
        wanted = dict.fromkeys((*self.inputs, *weights), mode.INPUT)
        wanted |= dict.fromkeys((s.name for s in spec.outputs), mode.OUTPUT)
        if held != wanted:
            differing = sorted(n for n in {*held, *wanted} if held.get(n) != wanted.get(n))
            raise EngineMismatch(f"{self.kind.name}: the plan differs in tensors {differing}; {REBUILD}")
        for tensor in (*(s for s in spec.inputs if s.name in self.inputs), *spec.outputs):
            dims = tuple(-1 if isinstance(dim, str) else dim for dim in tensor.dims)
            self._check_one(tensor.name, DTYPES[tensor.dtype], dims)
        for name, weight in weights.items():
            self._check_one(name, weight.dtype, tuple(weight.shape))

    def _check_one(self, name: str, dtype: torch.dtype, dims: Shape) -> None:
        where = f"{self.kind.name}: tensor {name!r} of the plan"
        if (found := dtype_of(self.engine.get_tensor_dtype(name))) is not dtype:
            raise EngineMismatch(f"{where} is {found}, the model's is {dtype}; {REBUILD}")
        shape = tuple(self.engine.get_tensor_shape(name))
        # A plan may fix a size that is dynamic in the model, but must agree in everything else.
        if len(shape) != len(dims) or any(b not in (a, -1) for a, b in zip(shape, dims, strict=True)):
            raise EngineMismatch(f"{where} has shape {shape}, the model's {dims} (-1: any); {REBUILD}")
        if self.engine.get_tensor_location(name) != self.library.TensorLocation.DEVICE:
            raise EngineMismatch(f"{where} is read on the host, which no engine of ours may do; {REBUILD}")

    def profile_for(self, shapes: Mapping[str, Shape]) -> Profile:
        """The smallest profile that takes inputs of these shapes; EngineError naming all profiles if there is none."""
        fits = [profile for profile in self.profiles if profile.takes(shapes)]
        if not fits:
            legal = "; ".join(f"{dict(p.least)} to {dict(p.most)}" for p in self.profiles)
            raise EngineError(
                f"{self.kind.name}: inputs of shapes {dict(shapes)} fit no profile of the plan: {legal}. Take a size "
                "that was built, or add a [[bucket]] to the recipe and build again"
            )
        return min(fits, key=lambda profile: profile.elements)

    def new_context(self) -> Any:
        """An execution context without device memory of its own; OutOfMemory or EngineError if it cannot be made."""
        strategy = self.library.ExecutionContextAllocationStrategy.USER_MANAGED
        what = f"{self.kind.name}: TensorRT made no execution context"
        return made(self.logger, what, lambda: self.engine.create_execution_context(strategy))

    def must(self, done: bool, what: str) -> None:
        """Raise EngineError or OutOfMemory with TensorRT's errors if a call returned False.

        Clears the logged errors even if the call succeeded, so that they do not explain a later failure.
        """
        said = self.logger.said()
        if not done:
            raise refusal(f"{self.kind.name}: TensorRT refused {what}", said)
