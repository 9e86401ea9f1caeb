"""A stand-in for `cuda.bindings.driver`: the functions the loader calls, with the real ones' parameters, and no GPU.

It records every call, keeps each thread's stack of contexts as CUDA does, and fails a call when told to. Kernels do not
run, unless `run` is replaced; `test_ahead_driver.py` compares the signatures with the real module's.
"""

import ctypes
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, TypeAlias

import torch
from torch import Tensor

GPU = torch.device("cuda", 0)


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_NOT_FOUND = 500


class CUdevice_attribute(IntEnum):
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class CUfunction_attribute(IntEnum):
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8


# Within the stand-in, the names of the real module are attributes and no types.
Status: TypeAlias = CUresult
DeviceKind: TypeAlias = CUdevice_attribute
FunctionKind: TypeAlias = CUfunction_attribute
OK = CUresult.CUDA_SUCCESS
LAUNCH = (
    *("f", "gridDimX", "gridDimY", "gridDimZ", "blockDimX", "blockDimY", "blockDimZ"),
    *("sharedMemBytes", "hStream", "kernelParams", "extra"),
)
"""Parameters of `cuLaunchKernel`."""
CONTEXT = "primary context"


@dataclass(frozen=True)
class Launch:
    """What `cuLaunchKernel` was given: the function's symbol, the shape of the launch, the bytes of every argument."""

    symbol: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    stream: int
    packed: tuple[bytes, ...]


@dataclass
class StandIn:
    """One GPU. `counts`: by symbol, how many parameters a kernel has, which the real driver reads from the cubin."""

    counts: Mapping[str, int]
    arch: int = 90
    failing: str = ""
    """Name of the function that fails."""
    run: Callable[[Launch], None] = lambda launch: None
    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    stacks: threading.local = field(default_factory=threading.local)

    CUresult = CUresult
    CUdevice_attribute = CUdevice_attribute
    CUfunction_attribute = CUfunction_attribute

    @property
    def names(self) -> list[str]:
        """The functions that were called, in order."""
        return [name for name, _ in self.calls]

    @property
    def stack(self) -> list[str]:
        """This thread's contexts."""
        if not hasattr(self.stacks, "contexts"):
            self.stacks.contexts = []
        contexts: list[str] = self.stacks.contexts
        return contexts

    def _status(self, name: str, *arguments: Any, inside: bool = False) -> Status:
        self.calls.append((name, arguments))
        if inside and not self.stack:
            return CUresult.CUDA_ERROR_INVALID_CONTEXT
        return CUresult.CUDA_ERROR_OUT_OF_MEMORY if name == self.failing else OK

    def cuInit(self, Flags: int) -> tuple[Status]:
        return (self._status("cuInit", Flags),)

    def cuDeviceGet(self, ordinal: int) -> tuple[Status, str]:
        return self._status("cuDeviceGet", ordinal), f"device {ordinal}"

    def cuDeviceGetAttribute(self, attrib: DeviceKind, dev: str) -> tuple[Status, int]:
        major = attrib == CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        return self._status("cuDeviceGetAttribute", attrib, dev), divmod(self.arch, 10)[0 if major else 1]

    def cuDevicePrimaryCtxRetain(self, dev: str) -> tuple[Status, str]:
        return self._status("cuDevicePrimaryCtxRetain", dev), CONTEXT

    def cuDevicePrimaryCtxRelease(self, dev: str) -> tuple[Status]:
        return (self._status("cuDevicePrimaryCtxRelease", dev),)

    def cuCtxPushCurrent(self, ctx: str) -> tuple[Status]:
        status = self._status("cuCtxPushCurrent", ctx)
        if status == OK:
            self.stack.append(ctx)
        return (status,)

    def cuCtxPopCurrent(self) -> tuple[Status, str]:
        status = self._status("cuCtxPopCurrent", inside=True)
        return status, self.stack.pop() if status == OK else ""

    def cuModuleLoadData(self, image: bytes) -> tuple[Status, str]:
        return self._status("cuModuleLoadData", image, inside=True), "module"

    def cuModuleGetFunction(self, hmod: str, name: bytes) -> tuple[Status, str]:
        status = self._status("cuModuleGetFunction", hmod, name, inside=True)
        return CUresult.CUDA_ERROR_NOT_FOUND if name.decode() not in self.counts else status, name.decode()

    def cuModuleUnload(self, hmod: str) -> tuple[Status]:
        return (self._status("cuModuleUnload", hmod, inside=True),)

    def cuFuncSetAttribute(self, hfunc: str, attrib: FunctionKind, value: int) -> tuple[Status]:
        return (self._status("cuFuncSetAttribute", hfunc, attrib, value, inside=True),)

    def cuLaunchKernel(self, *arguments: Any) -> tuple[Status]:
        """Takes what `LAUNCH` names."""
        given = dict(zip(LAUNCH, arguments, strict=True))
        status = self._status("cuLaunchKernel", *arguments, inside=True)
        if status == OK:
            pointers = (ctypes.c_void_p * self.counts[given["f"]]).from_address(given["kernelParams"])
            packed = tuple(ctypes.string_at(pointer or 0, 8) for pointer in pointers)
            launch = Launch(
                given["f"], arguments[1:4], arguments[4:7], given["sharedMemBytes"], given["hStream"], packed
            )
            self.launches.append(launch)
            self.run(launch)
        return (status,)

    def cuGetErrorName(self, error: Status) -> tuple[Status, bytes]:
        return OK, error.name.encode()

    def cuGetErrorString(self, error: Status) -> tuple[Status, bytes]:
        return OK, b"what happened, in words"


class Placed(Tensor):
    """A tensor of the CPU that says it lies on the first GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU


def placed(x: Tensor) -> Tensor:
    """The same memory, as a tensor that a loader for the first GPU accepts."""
    return x.as_subclass(Placed)
