"""The accuracy rule of kernels: at most twice the error of the reference in the same dtype, plus its rounding."""

from typing import TypeVar, cast

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Tensors = TypeVar("Tensors", bound=tuple[Tensor, ...])


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal values, the same in every run, on the CPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def converted(tensors: Tensors, to: torch.device | torch.dtype) -> Tensors:
    """Every tensor on a device or in a dtype."""
    return cast(Tensors, tuple(tensor.to(to) for tensor in tensors))


def assert_as_accurate(got: Tensor, reference: Tensor, truth: Tensor, level: float = 0.0) -> None:
    """`got` against the float64 `truth`, judged by the `reference`, which is in the dtype of `got`.

    Infinities must lie where the truth has them. A gradient is computed from a log-sum-exp that was rounded to float32:
    largest of size `level`, it changes all weights of a row by that much.
    """
    assert got.dtype == reference.dtype
    assert got.shape == reference.shape == truth.shape
    assert truth.dtype == torch.float64
    assert not truth.isnan().any()
    got, reference, truth = got.cpu(), reference.cpu(), truth.cpu()
    assert torch.equal(got.double().isinf(), truth.isinf())
    finite = truth.isfinite()
    if not finite.any():
        return
    largest = truth[finite].abs().max().item()
    rounding = (torch.finfo(got.dtype).eps / 2 + level * torch.finfo(torch.float32).eps) * largest
    error, allowed = ((x.double() - truth)[finite].abs().max().item() for x in (got, reference))
    assert error <= 2 * allowed + rounding, f"off by {error:.3e}; the reference is off by {allowed:.3e}"
