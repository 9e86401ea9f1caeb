"""Compile a plugin's kernel, without a GPU, to PTX with exactly the parameters that TensorRT passes."""

import json
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vino_kernels.ahead.compiler import PARAMETER, PTX_TYPES, SCRATCH, fresh, triton_kernel
from vino_kernels.ahead.variant import Variant, variant_to_json

SMALL_SHARED = 48 * 1024
"""Bytes of shared memory that any launch may use. More requires a function attribute, and it is not documented that
TensorRT sets it."""
STAGES = 3
"""Stages of software pipelines if a variant names none: Triton's default."""
VERSIONS = {80: 80, 86: 80, 89: 80, 90: 80, 100: 86, 103: 88, 110: 90, 120: 87, 121: 88}
"""PTX version, times ten, by architecture: the first that supports it, but at least 8.0. Triton's own choice follows
its assembler and may be too new for the driver that compiles the kernel when a plan is opened.
"""
NAMES = re.compile(r"\w+_param_\d+")


@dataclass(frozen=True)
class Assembly:
    """A compiled kernel as TensorRT needs it."""

    symbol: str
    ptx: str
    threads: int
    """Threads per block."""
    shared: int
    """Bytes of dynamic shared memory per block."""


MADE: dict[str, Assembly] = {}
"""Compiled kernels of this process by variant: TensorRT asks for each many times while it builds."""


def assemble(variant: Variant) -> Assembly:
    """Compile a variant of `declare.py`, with fewer stages if it would need more than `SMALL_SHARED`.

    Raises ValueError if even one stage needs more, if the kernel needs what TensorRT does not provide (scratch memory,
    a cluster, undeclared parameters), and for an architecture that is not in `VERSIONS`.
    """
    key = json.dumps(variant_to_json(variant), sort_keys=True)
    if key not in MADE:
        MADE[key] = _checked(variant, _compiled(variant))
    return MADE[key]


def _compiled(variant: Variant) -> Any:
    """Triton's compiled kernel with as many stages as fit, at least one."""
    if variant.arch not in VERSIONS:
        known = ", ".join(f"sm_{arch}" for arch in VERSIONS)
        raise ValueError(f"{variant.name}: no plugins for sm_{variant.arch}; there are for {known}")
    made: Any = None
    for stages in range(variant.stages or STAGES, 0, -1):
        with tempfile.TemporaryDirectory() as cache, fresh(Path(cache)):
            made = triton_kernel(replace(variant, stages=stages), ptx_version=VERSIONS[variant.arch])
        if made.metadata.shared <= SMALL_SHARED:
            break
    return made


def _checked(variant: Variant, made: Any) -> Assembly:
    facts, where = made.metadata, f"{variant.name} on sm_{variant.arch}"
    if facts.shared > SMALL_SHARED:
        raise ValueError(f"{where}: {facts.shared} bytes of shared memory, a plugin may have {SMALL_SHARED}")
    for name, wanted in {"num_ctas": 1, "global_scratch_size": 0, "profile_scratch_size": 0}.items():
        if getattr(facts, name) != wanted:
            raise ValueError(f"{where}: {name} is {getattr(facts, name)}, a plugin may have {wanted}")
    ptx = without_scratch(made.asm["ptx"], facts.name, len(variant.arguments))
    declared = ["u64" if argument.is_tensor else PTX_TYPES[argument.type] for argument in variant.arguments]
    if (found := PARAMETER.findall(_entry(ptx, facts.name)[0])) != declared:
        raise ValueError(f"{where}: parameters {found}, declared {declared}")
    return Assembly(facts.name, ptx, 32 * facts.num_warps, facts.shared)


def without_scratch(ptx: str, symbol: str, count: int) -> str:
    """The PTX with only the first `count` parameters: removes the two pointers to scratch memory after them.

    Raises ValueError if the kernel reads one of these, or has another number of parameters.
    """
    listed, start, end = _entry(ptx, symbol)
    parameters = listed.split(",\n")
    if len(parameters) != count + len(SCRATCH):
        raise ValueError(f"{symbol} has {len(parameters)} parameters, declared {count} and {len(SCRATCH)} for scratch")
    for parameter in parameters[count:]:
        name = NAMES.search(parameter)
        if name is None or re.search(rf"\b{name[0]}\b", ptx[end:]):
            raise ValueError(f"{symbol} reads scratch memory, which TensorRT does not give: {parameter.strip()}")
    return ptx[:start] + ",\n".join(parameters[:count]) + ptx[end:]


def _entry(ptx: str, symbol: str) -> tuple[str, int, int]:
    """Text, start and end of a function's parameter list."""
    found = re.search(rf"\.visible \.entry {re.escape(symbol)}\(\n(.*?)\n\)", ptx, re.DOTALL)
    if found is None:
        raise ValueError(f"no function {symbol} in: {ptx[:200]}")
    return found[1], found.start(1), found.end(1)
