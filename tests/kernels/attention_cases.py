"""Packed sequences to try attention on, in small, with tiles to match.

No kernel is compared here; the tests import what they need.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from tests.kernels import accuracy
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
    """Tiles of 16 rows, so that a few dozen rows are several tiles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configs, "WIDE", {})
        patch.setattr(configs, "TMA", {})
        patch.setattr(configs, "TABLE", dict.fromkeys(configs.TABLE, Tiles(SMALL, SMALL, SMALL)))
        yield


def tables(case: Case, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The int32 tensors `offsets` and `groups` of a case."""
    offsets, groups = (None if x is None else torch.tensor(x, dtype=torch.int32, device=device) for x in case)
    assert offsets is not None
    return offsets, groups


def drawn(rows: int, heads: int, channels: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """q, k, v [rows, heads, channels] with a scale at which weights differ."""
    q, k, v = 1.5 * accuracy.drawn(3, rows, heads, channels, seed=rows + channels)
    return [x.to(device, dtype) for x in (q, k, v)]
