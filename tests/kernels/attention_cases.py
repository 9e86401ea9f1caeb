"""Packed sequences to try attention on, in small, and what lets the interpreter run its kernels.

No kernel is compared here; the tests import what they need.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

from vino_kernels.boundary_attention import configs
from vino_kernels.boundary_attention.configs import Tile, Tiles

Case = tuple[list[int], list[int] | None]
SMALL = Tile(16, 16, 4, 1)
CASES: dict[str, Case] = {
    "odd": ([0, 13, 32, 49, 54], None),
    "one_token": ([0, 1, 1], None),
    "one_segment": ([0, 35, 35], None),
    "many": ([0, 3, 4, 9, 9, 10, 17, 18, 20, 20, 23, 27], None),
    "empty": ([0, 0, 5, 5, 5, 22, 22, 25], None),
    "all_padding": ([0, 0, 0, 19], None),
    "nothing": ([0, 0, 0], None),
    "isolated": ([0, 37, 43, 47], [0, 5, 22, 37, 40, 43, 47]),
    "isolated_empty": ([0, 20, 20, 29, 29], [0, 0, 3, 3, 20, 20, 20, 29, 29]),
    "isolated_padding_cut": ([0, 18, 40], [0, 7, 18, 30, 40]),
}


@contextmanager
def small_tiles() -> Iterator[None]:
    """Tiles of 16 rows, so that a few dozen rows are several tiles; and an interpreter whose loops run.

    Its scalars are arrays of one element, which NumPy 2.4 no longer takes for the bound of a loop.
    """
    patch_tensor = interpreter._patch_lang_tensor

    def with_bounds(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang_tensor", with_bounds)
        patch.setattr(configs, "WIDE", {})
        patch.setattr(configs, "TABLE", dict.fromkeys(configs.TABLE, Tiles(SMALL, SMALL, SMALL)))
        yield


def tables(case: Case, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The int32 tensors `offsets` and `groups` of a case."""
    offsets, groups = (None if x is None else torch.tensor(x, dtype=torch.int32, device=device) for x in case)
    assert offsets is not None
    return offsets, groups


def drawn(rows: int, heads: int, channels: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """q, k, v [rows, heads, channels] with a scale at which weights differ."""
    generator = torch.Generator().manual_seed(rows + channels)
    q, k, v = 1.5 * torch.randn(3, rows, heads, channels, generator=generator)
    return [x.to(device, dtype) for x in (q, k, v)]


def assert_as_good(made: Tensor, plain: Tensor, exact: Tensor, level: float = 0.0) -> None:
    """The rule of design section 6: at most twice the error of plain PyTorch in the same precision, plus rounding.

    A gradient is computed from a log-sum-exp that was rounded to float32: largest of size `level`, it changes all
    weights of a row by that much.
    """
    assert made.shape == exact.shape
    assert torch.equal(made.isinf(), exact.isinf())
    if not exact.numel():
        return
    ulp = torch.finfo(made.dtype).eps
    made, plain, exact = (x.nan_to_num(neginf=0).double().cpu() for x in (made, plain, exact))
    rounding = (ulp + level * torch.finfo(torch.float32).eps) * exact.abs().amax().item()
    error, allowed = ((x - exact).abs().amax().item() for x in (made, plain))
    assert error <= 2 * allowed + rounding, f"off by {error:.2e}, the plain one by {allowed:.2e}"
