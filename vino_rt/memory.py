"""Host and GPU memory: what is free, what this process uses, and how shortages are reported; knows no model."""

import ctypes
import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vino_rt.errors import EngineError, OutOfMemory

CPU = torch.device("cpu")
GIB = 2**30
SHORTAGES = (
    "not enough memory", "allocate memory", "out of memory", "bad_alloc", "ALLOC_FAILED", "CUDA failure 2:",
)  # fmt: skip
"""Phrases of messages that report exhausted memory: from PyTorch, the C library, compilers, C++, CUDA, ONNX Runtime."""
SHOWN = 200
"""Characters of a library's message that are repeated in ours."""
COMMON_POOL = (0, 0)
"""Id of the memory pool that everything but CUDA graphs takes from."""
MEMINFO, STATUS = Path("/proc/meminfo"), Path("/proc/self/status")


def available_bytes() -> int | None:
    """Memory that can be had without swapping, as the kernel estimates it; None where it does not tell."""
    return _kilobytes(MEMINFO, "MemAvailable")


def free_bytes(device: torch.device) -> int | None:
    """What the device has left; None for a host that does not tell."""
    return available_bytes() if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]


class Gauge:
    """Measures this process's peak memory on a device from now on, above its current use."""

    def __init__(self, device: torch.device) -> None:
        """Start measuring. Raises EngineError if the system does not report the memory of processes."""
        self._device = device
        if device.type == "cpu":
            self._start = self._resident("VmRSS")
            return
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        self._start = self._taken() - torch.cuda.memory_reserved(device)

    def peak(self) -> int:
        """Peak so far, in bytes. On a GPU: PyTorch's peak reservation plus what other libraries hold now."""
        if self._device.type == "cpu":
            return self._resident("VmHWM") - self._start
        torch.cuda.synchronize(self._device)
        beside = self._taken() - self._start - torch.cuda.memory_reserved(self._device)
        return torch.cuda.max_memory_reserved(self._device) + max(0, beside)

    def _taken(self) -> int:
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free

    @staticmethod
    def _resident(name: str) -> int:
        found = _kilobytes(STATUS, name)
        if found is None:
            raise EngineError(f"{STATUS} does not tell {name}: memory of a process is measured on Linux only")
        return found


def _kilobytes(path: Path, name: str) -> int | None:
    """Bytes on the line `name: N kB`; None where there is no such file or line."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) * 1024 if found else None


def check_room(needed: int, what: str, advice: str, device: torch.device = CPU) -> None:
    """Raise OutOfMemory if `what` needs more bytes than the device has free for this process."""
    available = free_bytes(device)
    if available is not None and device.type == "cuda":
        available += reusable_bytes(device)
    if available is not None and needed > available:
        raise OutOfMemory(f"{what} needs up to {needed / GIB:.1f} GiB and {available / GIB:.1f} GiB are free; {advice}")


def reusable_bytes(device: torch.device) -> int:
    """Bytes on a GPU that PyTorch has cached: used in the eyes of the device, free for this process.

    Memory pools of CUDA graphs are not included: only other graphs can use what is free there.
    """
    segments = torch.cuda.memory_snapshot(include_traces=False)  # type: ignore[no-untyped-call]
    common = [
        found for found in segments if found["device"] == device.index and found["segment_pool_id"] == COMMON_POOL
    ]
    return sum(found["total_size"] - found["allocated_size"] for found in common)


def give_back() -> None:
    """Return freed host memory to the system, if the C library supports it.

    Weights that were rounded when a model was opened leave holes between what they were rounded to, and glibc keeps
    holes: 630 MB instead of 314 MB of a model in int8 (bench/LOG.md).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def is_shortage(error: BaseException) -> bool:
    """Whether an error of Python, torch, the system, a compiler or a library of the GPU reports exhausted memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, Exception) and any(sign in str(error) for sign in SHORTAGES)


@contextmanager
def named_shortage(advice: str) -> Iterator[None]:
    """Turn a failed allocation of Python, torch or the system, on the host or a GPU, into OutOfMemory.

    The frames of the error are cleared, so that a caller who keeps it, as a pool of threads does, does not keep the
    tensors that were allocated before it failed.
    """
    try:
        yield
    except OutOfMemory as error:
        traceback.clear_frames(error.__traceback__)
        raise
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_shortage(error):
            raise
        traceback.clear_frames(error.__traceback__)
        raise OutOfMemory(f"memory ran out{detail(error)}; {advice}") from error


def detail(shortage: BaseException) -> str:
    """The beginning of a library's message, in parentheses; empty if it adds nothing."""
    told = "" if isinstance(shortage, MemoryError | torch.OutOfMemoryError) else str(shortage)[:SHOWN]
    return f" ({told})" if told else ""
