"""A manifest says all a launch needs: kernels run in Triton's interpreter from the bytes that the loader packs.

The stand-in for the driver hands the packed arguments, in their order, the grid and the manifest's constants to the
kernel, and nothing else. The result is that of the operation's own launch, bit for bit, and as good as the reference.
"""

import importlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.accuracy import DTYPES, assert_as_accurate, converted, drawn
from tests.kernels.ahead_driver import GPU, Launch, placed
from tests.kernels.ahead_folders import stand_in, write_folder
from tests.kernels.attention_cases import drawn as drawn_rows
from tests.kernels.attention_cases import small_tiles, tables
from vino_kernels.ahead.declare import attention_variant, variants
from vino_kernels.ahead.loader import Library
from vino_kernels.ahead.manifest import NAME, Manifest, read_json
from vino_kernels.ahead.pack import FORMATS
from vino_kernels.ahead.shapes import Shapes
from vino_kernels.ahead.variant import Variant
from vino_kernels.boundary_attention import ref as attention_ref
from vino_kernels.gated_residual.ref import gated_residual_ref
from vino_kernels.guide_and_step.ref import guide_and_step_ref
from vino_kernels.launching import kernel_of
from vino_kernels.norm_modulate.ref import norm_modulate_ref
from vino_kernels.qk_norm_rope.ref import qk_norm_rope_ref

CPU = torch.device("cpu")
AXES = (2, 4, 4)
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter needs a process without a GPU")


def odd(dtype: torch.dtype, groups: int = 0) -> Shapes:
    """Rows of 30 elements in three heads of ten."""
    return Shapes(3, 10, AXES, dtype=str(dtype).removeprefix("torch."), groups=groups)


@dataclass
class Interpreter:
    """Runs a launch as a GPU would: it knows memory by address, and the manifest."""

    manifest: Manifest
    memory: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, launch: Launch) -> None:
        entry = next(entry for entry in self.manifest.entries if entry.made.symbol == launch.symbol)
        variant = entry.variant
        kernel = getattr(importlib.import_module(f"vino_kernels.{variant.operation}.triton"), variant.kernel)
        words: Iterator[tuple[bytes, str]] = zip(
            launch.packed[:-2], (argument.type for argument in variant.arguments), strict=True
        )
        values = [
            variant.constants[name] if name in variant.constants else self._value(*next(words))
            for name in kernel.arg_names
        ]
        assert not list(words), "an argument too many"
        assert launch.packed[-2:] == (bytes(8), bytes(8))
        assert launch.block == (32 * variant.warps, 1, 1)
        kernel[launch.grid](*values)

    def _value(self, packed: bytes, kind: str) -> Any:
        if kind.startswith("*"):
            return self.memory[struct.unpack("<Q", packed)[0]]
        return struct.unpack_from(FORMATS[kind], packed)[0]


def run(folder: Path, variant: Variant, **tensors: Tensor) -> None:
    """Launch through the loader, by the manifest in `folder`."""
    driver = stand_in([variant])
    write_folder(folder, [variant])
    driver.run = Interpreter(read_json(folder / NAME), {x.data_ptr(): x for x in tensors.values()})
    with Library.open(folder, GPU, driver) as library:
        library.launch(variant.name, stream=0, **{name: placed(x) for name, x in tensors.items()})
    assert len(driver.launches) == 1


