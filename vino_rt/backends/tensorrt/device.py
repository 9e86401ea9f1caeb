"""The part of CUDA that running an engine needs: memory and one stream.

A protocol, so that the order of events can be tested without a GPU.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor

from vino_rt.backends.driver import gpu_architecture


class Device(Protocol):
    """One GPU with a stream of our own, on which all engines launch."""

    @property
    def device(self) -> torch.device:
        """The GPU as PyTorch names it."""

    @property
    def stream(self) -> int:
        """Handle of the stream; not the default one, on which TensorRT synchronises and nothing can be captured."""

    def target(self) -> tuple[str, ...]:
        """Architecture and name of the GPU, which a plan depends on."""

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor on the GPU."""

    def ordered(self) -> AbstractContextManager[None]:
        """Work launched inside runs after the caller's earlier work, and before the caller's later work."""

    def synchronize(self) -> None:
        """Wait until the stream is idle."""


class TorchDevice:
    """`Device` implemented with PyTorch."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @property
    def device(self) -> torch.device:
        """See `Device`."""
        return self._device

    @property
    def stream(self) -> int:
        """See `Device`."""
        return int(self._stream.cuda_stream)

    def target(self) -> tuple[str, ...]:
        """See `Device`."""
        return gpu_architecture(self._device), torch.cuda.get_device_name(self._device)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """See `Device`; PyTorch aligns allocations to 512 bytes."""
        return torch.empty(shape, dtype=dtype, device=self._device)

    @contextmanager
    def ordered(self) -> Iterator[None]:
        """See `Device`."""
        caller = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(caller)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            caller.wait_stream(self._stream)

    def synchronize(self) -> None:
        """See `Device`."""
        self._stream.synchronize()
