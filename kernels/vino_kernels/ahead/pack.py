"""Check a launch's arguments against the kernel's declaration and pack them as the driver needs them.

Sizes are read off the tensors: a number that follows from a shape or stride may be omitted, and one that contradicts it
is refused. Nothing here touches CUDA.
"""

import ctypes
import struct
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vino_kernels.ahead.variant import ALIGNMENT, Argument, Variant
from vino_kernels.grid import Rule, evaluate, grid

DTYPES = {
    "*fp32": torch.float32,
    "*bf16": torch.bfloat16,
    "*fp16": torch.float16,
    "*fp8e4nv": torch.float8_e4m3fn,
    "*i32": torch.int32,
}
FORMATS = {"i32": "<i", "i64": "<q", "fp32": "<f"}
RANGES = {"i32": (-(2**31), 2**31 - 1), "i64": (-(2**63), 2**63 - 1)}
GRID_LIMITS = (2**31 - 1, 65535, 65535)
"""Largest grid along each axis (CUDA programming guide)."""
SLOT = 8
"""Bytes reserved per argument."""

Value = Tensor | int | float


class Parameters:
    """The arguments of one launch in memory, as the array of pointers that `cuLaunchKernel` takes."""

    def __init__(self, packed: list[bytes]) -> None:
        """packed: the bytes of each argument, 8 or fewer, in the kernel's order."""
        self._slots = ctypes.create_string_buffer(
            b"".join(value.ljust(SLOT, b"\0") for value in packed), SLOT * len(packed)
        )
        start = ctypes.addressof(self._slots)
        self._pointers = (ctypes.c_void_p * len(packed))(*(start + SLOT * i for i in range(len(packed))))

    @property
    def address(self) -> int:
        """Address of the array; valid as long as this object lives."""
        return ctypes.addressof(self._pointers)


def bound(variant: Variant, device: torch.device, values: Mapping[str, Value]) -> dict[str, Any]:
    """Values of all names in the variant's rules, from constants, tensors and given numbers.

    Raises TypeError for an argument that is missing, unknown or of another type, ValueError for a tensor on another
    device or of another shape or layout.
    """
    known = {argument.name for argument in variant.arguments}
    if unknown := values.keys() - known:
        raise TypeError(
            f"{variant.name} has no argument {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}"
        )
    names: dict[str, Any] = dict(variant.constants)
    names |= {name: value for name, value in values.items() if not isinstance(value, Tensor)}
    for argument in variant.arguments:
        if argument.is_tensor:
            _bind_tensor(variant, argument, device, values.get(argument.name), names)
    return names


def _bind_tensor(variant: Variant, argument: Argument, device: torch.device, x: Any, names: dict[str, Any]) -> None:
    where = f"{variant.name}: {argument.name}"
    wanted = DTYPES[argument.type]
    if not isinstance(x, Tensor) or x.dtype != wanted:
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{where} is {found}, must be a tensor of {wanted}")
    if x.device != device:
        raise ValueError(f"{where} lies on {x.device}, must lie on {device}")
    _bind_sizes(f"{where} has shape", tuple(x.shape), argument.shape, names)
    if argument.strides:
        _bind_sizes(f"{where} has strides", x.stride(), argument.strides, names)
    elif not x.is_contiguous():
        raise ValueError(f"{where} is not contiguous: call .contiguous() first")


def _bind_sizes(where: str, sizes: tuple[int, ...], rules: tuple[Rule, ...], names: dict[str, Any]) -> None:
    if len(sizes) != len(rules):
        raise ValueError(f"{where} {sizes}, must be {_shown(rules)}")
    for size, rule in zip(sizes, rules, strict=True):
        name, value = rule, size
        if isinstance(rule, tuple) and rule[0] == "add" and isinstance(rule[2], int):
            name, value = rule[1], size - rule[2]
        if isinstance(name, str):
            names.setdefault(name, value)
        if evaluate(rule, names) != size:
            raise ValueError(f"{where} {sizes}, must be {_shown(rules)}; {size} is not {evaluate(rule, names)}")


def _shown(rules: tuple[Rule, ...]) -> str:
    signs = {"add": "+", "multiply": "*", "floor_div": "//", "ceil_div": "ceil/"}

    def text(rule: Rule) -> str:
        return f"{text(rule[1])}{signs[rule[0]]}{text(rule[2])}" if isinstance(rule, tuple) else str(rule)

    return f"[{', '.join(text(rule) for rule in rules)}]"


def packed(variant: Variant, values: Mapping[str, Value], names: Mapping[str, Any]) -> list[bytes]:
    """The bytes of every argument in the kernel's order, then Triton's two scratch pointers, which are null.

    names: from `bound`. Raises TypeError for a missing number, ValueError for one out of range, or for a pointer or
    number without the alignment that the kernel was compiled for.
    """
    null = struct.pack("<Q", 0)
    return [*(_one(variant, argument, values, names) for argument in variant.arguments), null, null]


def _one(variant: Variant, argument: Argument, values: Mapping[str, Value], names: Mapping[str, Any]) -> bytes:
    where = f"{variant.name}: {argument.name}"
    given = values.get(argument.name)
    if isinstance(given, Tensor):
        address = given.data_ptr()
        if argument.aligned and address % ALIGNMENT:
            raise ValueError(f"{where} begins at {address:#x}, must be a multiple of {ALIGNMENT}: copy it")
        return struct.pack("<Q", address)
    if argument.name not in names:
        raise TypeError(f"{where} is missing")
    number = names[argument.name]
    if argument.type in RANGES:
        _check_integer(where, argument, number)
    elif not isinstance(number, int | float):
        raise TypeError(f"{where} is {type(number).__name__}, must be a number")
    return struct.pack(FORMATS[argument.type], number)


def _check_integer(where: str, argument: Argument, number: Any) -> None:
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"{where} is {number!r}, must be an integer")
    low, high = RANGES[argument.type]
    high = high if argument.most is None else argument.most
    if not low <= number <= high:
        raise ValueError(f"{where} is {number}, must be {low} to {high}")
    if argument.aligned and number % ALIGNMENT:
        raise ValueError(f"{where} is {number}, must be a multiple of {ALIGNMENT}")


def programs(variant: Variant, names: Mapping[str, Any]) -> tuple[int, int, int]:
    """The grid of a launch; ValueError if it exceeds CUDA's limits."""
    x, y, z, *_ = (*grid(variant.grid, names), 1, 1)
    for count, limit in zip((x, y, z), GRID_LIMITS, strict=True):
        if not 0 <= count <= limit:
            raise ValueError(f"{variant.name}: a grid of {(x, y, z)}, the limit is {GRID_LIMITS}")
    return x, y, z
