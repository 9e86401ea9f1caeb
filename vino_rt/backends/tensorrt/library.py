"""The one place that imports `tensorrt`: which versions serve, what its types are called, what it says."""

import functools
import logging
import re
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from vino_rt.errors import EngineError, OutOfMemory

OLDEST, BEFORE = (10, 16), (12, 0)
"""Supported versions; what this backend calls is in all of them."""
INSTALL = "pip install 'tensorrt>=10.16,<12'"
DTYPES = {
    "FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT32": torch.int32, "INT64": torch.int64,
    "BOOL": torch.bool,
}  # fmt: skip
"""Element types by the names of TensorRT's enumeration; its numbers differ between versions."""
ALIGNMENT = 256
"""Bytes that every address handed to TensorRT is a multiple of."""
REMEMBERED = 4
SHORTAGE = re.compile(r"OutOfMemory|out of memory|could not be allocated|Cuda[^;]*\(2\)")
"""What TensorRT logs when memory ran out; it raises nothing, and returns null for that as for every other failure."""
ROOM = "leave out the largest [[bucket]] of the recipe and build again, or stop other processes on the GPU"

log = logging.getLogger(__name__)


def load() -> Any:
    """The module `tensorrt`; EngineError naming what to install where it is missing or of another version."""
    try:
        import tensorrt
    except (ImportError, OSError) as error:
        raise EngineError(
            f"backend 'tensorrt' needs NVIDIA's library ({error}); on a machine with an NVIDIA GPU install it with: "
            f"{INSTALL}"
        ) from error
    if not OLDEST <= version_of(tensorrt) < BEFORE:
        raise EngineError(f"TensorRT {tensorrt.__version__} is not supported; install another with: {INSTALL}")
    return tensorrt


def version_of(library: Any) -> tuple[int, int]:
    """Major and minor version."""
    major, minor, *_ = str(library.__version__).split(".")
    return int(major), int(minor)


@functools.cache
def make_logger(library: Any) -> Any:
    """The process's `ILogger`: it hands everything to Python's logging, and `said` returns the last errors.

    There is one, because TensorRT keeps the first logger that it is given and ignores all others.
    """
    levels = {
        "INTERNAL_ERROR": logging.ERROR, "ERROR": logging.ERROR, "WARNING": logging.WARNING, "INFO": logging.INFO,
        "VERBOSE": logging.DEBUG,
    }  # fmt: skip

    class Logger(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=REMEMBERED)

        def log(self, severity: Any, msg: str) -> None:
            level = levels.get(severity.name, logging.INFO)
            if level == logging.ERROR:
                self.errors.append(msg)
            log.log(level, "%s", msg)

        def said(self) -> str:
            """The errors since the last call of this method, so that none is blamed on a later failure."""
            told = "; ".join(self.errors)
            self.errors.clear()
            return told or "it did not say why"

    return Logger()


def refusal(what: str, said: str, way_out: str = "") -> EngineError | OutOfMemory:
    """The error for a call that failed: OutOfMemory where the logger `said` that memory ran out, else EngineError.

    way_out: what to do where it is not memory.
    """
    if SHORTAGE.search(said):
        return OutOfMemory(f"{what}: the GPU has too little free memory ({said}); {ROOM}")
    return EngineError(f"{what}: {said}" + (f"; {way_out}" if way_out else ""))


def made(logger: Any, what: str, make: Callable[[], Any], way_out: str = "") -> Any:
    """The object that `make` returns; what it allocates on the GPU comes from outside PyTorch's pool.

    Where memory runs out, PyTorch's unused blocks are freed and `make` is called once more. Raises the `refusal` where
    it returns None all the same.
    """
    logger.said()
    if (found := make()) is not None:
        return found
    said = logger.said()
    if SHORTAGE.search(said):
        torch.cuda.empty_cache()
        if (found := make()) is not None:
            return found
        said = logger.said()
    raise refusal(what, said, way_out)


def dtype_of(library_dtype: Any) -> torch.dtype:
    """PyTorch's type for TensorRT's; EngineError for one that no engine of ours has."""
    if library_dtype.name not in DTYPES:
        raise EngineError(f"an engine with a tensor of type {library_dtype.name}; ours have {', '.join(DTYPES)}")
    return DTYPES[library_dtype.name]
