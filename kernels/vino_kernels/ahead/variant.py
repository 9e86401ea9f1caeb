"""One compiled kernel as data: what it computes, what it is compiled with, what a launch must give it.

It is written to JSON and read back without Triton; sizes and grids are rules of `vino_kernels.grid`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from vino_kernels.grid import Rule, from_json

Constant: TypeAlias = "int | float | bool | None"
ALIGNMENT = 16
"""Bytes of an aligned pointer; an aligned integer is a multiple of it."""
NAME = re.compile(r"\w[\w.-]*")
POINTERS = ("*fp32", "*bf16", "*fp16", "*fp8e4nv", "*i32")
SCALARS = ("i32", "i64", "fp32")


@dataclass(frozen=True)
class Argument:
    """An argument of the kernel that a launch gives."""

    name: str
    type: str
    """Triton's word: one of `POINTERS` for a tensor, one of `SCALARS` for a number."""
    aligned: bool = False
    """Whether the compiler relied on a multiple of 16: of the address in bytes, or of the number."""
    shape: tuple[Rule, ...] = ()
    """Of a tensor. A name met for the first time takes the size that it finds."""
    strides: tuple[Rule, ...] = ()
    """Of a tensor, in elements, as `shape`; empty: contiguous."""
    most: int | None = None
    """The largest legal number; None: whatever the type holds."""

    def __post_init__(self) -> None:
        if self.type not in POINTERS + SCALARS:
            raise ValueError(f"argument {self.name} has type {self.type!r}: legal are {', '.join(POINTERS + SCALARS)}")

    @property
    def is_tensor(self) -> bool:
        """Whether a launch gives a tensor for it."""
        return self.type.startswith("*")


@dataclass(frozen=True)
class Variant:
    """A kernel for one architecture, with everything that its compilation depends on besides its source."""

    arch: int
    """Compute capability times ten: 90 is sm_90."""
    name: str
    """Unique within an architecture; the name of its file."""
    operation: str
    """The folder of `vino_kernels` that it belongs to."""
    kernel: str
    """Name of the function in the operation's `triton.py`."""
    arguments: tuple[Argument, ...]
    """In the order of the kernel's parameters."""
    constants: Mapping[str, Constant]
    """Parameters that are compiled in and that no launch gives."""
    grid: tuple[Rule, ...]
    """Programs along each axis, from constants, arguments and names of the tensors' sizes."""
    warps: int
    stages: int | None = None
    """Of software pipelines; None: what Triton takes by default, as the operation's own launch does."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or not isinstance(self.arch, int):
            raise ValueError(f"{self.name!r} for {self.arch!r}: a kernel's name is the name of a file, sm_90 is 90")


def variant_to_json(variant: Variant) -> dict[str, Any]:
    """For a manifest; `variant_from_json` gives the variant back."""
    return {
        **vars(variant),
        "arguments": [vars(argument) for argument in variant.arguments],
        "constants": dict(variant.constants),
    }


def variant_from_json(value: Mapping[str, Any]) -> Variant:
    """A variant as JSON gives it back. Raises ValueError for what is none."""
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
