"""Host memory: what is there, and how running out of it is told to a user; knows no model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vino_rt.errors import OutOfMemory

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


def check_room(needed: int, what: str, advice: str) -> None:
    """Raise OutOfMemory when `needed` bytes for `what` are more than the machine has left."""
    available = available_bytes()
    if available is not None and needed > available:
        raise OutOfMemory(f"{what} needs up to {needed / GIB:.1f} GiB and {available / GIB:.1f} GiB are free; {advice}")


@contextmanager
def named_shortage(advice: str) -> Iterator[None]:
    """Turn a failed allocation of Python or torch into OutOfMemory."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory(f"memory ran out; {advice}") from error
    except RuntimeError as error:
        if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemory(f"memory ran out ({error}); {advice}") from error
