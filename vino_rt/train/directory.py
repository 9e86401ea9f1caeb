"""The directory of a run: one run at a time in it, and room for a new one without losing the old.

It knows the names in it, not what is written there.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vino_rt.errors import OutputError, UsageError
from vino_rt.train.log import LOG

LOCK = ".lock"
CHECKPOINTS = "checkpoints"
MODEL = "model"
PARTS = (CHECKPOINTS, LOG, "sheets", "tensorboard", MODEL)


@contextmanager
def occupied(out: Path) -> Iterator[None]:
    """Make the directory and keep other runs out of it while the body runs.

    UsageError when another run is in it, OutputError when it cannot be made. The lock dies with its process.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / LOCK).open("w")
    except OSError as error:
        raise OutputError(f"the run directory {out} cannot be made ({error.strerror}); choose another one") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another run is training in {out}; wait for it or choose another directory") from error
        yield


def set_aside(out: Path) -> Path | None:
    """Move what an earlier run wrote into a directory of its own, which is returned; None when there is nothing."""
    present = [out / name for name in PARTS if (out / name).exists()]
    if not present:
        return None
    number = 1 + sum(1 for path in out.iterdir() if path.name.startswith("earlier-"))
    aside = out / f"earlier-{number}"
    try:
        aside.mkdir()
        for path in present:
            path.rename(aside / path.name)
    except OSError as error:
        raise OutputError(
            f"cannot move the earlier run to {aside} ({error.strerror}); move it yourself or name another directory"
        ) from error
    return aside
