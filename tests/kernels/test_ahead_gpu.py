"""On a GPU: kernels compiled ahead of time, launched by the loader through CUDA's driver, compute what they should.

Elsewhere a stand-in plays the driver (test_ahead_loader.py) and Triton's interpreter the kernels (test_ahead_runs.py).
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.kernels.accuracy import assert_as_accurate, drawn
from tests.kernels.attention_cases import drawn as drawn_rows
from tests.kernels.attention_cases import tables
from vino_kernels.ahead.build import compile_variants
from vino_kernels.ahead.declare import attention_variant, variants
from vino_kernels.ahead.loader import Library
from vino_kernels.ahead.resources import SHARED
from vino_kernels.ahead.shapes import MINI
from vino_kernels.ahead.variant import Variant
from vino_kernels.boundary_attention import ref as attention_ref
from vino_kernels.gated_residual.ref import gated_residual_ref
from vino_kernels.launching import FP8_CAPABILITY
from vino_kernels.norm_modulate.ref import FP8_MAX, norm_modulate_ref

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda", 0)


@pytest.fixture
def arch() -> int:
    """Of the first GPU, where we ship cubins for it."""
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings are not installed")
    major, minor = torch.cuda.get_device_capability(GPU)
    if 10 * major + minor not in SHARED:
        pytest.skip(f"no cubins are made for sm_{major}{minor}")
    return 10 * major + minor


def opened(folder: Path, variant: Variant) -> Library:
    compile_variants([variant], folder)
    return Library.open(folder, GPU)


def placed(*tensors: Tensor) -> list[Tensor]:
    return [x.to(GPU) for x in tensors]


def test_a_launch_on_a_stream_and_in_a_graph(tmp_path: Path, arch: int) -> None:
    variant = next(v for v in variants([MINI], arch) if v.operation == "gated_residual")
    x, y = (drawn(37, MINI.width, dtype=torch.bfloat16, seed=seed) for seed in (1, 3))
    gate = drawn(MINI.width, dtype=torch.bfloat16, seed=2)
    tensors = dict(zip(("x_ptr", "gate_ptr", "y_ptr"), placed(x, gate, y), strict=True))
    launched, replayed = (torch.empty(37, MINI.width, dtype=torch.bfloat16, device=GPU) for _ in range(2))
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    with opened(tmp_path, variant) as library:
        with torch.cuda.stream(stream):
            library.launch(variant.name, stream=None, **tensors, out_ptr=launched)
        with torch.cuda.graph(graph):
            library.launch(variant.name, stream=None, **tensors, out_ptr=replayed)
        graph.replay()
        torch.cuda.synchronize()
    truth = gated_residual_ref(x.double(), gate.double(), y.double())
    assert_as_accurate(launched, gated_residual_ref(x, gate, y), truth)
    assert torch.equal(replayed, launched)


def test_a_result_in_float8(tmp_path: Path, arch: int) -> None:
    if divmod(arch, 10) < FP8_CAPABILITY:
        pytest.skip("this GPU has no float8_e4m3fn")
    width, variant = MINI.width, next(v for v in variants([MINI], arch) if v.name.endswith("fp8"))
    x, shift, scale = (drawn(*size, dtype=torch.bfloat16, seed=9) for size in ((13, width), (width,), (width,)))
    divisor = torch.tensor([0.05])
    tensors = dict(
        zip(("x_ptr", "shift_ptr", "scale_ptr", "out_scale_ptr"), placed(x, shift, scale, divisor), strict=True)
    )
    out = torch.empty(13, width, dtype=torch.float8_e4m3fn, device=GPU)
    with opened(tmp_path, variant) as library:
        library.launch(variant.name, stream=None, **tensors, out_ptr=out)
        torch.cuda.synchronize()
    truth = norm_modulate_ref(x.double(), shift.double(), scale.double(), False, None) / divisor.double()
    reference = norm_modulate_ref(x, shift, scale, False, divisor)
    assert_as_accurate(out, reference, truth.clamp(-FP8_MAX, FP8_MAX))


def test_attention_with_more_shared_memory_than_any_launch_may_have(tmp_path: Path, arch: int) -> None:
    """Strides of q, k and v side by side; fewer groups than there is room for."""
    variant = attention_variant(MINI, arch, "forward", 54, "short")
    case = [0, 13, 32, 49, 54], [0, 5, 13, 32, 40, 49, 54]
    q, k, v = drawn_rows(54, MINI.heads, MINI.channels, torch.bfloat16, GPU)
    packed = dict(zip("qkv", torch.stack((q, k, v), 1).unbind(1), strict=True))
    offsets, groups = tables(case, GPU)
    assert groups is not None
    out, lse = torch.empty_like(q), torch.empty(q.shape[:2], device=GPU)
    with opened(tmp_path, variant) as library:
        library.launch(variant.name, stream=None, **packed, offsets=offsets, groups=groups, out=out, lse=lse)
        torch.cuda.synchronize()
    plain = attention_ref.forward(q, k, v, offsets, groups)
    exact = attention_ref.forward(q.double(), k.double(), v.double(), offsets, groups)
    for got, judge, truth in zip((out, lse), plain, exact, strict=True):
        assert_as_accurate(got, judge, truth)
