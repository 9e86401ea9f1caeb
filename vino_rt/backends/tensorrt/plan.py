"""An opened plan: its tensors compared with the kind's, its profiles, and the memory its contexts compute in."""

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
    """One block that all contexts of a backend compute in: on one stream they never run at the same time."""

    def __init__(self, device: Device) -> None:
        self._device, self._size = device, 1
        self._block: Tensor | None = None
        self._outgrown: list[Tensor] = []

    def reserve(self, size: int) -> None:
        """Have at least this many bytes; a larger block than before is another one."""
        self._size = max(self._size, size)

    def block(self) -> Tensor:
        """The block, uint8, allocated when first used; contexts that were given another must be given this one."""
        if self._block is None or self._block.numel() < self._size:
            if self._block is not None:
                # Launches that a caller recorded before compute in it whenever they are replayed.
                self._outgrown.append(self._block)
            with named_shortage(f"TensorRT computes in one block of {self._size / GIB:.1f} GiB; {ROOM}"):
                self._block = self._device.empty((self._size,), torch.uint8)
        return self._block


@dataclass(frozen=True)
class Profile:
    """What a plan was built for: the smallest and largest shape of each input of the spec."""

    index: int
    least: Mapping[str, Shape]
    most: Mapping[str, Shape]

    @property
    def exact(self) -> bool:
        """Whether there is one size only."""
        return self.least == self.most

    @property
    def elements(self) -> int:
        """Of the largest inputs together."""
        return sum(torch.Size(shape).numel() for shape in self.most.values())

    def takes(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether inputs of these shapes lie within."""
        return all(
            a <= size <= b for n, s in shapes.items() for a, size, b in zip(self.least[n], s, self.most[n], strict=True)
        )


@dataclass(eq=False)
class Plan:
    """A deserialised engine and what its contexts share."""

    kind: Kind
    inputs: tuple[str, ...]
    """Those of the kind that the plan reads."""
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
        """EngineMismatch naming a tensor that the plan lacks, has too many, or has in another type, shape or place."""
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
        # A size that the model leaves open may be fixed in a plan, and nothing else.
        if len(shape) != len(dims) or any(b not in (a, -1) for a, b in zip(shape, dims, strict=True)):
            raise EngineMismatch(f"{where} has shape {shape}, the model's {dims} (-1: any); {REBUILD}")
        if self.engine.get_tensor_location(name) != self.library.TensorLocation.DEVICE:
            raise EngineMismatch(f"{where} is read on the host, which no engine of ours may do; {REBUILD}")

    def profile_for(self, shapes: Mapping[str, Shape]) -> Profile:
        """The smallest profile that takes inputs of these shapes; EngineError naming those there are."""
        fits = [profile for profile in self.profiles if profile.takes(shapes)]
        if not fits:
            legal = "; ".join(f"{dict(p.least)} to {dict(p.most)}" for p in self.profiles)
            raise EngineError(
                f"{self.kind.name}: inputs of shapes {dict(shapes)} fit no profile of the plan: {legal}. Take a size "
                "that was built, or add a [[bucket]] to the recipe and build again"
            )
        return min(fits, key=lambda profile: profile.elements)

    def new_context(self) -> Any:
        """An execution context without memory of its own; OutOfMemory where there is no room for one."""
        strategy = self.library.ExecutionContextAllocationStrategy.USER_MANAGED
        what = f"{self.kind.name}: TensorRT made no execution context"
        return made(self.logger, what, lambda: self.engine.create_execution_context(strategy))

    def must(self, done: bool, what: str) -> None:
        """EngineError or OutOfMemory with what TensorRT said, for a call that returned False.

        What it said is forgotten even if the call succeeded: a later failure must not be explained by it.
        """
        said = self.logger.said()
        if not done:
            raise refusal(f"{self.kind.name}: TensorRT refused {what}", said)
