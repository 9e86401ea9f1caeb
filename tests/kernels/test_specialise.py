"""Which launches share a compiled kernel, by the key Triton itself looks one up with; no GPU is needed.

What may change from one request to the next, and what a kernel is not declared to rely on, must not change the key:
else Triton would compile in the middle of a request, where the number of references is another.
"""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from vino_kernels.ahead.declare import attention_variant, variants
from vino_kernels.ahead.pack import DTYPES
from vino_kernels.ahead.shapes import VINO
from vino_kernels.ahead.variant import Argument, Variant
from vino_kernels.boundary_attention.configs import SLOTS, constants, tiles

NOT_COMPILED = ("tma", "queries", "keys")
ALL = (*variants([VINO], 90), *(attention_variant(VINO, 90, kernel, 35_000, "long") for kernel in NOT_COMPILED))
GATED = next(variant for variant in ALL if variant.operation == "gated_residual")
STEADY = ("heads", "count")
"""Numbers that references do not change; velocities of branches lie `count` apart, and are loaded in vectors."""


def values(argument: Argument) -> tuple[Tensor | int, ...]:
    """What Triton tells apart: addresses and numbers that 16 divides and others, and the number 1."""
    if argument.is_tensor:
        memory = torch.zeros(64, dtype=DTYPES[argument.type])
        return memory, memory[1:]
    return 16, 17, 1


def key(variant: Variant, **changes: Tensor | int) -> Any:
    """The types and properties of a launch's arguments by which Triton finds a kernel that is compiled."""
    kernel = getattr(importlib.import_module(f"vino_kernels.{variant.operation}.triton"), variant.kernel)
    if not isinstance(kernel, JITFunction):
        kernel = JITFunction(kernel.fn, **kernel.kwargs)  # This process has made it for the interpreter.
    backend = make_backend(GPUTarget("cuda", variant.arch, 32))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    given = {argument.name: values(argument)[0] for argument in variant.arguments}
    return bind(**{**variant.constants, **given, **changes})[1]


@pytest.mark.parametrize("variant", ALL, ids=lambda variant: variant.name)
def test_what_is_not_relied_on_needs_no_other_kernel(variant: Variant) -> None:
    expected = key(variant)
    for argument in variant.arguments:
        if not argument.aligned and argument.name not in STEADY:
            for value in values(argument):
                assert key(variant, **{argument.name: value}) == expected, argument.name


def test_the_key_tells_apart_what_is_relied_on() -> None:
    x = next(argument for argument in GATED.arguments if argument.aligned)
    aligned, shifted = values(x)
    assert key(GATED, **{x.name: aligned}) == key(GATED) != key(GATED, **{x.name: shifted})


def test_other_numbers_of_references_share_a_kernel() -> None:
    tile = tiles(128, torch.bfloat16, 35_000, 9).forward
    few, most, more = (constants(128, tile, (entries, entries)) for entries in (2, SLOTS, SLOTS + 1))
    assert few == most != more
