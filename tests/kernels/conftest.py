"""Kernels run where there is no GPU: Triton's interpreter on the CPU, the compiled kernel where a CUDA device is.

The variable that turns the interpreter on is set only while the kernels are imported, so that no other test sees it;
Triton reads it at that moment. One process holds either kind: with a CUDA device the compiled one.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.experimental.gluon  # by the first launch, which is too late, if not here
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction

import vino_kernels

INTERPRETED = not torch.cuda.is_available()
TORCH_DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8e4nv": torch.float8_e4m3fn,
}


def import_kernels() -> None:
    """Import `triton.py` of every operation, interpreted where there is no CUDA device."""
    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED:
            patch.setenv("TRITON_INTERPRET", "1")
        for path in sorted(Path(vino_kernels.__path__[0]).glob("*/triton.py")):
            importlib.import_module(f"vino_kernels.{path.parent.name}.triton")


import_kernels()


def rounded(values: Any, source: tl.dtype, target: tl.dtype, _mode: object) -> Any:
    """Bits of floats of one type as bits of another, to nearest even as a GPU rounds; the interpreter cuts bits off."""
    bits = torch.from_numpy(np.ascontiguousarray(values).reshape(-1).view(np.uint8).copy())
    converted = bits.view(TORCH_DTYPES[source.name]).to(TORCH_DTYPES[target.name])
    unsigned = np.dtype(f"uint{target.primitive_bitwidth}")
    return converted.view(torch.uint8).numpy().view(unsigned).reshape(values.shape)


@pytest.fixture(scope="module", autouse=True)
def interpreted_language() -> Iterator[None]:
    """Triton's own functions, such as `tl.sum`, and loops as the interpreter needs them; casts as a GPU makes them.

    Without the first, kernels run only where nobody imported Triton before this file did. The interpreter's scalars are
    arrays of one element, which NumPy 2.4 no longer takes for the bound of a loop.
    """
    patch_tensor = interpreter._patch_lang_tensor

    def with_bounds(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED:
            # PyTorch 2.11 refuses to wrap what the interpreter made.
            patch.setattr(torch.library, "wrap_triton", lambda kernel: kernel)
            patch.setattr(interpreter, "_convert_float", rounded)
            patch.setattr(interpreter, "_patch_lang_tensor", with_bounds)
            patch.setenv("TRITON_INTERPRET", "1")
            for name, value in list(vars(tl.standard).items()):
                if isinstance(value, JITFunction):
                    interpreted = triton.jit(value.fn)
                    for module in (tl.standard, tl):
                        if vars(module).get(name) is value:
                            patch.setattr(module, name, interpreted)
            patch.delenv("TRITON_INTERPRET")
        yield


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where a kernel runs: `cpu` is the interpreter, which needs a process without a CUDA device."""
    if request.param == "cpu" and not INTERPRETED:
        pytest.skip("the kernels of this process are compiled; the interpreter runs where there is no CUDA device")
    return torch.device(request.param)
