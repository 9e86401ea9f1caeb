"""The implementations of each operation, by name, and the calls that each supports. It calls none of them.

`vino` is our kernel, `vino_tma` our kernel for Hopper and later GPUs, `torch` plain PyTorch operations, `flash_varlen`
PyTorch's flash attention that reads the bounds on the device. The limits of PyTorch's attention follow the checks in
its `sdp_utils.cpp`, read conservatively; GPU tests compare every claim with PyTorch, but have not run yet. cuDNN's
attention with bounds on the device is missing: PyTorch exposes it only as a private operation that plans anew on every
call.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vino_kernels.choice.facts import Device, Needs, Shape
from vino_kernels.launching import FP8_CAPABILITY

HALF = (torch.float16, torch.bfloat16)
FLOATS = (torch.float32, *HALF)
ANY = (torch.float64, *FLOATS)
NO_LIMIT = 1 << 30
TRITON_CAPABILITY = (8, 0)
"""Lowest compute capability that Triton supports."""
TMA_CAPABILITY = (9, 0)
"""Lowest compute capability with hardware copies of tensor tiles (TMA)."""


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """The calls that one implementation supports; `refusal` checks a call."""

    name: str
    dtypes: tuple[torch.dtype, ...] = FLOATS
    channels: int = NO_LIMIT
    """Most channels (see `Shape`)."""
    multiple: int = 1
    """Channels must be a multiple of this."""
    gradients: bool = True
    most_with_gradients: int = NO_LIMIT
    """Most channels of a call that needs gradients."""
    capability: tuple[int, int] = (0, 0)
    """Lowest compute capability."""
    part: str | None = None
    """Library that it needs, one of `Device.parts`."""
    variants: tuple[tuple[str, tuple[int, int]], ...] = (("", (0, 0)),)
    """Supported variants of the operation, each with its lowest compute capability."""
    reads_bounds: bool = False
    """Whether it needs the segment bounds on the host, because it makes one call per segment."""
    capture: bool = True
    """Whether it can be recorded in a CUDA graph."""
    deterministic: bool = True
    """Whether PyTorch runs it when set to refuse nondeterministic operations."""
    comparison: bool = False
    """Whether it is for benchmarks only and never chosen."""

    def refusal(self, shape: Shape, device: Device, needs: Needs) -> str | None:
        """Why it does not support this call on this CUDA device; None if it does."""
        return next(self._refusals(shape, device, needs), None)

    def _refusals(self, shape: Shape, device: Device, needs: Needs) -> Iterator[str]:
        variants = dict(self.variants)
        lowest = max(self.capability, variants.get(shape.variant, (0, 0)))
        most = min(self.channels, self.most_with_gradients) if needs.gradients else self.channels
        if self.part is not None and self.part not in device.parts:
            yield f"{self.part} is not there"
        if shape.dtype not in self.dtypes:
            yield f"{_short(shape.dtype)} is none of {', '.join(map(_short, self.dtypes))}"
        if shape.channels > most or shape.channels % self.multiple:
            yield f"{shape.channels} channels; it takes at most {most}, in multiples of {self.multiple}"
        if shape.variant not in variants:
            yield f"it does not do {shape.variant!r}"
        if device.capability < lowest:
            yield f"compute capability {_dotted(device.capability)} is below {_dotted(lowest)}"
        if needs.gradients and not self.gradients:
            yield "it has no gradients"
        if needs.capture and not self.capture:
            yield "it cannot be recorded into a CUDA graph"
        if self.reads_bounds and not needs.host_bounds:
            yield "it needs the segment bounds on the host, and they lie on the device"
        if needs.deterministic and not self.deterministic:
            yield "PyTorch refuses it where algorithms must be deterministic"


BOTH = (("", (0, 0)), ("isolated", (0, 0)))
KERNEL = Implementation(name="vino", capability=TRITON_CAPABILITY, part="triton")
FORWARD_KERNEL = Implementation(name="vino", capability=TRITON_CAPABILITY, part="triton", gradients=False)
PLAIN = Implementation(name="torch", dtypes=ANY)

# In order of preference where nothing was measured.
OPERATIONS: dict[str, tuple[Implementation, ...]] = {
    "boundary_attention": (
        Implementation(name="vino", capability=TRITON_CAPABILITY, part="triton", channels=256, variants=BOTH),
        Implementation(name="torch", dtypes=ANY, variants=BOTH, reads_bounds=True),
        Implementation(
            name="sdpa_flash", dtypes=HALF, channels=256, most_with_gradients=192, capability=(8, 0), part="flash",
            variants=BOTH, reads_bounds=True,
        ),
        Implementation(
            name="sdpa_cudnn", dtypes=HALF, channels=128, multiple=8, capability=(8, 0), part="cudnn", variants=BOTH,
            reads_bounds=True, deterministic=False,
        ),
        # After the others: only measurements can make them the choice.
        Implementation(
            name="flash_varlen", dtypes=HALF, channels=256, multiple=8, gradients=False, capability=(8, 0),
            part="flash",
        ),
        Implementation(
            name="vino_tma", channels=256, multiple=8, capability=TMA_CAPABILITY, part="triton", variants=BOTH,
        ),
        # It is compiled for every shape, which must not happen while a request runs.
        Implementation(
            name="flex", channels=256, capability=TRITON_CAPABILITY, part="triton", variants=BOTH, capture=False,
            comparison=True,
        ),
    ),
    "qk_norm_rope": (KERNEL, PLAIN),
    "norm_modulate": (
        Implementation(
            name="vino", capability=TRITON_CAPABILITY, part="triton", gradients=False,
            variants=(("", (0, 0)), ("fp8", FP8_CAPABILITY)),
        ),
        Implementation(name="torch", dtypes=ANY, variants=(("", (0, 0)), ("fp8", (0, 0)))),
    ),
    "gated_residual": (FORWARD_KERNEL, PLAIN),
    "guide_and_step": (FORWARD_KERNEL, PLAIN),
}  # fmt: skip


def implementation_of(operation: str, name: str) -> Implementation:
    """The implementation of this name; ValueError naming the known ones."""
    if operation not in OPERATIONS:
        raise ValueError(f"no operation is called {operation!r}; there are {', '.join(OPERATIONS)}")
    found = {known.name: known for known in OPERATIONS[operation]}
    if name not in found:
        raise ValueError(f"{operation} has no implementation called {name!r}; there are {', '.join(found)}")
    return found[name]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
