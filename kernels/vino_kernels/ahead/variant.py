"""Description of one compiled kernel: its function, compile-time constants, and the arguments of a launch.

It can be written to JSON and read back without Triton; sizes and grids are rules of `vino_kernels.grid`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from vino_kernels.grid import Rule, from_json

Constant: TypeAlias = "int | float | bool | None"
ALIGNMENT = 16
"""Alignment in bytes of aligned pointers; aligned integers are multiples of it."""
NAME = re.compile(r"\w[\w.-]*")
POINTERS = ("*fp32", "*bf16", "*fp16", "*fp8e4nv", "*i32")
SCALARS = ("i32", "i64", "fp32")


@dataclass(frozen=True)
class Argument:
    """An argument that a launch passes to the kernel."""

    name: str
    type: str
    """Triton's type name: one of `POINTERS` for a tensor, one of `SCALARS` for a number."""
    aligned: bool = False
    """Whether the compiler assumed a multiple of 16, for the address in bytes or for the number."""
    shape: tuple[Rule, ...] = ()
    """Shape of a tensor; the first occurrence of a name binds it to the actual size."""
    strides: tuple[Rule, ...] = ()
    """Strides of a tensor in elements, as rules like `shape`; empty: contiguous."""
    most: int | None = None
    """The largest legal number; None: the type's maximum."""

    def __post_init__(self) -> None:
        if self.type not in POINTERS + SCALARS:
            raise ValueError(f"argument {self.name} has type {self.type!r}: legal are {', '.join(POINTERS + SCALARS)}")

    @property
    def is_tensor(self) -> bool:
        """Whether the argument is a tensor."""
        return self.type.startswith("*")


@dataclass(frozen=True)
class Variant:
    """A kernel for one architecture, with everything besides its source that its compilation depends on."""

    arch: int
    """Compute capability times ten: 90 is sm_90."""
    name: str
    """Unique within an architecture; also the file name."""
    operation: str
    """The folder of `vino_kernels` that it belongs to."""
    kernel: str
    """Name of the function in the operation's `triton.py`."""
    arguments: tuple[Argument, ...]
    """In the order of the kernel's parameters."""
    constants: Mapping[str, Constant]
    """Compile-time parameters, which launches do not pass."""
    grid: tuple[Rule, ...]
    """Programs along each axis, from constants, arguments and names of the tensors' sizes."""
    warps: int
    stages: int | None = None
    """Stages of software pipelines; None: Triton's default, as in the operation's own launch."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or not isinstance(self.arch, int):
            raise ValueError(f"{self.name!r} for {self.arch!r}: a kernel's name is the name of a file, sm_90 is 90")


def variant_to_json(variant: Variant) -> dict[str, Any]:
    """The variant as a JSON object, which `variant_from_json` reads."""
    return {
        **vars(variant),
        "arguments": [vars(argument) for argument in variant.arguments],
        "constants": dict(variant.constants),
    }


def variant_from_json(value: Mapping[str, Any]) -> Variant:
    """Read a variant from a parsed JSON object; ValueError for anything else."""
    try:
        given = dict(value)
        given["arguments"] = tuple(_argument(argument) for argument in value["arguments"])
        given["grid"] = tuple(from_json(rule) for rule in value["grid"])
        return Variant(**given)
    except (KeyError, TypeError) as error:
        raise ValueError(f"no description of a kernel: {error}") from error


def _argument(value: Mapping[str, Any]) -> Argument:
    sizes = {name: tuple(from_json(rule) for rule in value[name]) for name in ("shape", "strides")}
    return Argument(**{**value, **sizes})
