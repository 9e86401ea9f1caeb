"""Memory of host and GPU: what is there, and how running out of it is told to a user; knows no model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vino_rt.errors import OutOfMemory

CPU = torch.device("cpu")
GIB = 2**30
MEMINFO = Path("/proc/meminfo")


def available_bytes() -> int | None:
    """Memory that can be had without swapping, as the kernel estimates it; None where it does not tell."""
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def check_room(needed: int, what: str, advice: str, device: torch.device = CPU) -> None:
    """Raise OutOfMemory when `needed` bytes for `what` are more than the device has left."""
    available = available_bytes() if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    if available is not None and needed > available:
        raise OutOfMemory(f"{what} needs up to {needed / GIB:.1f} GiB and {available / GIB:.1f} GiB are free; {advice}")


@contextmanager
def named_shortage(advice: str) -> Iterator[None]:
    """Turn a failed allocation of Python or torch, on the host or a GPU, into OutOfMemory."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemory(f"memory ran out; {advice}") from error
    except RuntimeError as error:
        if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemory(f"memory ran out ({error}); {advice}") from error
