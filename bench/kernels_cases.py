"""The cases of `bench kernels`: operations at the sizes that matter, what each computes and moves, and how to call it.

Random inputs of a fixed seed; nothing is timed or judged here.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from bench.kernels_time import Call, launches_for
from vino_kernels.boundary_attention.configs import tiles
from vino_kernels.choice import OPERATIONS, Device, Needs, Shape, dispatch
from vino_kernels.choice.attention import Bounds, flex, flex_mask
from vino_rt.plan import MAX_BRANCHES

HEADS, HEAD_SIZE, PATCH = 24, 128, 64
AXES, THETA = (16, 56, 56), 256.0
SHARE_OF_REFERENCES = 0.6
"""Of the rows of a sequence with isolated references; four references share them."""
OF_OURS = ("vino", "vino_tma")
NO_BOUNDS = Bounds((0, 0))


@dataclass(frozen=True)
class Case:
    """One operation at one size."""

    operation: str
    shape: Shape
    bounds: Bounds = NO_BOUNDS
    """Of attention only."""

    @property
    def label(self) -> str:
        """How rows name it."""
        return f"{self.operation}, {self.shape}"

    @property
    def pairs(self) -> int:
        """(query, key) pairs of a head that see each other."""
        views = self.bounds.views()
        return sum((rows.stop - rows.start) * (keys.stop - keys.start) for rows, keys in views)

    @property
    def flops(self) -> float:
        """Floating-point operations of the matrix products; 0 for what only moves memory."""
        return 4.0 * self.shape.channels * self.shape.heads * self.pairs

    @property
    def moved(self) -> float:
        """Bytes that must be read and written once; 0 for attention."""
        shape, size = self.shape, self.shape.dtype.itemsize
        numbers = shape.rows * shape.heads * shape.channels
        if self.operation == "qk_norm_rope":
            return 4.0 * numbers * size + 12 * shape.rows
        if self.operation == "norm_modulate":
            return numbers * (size + (1 if shape.variant == "fp8" else size)) + 2.0 * shape.channels * size
        if self.operation == "gated_residual":
            return 3.0 * numbers * size + shape.channels * size
        # Latents are float32, velocities have the dtype of the model.
        return numbers * (2.0 * 4 + shape.segments * 2) if self.operation == "guide_and_step" else 0.0

    def visible_tiles(self, capability: tuple[int, int]) -> int:
        """Tiles that our attention kernel walks over for a head, on GPUs of this compute capability."""
        tile = tiles(self.shape.channels, self.shape.dtype, self.shape.rows, *capability).forward
        views = self.bounds.views()
        return sum(-(-(r.stop - r.start) // tile.own) * -(-(k.stop - k.start) // tile.other) for r, k in views)


@dataclass(frozen=True)
class Series:
    """Cases that are timed in the same rounds."""

    name: str
    cases: tuple[Case, ...]
    flex: bool = False
    """FlexAttention beside our kernels, for comparison alone: it is compiled for each case, for a minute or longer."""


def attention(
    rows: int,
    branches: int = 1,
    *,
    heads: int = HEADS,
    channels: int = HEAD_SIZE,
    dtype: torch.dtype = torch.bfloat16,
    isolated: bool = False,
) -> Case:
    """Branches of so many rows one after another, without padding; `isolated`: four references in each.

    The table has room for as many branches as that of the model, whose calls are those that are timed.
    """
    starts = range(0, rows * branches, rows)
    offsets = (*starts, *[rows * branches] * (MAX_BRANCHES - branches + 2))
    share = int(rows * SHARE_OF_REFERENCES) // 4
    cuts = {start + number * share for start in starts for number in range(5)} | set(offsets)
    groups = (*sorted(cuts), rows * branches) if isolated else None
    shape = Shape(dtype, rows * branches, channels, heads, branches, "isolated" if isolated else "")
    return Case("boundary_attention", shape, Bounds(offsets, groups))


def memory_bound(rows: int, heads: int, channels: int, dtype: torch.dtype, *, fp8: bool) -> tuple[Case, ...]:
    """The operations that move memory, for tokens of heads x channels numbers."""
    width = heads * channels
    found = [
        Case("qk_norm_rope", Shape(dtype, rows, channels, heads)),
        Case("norm_modulate", Shape(dtype, rows, width)),
        *([Case("norm_modulate", Shape(dtype, rows, width, variant="fp8"))] if fp8 else []),
        Case("gated_residual", Shape(dtype, rows, width)),
        Case("guide_and_step", Shape(torch.float32, rows, PATCH, segments=3)),
    ]
    return tuple(found)


def all_series(device: Device, *, quick: bool) -> list[Series]:
    """What is timed on a device, the most important first; on a CPU and when quick, small sizes."""
    if quick or device.kind != "cuda":
        dtype = torch.bfloat16 if device.kind == "cuda" else torch.float32
        packed = [
            attention(40, n, heads=2, channels=16, dtype=dtype, isolated=x) for n in (1, 3) for x in (False, True)
        ]
        return [Series("small", (*packed, *memory_bound(40, 2, 48, dtype, fp8=False)))]
    bf16, fp8 = torch.bfloat16, device.capability >= (8, 9)
    found = [
        Series("long", (attention(35_000), attention(35_000, isolated=True))),
        Series("long, memory", memory_bound(35_000, HEADS, HEAD_SIZE, bf16, fp8=fp8)),
        Series("short, memory", memory_bound(1_600, HEADS, HEAD_SIZE, bf16, fp8=fp8)),
        Series("short", (attention(1_600), attention(1_600, isolated=True), attention(1_600, 3))),
        Series("long, three branches", (attention(35_000, 3),)),
        Series("heads of 64", (attention(1_600, channels=64), attention(35_000, channels=64))),
    ]
    for dtype in (torch.float16, torch.float32):
        cases = attention(1_600, dtype=dtype), *memory_bound(1_600, HEADS, HEAD_SIZE, dtype, fp8=fp8)[:2]
        found.append(Series(f"short, {str(dtype).removeprefix('torch.')}", cases))
    compared = attention(35_000), attention(35_000, isolated=True), attention(35_000, 3)
    return [*found, Series("long, FlexAttention", compared, flex=True)]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A case on a device: its inputs, and a call for each implementation that can serve it."""

    case: Case
    inputs: tuple[Tensor, ...]
    calls: Mapping[str, Call]
    apart: Mapping[str, Call]
    """Of packed branches: a call for each branch, by implementation."""


