"""Where Triton is missing: operations run their reference on the CPU and say what to install for the rest."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vino_kernels.launching import check_dtypes, kernel_of

ROOT = Path(__file__).parents[2]
WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
from vino_kernels.boundary_attention import boundary_attention
from vino_kernels.gated_residual import gated_residual
from vino_kernels.guide_and_step import guide_and_step
from vino_kernels.norm_modulate import norm_modulate
from vino_kernels.qk_norm_rope import qk_norm_rope
x, y = torch.ones(3, 4), torch.ones(4)
norm_modulate(x, y, gated_residual(x, y, x)[0])
guide_and_step(x, x[None], torch.ones(2), torch.ones(1))
qk_norm_rope(x[None], x[None], y, y, torch.zeros(1, 3, dtype=torch.int32), (0, 2, 2), 256.0)
q = x[:, None].requires_grad_()
out, _ = boundary_attention(q, q, q, torch.tensor([0, 2, 3], dtype=torch.int32))
out.sum().backward()
assert out.sum() == 8
assert sys.modules["triton"] is None
"""


def test_the_reference_needs_no_triton() -> None:
    path = {"PYTHONPATH": str(ROOT / "kernels")}
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], env=path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_missing_triton_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "vino_kernels.gated_residual.triton")
    with pytest.raises(ModuleNotFoundError, match=r"gated_residual on CUDA tensors needs Triton.*vino-rt\[gpu\]"):
        kernel_of("gated_residual")


def test_a_missing_triton_is_named_by_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "vino_kernels.boundary_attention.triton")
    monkeypatch.delitem(sys.modules, "vino_kernels.boundary_attention.launch", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"boundary_attention on CUDA tensors needs Triton"):
        kernel_of("boundary_attention", "launch", "launch_forward")


def test_an_operation_that_is_not_there() -> None:
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        kernel_of("nowhere")


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match=r"y is torch\.float64"):
        check_dtypes("some", x=torch.zeros(1), y=torch.zeros(1, dtype=torch.float64))
