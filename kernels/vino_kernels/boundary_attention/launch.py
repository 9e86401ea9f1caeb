"""Launch the attention kernels: layout, constants, and a grid that depends on shapes alone."""

from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from vino_kernels.boundary_attention.configs import GRID, Tile, constants, tiles, tma_tile
from vino_kernels.boundary_attention.triton import forward_kernel, keys_kernel, queries_kernel, tma_kernel
from vino_kernels.grid import grid
from vino_kernels.launching import capability_of

DESCRIBED = 16
"""Alignment in bytes that a tensor descriptor requires of a tensor's address and of its row and head strides."""


@dataclass(frozen=True)
class Launch:
    """Arguments common to all kernels of this operation: tables, counts, the layout of q, k and v, and constants."""

    q: Tensor
    k: Tensor
    v: Tensor
    offsets: Tensor
    groups: Tensor

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, groups: Tensor | None) -> "Launch":
        """Collect the arguments, with channels made contiguous; without groups, every segment is a group."""
        q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
        return cls(q, k, v, offsets, offsets if groups is None else groups)

    def grid(self, tile: Tile) -> tuple[int, ...]:
        """Programs for these tiles."""
        sizes = {"rows": self.q.shape[0], "heads": self.q.shape[1], "n_groups": self.groups.shape[0] - 1}
        return grid(GRID, {**sizes, "OWN": tile.own})

    def inputs(self) -> tuple[Any, ...]:
        """The tensors, strides and counts in the order of the kernels' arguments."""
        strides = [stride for x in (self.q, self.k, self.v) for stride in x.stride()[:2]]
        counts = self.q.shape[1], self.offsets.shape[0] - 1, self.groups.shape[0] - 1
        return (self.q, self.k, self.v, self.offsets, self.groups, *strides, *counts)

    def constants(self, tile: Tile) -> dict[str, Any]:
        """The compile-time arguments, warps and stages of a launch with these tiles."""
        interpreted = not isinstance(forward_kernel, triton.JITFunction)
        widen = interpreted and self.q.dtype == torch.bfloat16
        values = constants(self.q.shape[2], tile, (self.offsets.shape[0], self.groups.shape[0]), widen=widen)
        return {**values, "num_warps": tile.warps, "num_stages": tile.stages}


def _place(q: Tensor) -> tuple[int, torch.dtype, Any, int | None, int]:
    """The arguments by which tiles are looked up."""
    major, minor = capability_of(q) or (None, 0)
    return q.shape[2], q.dtype, q.shape[0], major, minor


def _empty(q: Tensor) -> bool:
    """Whether there are no rows, so that there is nothing to launch and no address for a descriptor.

    False for a symbolic number of rows: a program traced for all lengths handles empty inputs itself.
    """
    return isinstance(q.shape[0], int) and q.shape[0] == 0


def launch_forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, groups: Tensor | None = None, tile: Tile | None = None
) -> tuple[Tensor, Tensor]:
    """Run the kernel: out [L, H, C] contiguous, lse float32 [L, H]; arguments as in `boundary_attention`, unchecked.

    tile: None for the configured one.
    """
    out, lse = _results(q)
    if _empty(q):
        return out, lse
    launch = Launch.of(q, k, v, offsets, groups)
    tile = tile or tiles(*_place(q)).forward
    torch.library.wrap_triton(forward_kernel)[launch.grid(tile)](*launch.inputs(), out, lse, **launch.constants(tile))
    return out, lse


def launch_tma(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, groups: Tensor | None = None, tile: Tile | None = None
) -> tuple[Tensor, Tensor]:
    """`launch_forward` with tensor descriptors; tensors without the required alignment are copied first.

    Raises ValueError for heads whose size is not a multiple of 16 bytes.
    """
    if q.shape[2] * q.dtype.itemsize % DESCRIBED:
        raise ValueError(f"head size {q.shape[2]} in {q.dtype}: tensor descriptors take heads of whole 16 bytes")
    out, lse = _results(q)
    if _empty(q):
        return out, lse
    launch = Launch.of(_described(q), _described(k), _described(v), offsets, groups)
    tile = tile or tma_tile(*_place(q))
    values = {**launch.constants(tile), "SPECIALISED": tile.specialised}

    def scratch(size: int, _alignment: int, _stream: int | None) -> Tensor:
        return torch.empty(size, dtype=torch.int8, device=q.device)

    def run() -> None:
        triton.set_allocator(scratch)
        torch.library.wrap_triton(tma_kernel)[launch.grid(tile)](*launch.inputs(), out, lse, **values)

    # Programs write their descriptors to scratch memory; the allocator is set for this launch only.
    copy_context().run(run)
    return out, lse


def _described(x: Tensor) -> Tensor:
    """The tensor itself if a descriptor can be made of it, else a copy.

    A traced tensor has no address yet, only an offset; PyTorch's compiler aligns its inputs itself.
    """
    traced = type(x) not in (Tensor, torch.nn.Parameter)
    begin = x.storage_offset() * x.dtype.itemsize if traced else x.data_ptr()
    apart = (begin, *(count * x.dtype.itemsize for count in x.stride()[:2]))
    fits = x.stride(2) == 1 and all(size % DESCRIBED == 0 for size in apart)
    return x if fits else x.clone(memory_format=torch.contiguous_format)


def _results(q: Tensor) -> tuple[Tensor, Tensor]:
    """Allocate out and lse."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    return out, torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)


def launch_backward(
    grads: tuple[Tensor, Tensor],
    inputs: tuple[Tensor, Tensor, Tensor],
    results: tuple[Tensor, Tensor],
    offsets: Tensor,
    groups: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run both gradient kernels: gradients of q, k, v [L, H, C], contiguous; arguments as in `ref.backward`."""
    (grad_out, grad_lse), (out, lse) = (x.contiguous() for x in grads), results
    q = inputs[0]
    grad_q, grad_k, grad_v = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    if _empty(q):
        return grad_q, grad_k, grad_v
    launch = Launch.of(*inputs, offsets, groups)
    table = tiles(*_place(q))
    shift = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    torch.library.wrap_triton(queries_kernel)[launch.grid(table.queries)](
        *launch.inputs(), grad_out, grad_lse, out, lse, grad_q, shift, **launch.constants(table.queries)
    )
    torch.library.wrap_triton(keys_kernel)[launch.grid(table.keys)](
        *launch.inputs(), grad_out, lse, shift, grad_k, grad_v, **launch.constants(table.keys)
    )
    return grad_q, grad_k, grad_v
