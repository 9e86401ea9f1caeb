"""Opening the backend `triton` on a GPU that cannot compile, and float32 on GPUs; both driven without one."""

import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vino_kernels import gated_residual
from vino_rt.backends.base import EngineSpec, Kind, TensorSpec
from vino_rt.backends.eager import EagerEngine
from vino_rt.backends.triton import TritonBackend
from vino_rt.errors import EngineError
from vino_rt.kernels import compile_one_kernel

GPU = torch.device("cuda", 0)
CUDNN: Any = torch.backends.cudnn
SETTINGS: tuple[Any, ...] = (CUDNN.conv, torch.backends.cuda.matmul)


def precisions() -> list[str]:
    return [setting.fp32_precision for setting in SETTINGS]


class Watched(nn.Module):
    """Notes the precision of matmuls and convolutions that it runs under."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[list[str]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.found.append(precisions())
        if x.isnan().any():
            raise ValueError("not a number")
        return x


def kind(precision: str = "float32") -> Kind:
    spec = EngineSpec("watched", (TensorSpec("x", ("L",)),), (TensorSpec("y", ("L",)),))
    return Kind(spec, "part", "", 1, Watched, lambda: [{"x": torch.ones(2)}], precision=precision)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[BaseException], None]]:
    """Make compiling a kernel fail with an error; tensors of the GPU lie on the CPU."""
    ones = torch.ones

    def fail_with(error: BaseException) -> None:
        def refuse(*_: Tensor) -> Tensor:
            raise error

        monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape))
        monkeypatch.setattr(gated_residual, "gated_residual", refuse)

    compile_one_kernel.cache_clear()
    yield fail_with
    compile_one_kernel.cache_clear()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler"),
        subprocess.CalledProcessError(1, ["gcc"]),
        FileNotFoundError("no such file: clang"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_machine_without_a_compiler_is_refused_when_opened(
    uncompiled: Callable[[BaseException], None], error: BaseException
) -> None:
    uncompiled(error)
    with pytest.raises(EngineError, match=r"cannot compile a kernel here: .*C compiler .*Python's headers"):
        TritonBackend(GPU).open(kind(), None, [{}])


def test_a_shortage_of_memory_is_not_told_as_a_missing_compiler(uncompiled: Callable[[BaseException], None]) -> None:
    uncompiled(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        TritonBackend(GPU).check(kind())


def test_a_gpu_without_triton_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vino_rt.backends.triton.find_spec", lambda _: None)
    with pytest.raises(EngineError, match=r"pip install 'vino-rt\[gpu\]'"):
        TritonBackend(GPU).check(kind())
    TritonBackend(torch.device("cpu")).check(kind())


@pytest.mark.parametrize(
    ("device", "precision", "exact"), [(GPU, "float32", True), (GPU, "bfloat16", False), ("cpu", "float32", False)]
)
def test_float32_on_a_gpu_is_not_tf32(device: Any, precision: str, exact: bool) -> None:
    """For the time of a call, one that fails too; what the process had set is left as it was."""
    before, module = precisions(), Watched()
    engine = EagerEngine(kind(precision), module, torch.device(device))
    engine._run({"x": torch.ones(2)})
    assert module.found == [["ieee", "ieee"] if exact else before]
    with pytest.raises(ValueError, match="not a number"):
        engine._run({"x": torch.full((2,), float("nan"))})
    assert precisions() == before