def prepare(case: Case, device: torch.device, *, flex: bool = False) -> Prepared:
    """Draw the inputs and bind every implementation that claims to serve the case; `flex`: see `Series`."""
    inputs = draw(case, device)
    facts = Device.of(device)
    compared = ("flex", *OF_OURS)
    known = [one for one in OPERATIONS[case.operation] if (one.name in compared if flex else one.name != "flex")]
    if device.type == "cuda":
        names = [one.name for one in known if one.refusal(case.shape, facts, Needs()) is None]
    else:
        names = ["torch"]
    calls = {name: bind(case, inputs, name) for name in names}
    apart = {}
    if case.operation == "boundary_attention" and case.shape.segments > 1 and not case.shape.variant and not flex:
        apart = {name: branch_calls(case, inputs, name) for name in names}
    return Prepared(case, inputs, calls, apart)


def rotated(prepared: Prepared, names: Iterable[str]) -> dict[str, list[Call]]:
    """For each implementation as many calls as one graph holds, each on inputs of its own (`kernels_time`)."""
    case, inputs = prepared.case, prepared.inputs
    sets = [inputs, *(tuple(x.clone() for x in inputs) for _ in range(launches_for(case.moved) - 1))]
    return {name: [bind(case, one, name) for one in sets] for name in names}


def bind(case: Case, inputs: tuple[Tensor, ...], name: str) -> Call:
    """The call of one implementation on these inputs."""
    if case.operation == "boundary_attention":
        q, k, v, offsets, *groups = inputs
        cuts = groups[0] if groups else None
        if name == "flex":
            # Made by the first call, where what fails concerns this implementation alone; its time is not counted.
            mask = cache(lambda: flex_mask(q.shape[0], offsets, cuts))
            return lambda: flex(q, k, v, mask())
        return lambda: dispatch.boundary_attention(q, k, v, offsets, cuts, bounds=case.bounds, implementation=name)
    if case.operation == "qk_norm_rope":
        q, k, q_weight, k_weight, positions = inputs
        axes = axes_of(case)
        return lambda: dispatch.qk_norm_rope(q, k, q_weight, k_weight, positions, axes, THETA, implementation=name)
    if case.operation == "norm_modulate":
        x, shift, scale, *out = inputs
        divisor = out[0] if out else None
        return lambda: dispatch.norm_modulate(x, shift, scale, out_scale=divisor, implementation=name)
    run = dispatch.gated_residual if case.operation == "gated_residual" else dispatch.guide_and_step
    return lambda: run(*inputs, implementation=name)


def branch_calls(case: Case, inputs: tuple[Tensor, ...], name: str) -> Call:
    """Attention of each branch on its own, one call after the other."""
    singles = []
    for start, end in itertools.pairwise(case.bounds.offsets[: case.shape.segments + 1]):
        bounds = Bounds((0, *[end - start] * (MAX_BRANCHES + 1)))
        alone = Case(case.operation, case.shape, bounds)
        table = torch.tensor(bounds.offsets, dtype=torch.int32, device=inputs[0].device)
        singles.append(bind(alone, (*(x[start:end] for x in inputs[:3]), table), name))
    return lambda: [call() for call in singles]


def draw(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """Inputs in the order of the operation's arguments; tables last."""
    shape = case.shape
    generator = torch.Generator(device).manual_seed(shape.rows + shape.channels)

    def normal(*sizes: int, dtype: torch.dtype = shape.dtype) -> Tensor:
        return torch.randn(sizes, generator=generator, device=device, dtype=torch.float32).to(dtype)

    def whole(numbers: tuple[int, ...]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=device)

    token = shape.rows, shape.heads, shape.channels
    if case.operation == "boundary_attention":
        groups = () if case.bounds.groups is None else (whole(case.bounds.groups),)
        return normal(*token), normal(*token), normal(*token), whole(case.bounds.offsets), *groups
    if case.operation == "qk_norm_rope":
        grid = torch.arange(shape.rows, dtype=torch.int32, device=device)
        positions = torch.stack((grid // 2500, grid // 50 % 50, grid % 50), 1)
        return normal(*token), normal(*token), normal(shape.channels), normal(shape.channels), positions
    x = normal(shape.rows, shape.channels)
    if case.operation == "norm_modulate":
        divisor = (torch.tensor([0.05], device=device),) if shape.variant == "fp8" else ()
        return x, normal(shape.channels), normal(shape.channels), *divisor
    if case.operation == "gated_residual":
        return x, normal(shape.channels), normal(shape.rows, shape.channels)
    velocity = normal(shape.segments, shape.rows, shape.channels, dtype=torch.bfloat16)
    return x, velocity, torch.tensor([5.0, 1.5], device=device), torch.tensor([0.02], device=device)


def axes_of(case: Case) -> tuple[int, int, int]:
    """Channels of a head that time, height and width turn."""
    channels = case.shape.channels
    return AXES if channels == HEAD_SIZE else (channels // 2, channels // 4, channels // 4)