def variant_of(operation: str, shapes: Shapes, ending: str = "") -> Variant:
    """The only variant of an operation whose name ends so."""
    found = [v for v in variants([shapes], 90) if v.operation == operation and v.name.endswith(ending)]
    return found[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_qk_norm_rope(tmp_path: Path, dtype: torch.dtype) -> None:
    q, k = (drawn(13, 3, 10, dtype=dtype, seed=seed) for seed in (1, 2))
    q_weight, k_weight = (drawn(10, dtype=dtype, seed=seed) for seed in (3, 4))
    positions = torch.randint(0, 150, (13, 3), dtype=torch.int32)
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)
    tensors = {"q_ptr": q, "k_ptr": k, "q_weight_ptr": q_weight, "k_weight_ptr": k_weight, "positions_ptr": positions}
    run(tmp_path, variant_of("qk_norm_rope", odd(dtype)), **tensors, q_out_ptr=q_out, k_out_ptr=k_out)
    floats = q, k, q_weight, k_weight
    truth = qk_norm_rope_ref(*converted(floats, torch.float64), positions, AXES, 256.0)
    reference = qk_norm_rope_ref(*floats, positions, AXES, 256.0)
    own = kernel_of("qk_norm_rope")(*floats, positions, AXES, 256.0)
    for got, same, judge, exact in zip((q_out, k_out), own, reference, truth, strict=True):
        assert torch.equal(got, same)
        assert_as_accurate(got, judge, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_modulate(tmp_path: Path, dtype: torch.dtype) -> None:
    floats = x, shift, scale = tuple(drawn(*shape, dtype=dtype, seed=9) for shape in ((13, 30), (30,), (30,)))
    out = torch.empty_like(x)
    variant = variant_of("norm_modulate", odd(dtype), "30")
    run(tmp_path, variant, x_ptr=x, shift_ptr=shift, scale_ptr=scale, out_ptr=out)
    assert torch.equal(out, kernel_of("norm_modulate")(*floats, False, None))
    truth = norm_modulate_ref(x.double(), shift.double(), scale.double(), False, None)
    assert_as_accurate(out, norm_modulate_ref(x, shift, scale, False, None), truth)


def test_norm_modulate_quantised(tmp_path: Path) -> None:
    x, shift, scale = (drawn(*shape, dtype=torch.bfloat16, seed=9) for shape in ((13, 30), (30,), (30,)))
    divisor, out = torch.tensor([0.05]), torch.empty(13, 30, dtype=torch.float8_e4m3fn)
    variant = variant_of("norm_modulate", odd(torch.bfloat16), "fp8")
    run(tmp_path, variant, x_ptr=x, shift_ptr=shift, scale_ptr=scale, out_scale_ptr=divisor, out_ptr=out)
    own = kernel_of("norm_modulate")(x, shift, scale, False, divisor)
    assert torch.equal(out.view(torch.uint8), own.view(torch.uint8))
    assert out.float().isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gated_residual(tmp_path: Path, dtype: torch.dtype) -> None:
    floats = x, gate, y = tuple(
        drawn(*shape, dtype=dtype, seed=seed) for seed, shape in enumerate(((37, 30), (30,), (37, 30)))
    )
    out = torch.empty_like(x)
    run(tmp_path, variant_of("gated_residual", odd(dtype)), x_ptr=x, gate_ptr=gate, y_ptr=y, out_ptr=out)
    assert torch.equal(out, kernel_of("gated_residual")(*floats))
    truth = gated_residual_ref(x.double(), gate.double(), y.double())
    assert_as_accurate(out, gated_residual_ref(x, gate, y), truth)


@pytest.mark.parametrize("branches", [1, 2, 3])
def test_guide_and_step(tmp_path: Path, branches: int) -> None:
    latents, velocity = drawn(1025, seed=1), drawn(branches, 1025, dtype=torch.bfloat16, seed=2)
    guidance, delta, out = torch.tensor([6.5, 1.7]), torch.tensor([0.037]), torch.empty(1025)
    variant = variant_of("guide_and_step", odd(torch.bfloat16), f"-{branches}")
    tensors = {"latents_ptr": latents, "velocity_ptr": velocity, "guidance_ptr": guidance, "delta_ptr": delta}
    run(tmp_path, variant, **tensors, out_ptr=out)
    assert torch.equal(out, kernel_of("guide_and_step")(latents, velocity, guidance, delta))
    truth = guide_and_step_ref(latents.double(), velocity.double(), guidance, delta)
    assert_as_accurate(out, guide_and_step_ref(latents, velocity, guidance, delta), truth)


@pytest.fixture
def small() -> Iterator[None]:
    with small_tiles():
        yield


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "case", [([0, 13, 32, 49, 54], None), ([0, 37, 43, 47], [0, 5, 22, 37, 40, 43, 47])], ids=["joint", "isolated"]
)
def test_boundary_attention(tmp_path: Path, case: tuple[list[int], list[int] | None], dtype: torch.dtype) -> None:
    """q, k and v side by side, in fewer segments and groups than the kernel was compiled for."""
    offsets, groups = tables(case, CPU)
    q, k, v = torch.stack(drawn_rows(case[0][-1], 3, 10, dtype, CPU), 1).unbind(1)
    out, lse = torch.empty(q.shape, dtype=dtype), torch.empty(q.shape[:2])
    variant = attention_variant(odd(dtype, groups=20 if groups is not None else 0), 90, "forward", 50, "short")
    cuts = offsets if groups is None else groups
    assert not q.is_contiguous()
    run(tmp_path, variant, q=q, k=k, v=v, offsets=offsets, groups=cuts, out=out, lse=lse)
    exact = attention_ref.forward(q.double(), k.double(), v.double(), offsets, groups)
    plain = attention_ref.forward(q, k, v, offsets, groups)
    launch: Callable[..., Any] = kernel_of("boundary_attention", "launch", "launch_forward")
    for got, same, judge, truth in zip((out, lse), launch(q, k, v, offsets, groups), plain, exact, strict=True):
        assert torch.equal(got, same)
        assert_as_accurate(got, judge, truth)
