"""How an operation finds its kernel; the only place that imports Triton on demand."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FP8_CAPABILITY = (8, 9)
"""Lowest compute capability that converts to float8_e4m3fn."""


def kernel_of(operation: str, file: str = "triton", function: str = "launch") -> Callable[..., Any]:
    """A function of `vino_kernels.<operation>.<file>`, imported on first use, which needs Triton.

    Raises ModuleNotFoundError with what to install if Triton is missing.
    """
    try:
        module = importlib.import_module(f"vino_kernels.{operation}.{file}")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        message = f"{operation} on CUDA tensors needs Triton, which is not installed: pip install 'vino-rt[gpu]'"
        raise ModuleNotFoundError(message, name="triton") from error
    launch: Callable[..., Any] = getattr(module, function)
    return launch


def check_dtypes(operation: str, **tensors: Tensor) -> None:
    """Raise TypeError for a tensor that is not float32, bfloat16 or float16: kernels compute in float32."""
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{operation}: {name} is {tensor.dtype}; the kernel takes float32, bfloat16 or float16")


def capability_of(x: Tensor) -> tuple[int, int] | None:
    """Compute capability of a tensor's GPU.

    None on a CPU, where Triton's interpreter runs kernels, and for a CUDA tensor traced on a machine without a GPU.
    """
    return torch.cuda.get_device_capability(x.device) if x.is_cuda and torch.cuda.is_available() else None
