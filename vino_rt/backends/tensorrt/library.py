"""The only file that imports `tensorrt`: supported versions, element types, logging and failures."""

import functools
import logging
import re
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from vino_rt.errors import EngineError, OutOfMemory

OLDEST, BEFORE = (10, 16), (12, 0)
"""Supported versions: from OLDEST up to, but not including, BEFORE. All have the API that this backend uses."""
INSTALL = "pip install 'tensorrt>=10.16,<12'"
DTYPES = {
    "FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT32": torch.int32, "INT64": torch.int64,
    "BOOL": torch.bool,
}  # fmt: skip
"""Element types by their names in TensorRT's enumeration, whose numbers differ between versions."""
ALIGNMENT = 256
"""Alignment in bytes of every address passed to TensorRT."""
REMEMBERED = 4
"""Most recent errors that the logger keeps."""
SHORTAGE = re.compile(r"OutOfMemory|out of memory|could not be allocated|Cuda[^;]*\(2\)")
"""Matches what TensorRT logs when memory runs out: for every failure alike, it raises nothing and returns null."""
ROOM = "leave out the largest [[bucket]] of the recipe and build again, or stop other processes on the GPU"

log = logging.getLogger(__name__)


def load() -> Any:
    """Import `tensorrt`; EngineError naming what to install if it is missing or unsupported."""
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
    """Major and minor version of the module `tensorrt`."""
    major, minor, *_ = str(library.__version__).split(".")
    return int(major), int(minor)


@functools.cache
def make_logger(library: Any) -> Any:
    """The `ILogger` of this process: forwards to Python's logging; its method `said` returns recent errors.

    There is only one, because TensorRT keeps the first logger it gets and ignores later ones.
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
            """The errors since the last call, which are then forgotten, so that they do not explain a later failure."""
            told = "; ".join(self.errors)
            self.errors.clear()
            return told or "it did not say why"

    return Logger()


def refusal(what: str, said: str, way_out: str = "") -> EngineError | OutOfMemory:
    """The exception for a failed call: OutOfMemory if the log shows that memory ran out, else EngineError.

    what: the call. said: the logger's errors. way_out: advice for an EngineError.
    """
    if SHORTAGE.search(said):
        return OutOfMemory(f"{what}: the GPU has too little free memory ({said}); {ROOM}")
    return EngineError(f"{what}: {said}" + (f"; {way_out}" if way_out else ""))


def made(logger: Any, what: str, make: Callable[[], Any], way_out: str = "") -> Any:
    """The object that `make` returns, retried once if memory runs out.

    `make` allocates GPU memory outside PyTorch's caching allocator, so before the retry PyTorch's unused blocks are
    freed. Raises the `refusal` if `make` still returns None.
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
    """PyTorch's dtype for a TensorRT one; EngineError for one that our engines do not use."""
    if library_dtype.name not in DTYPES:
        raise EngineError(f"an engine with a tensor of type {library_dtype.name}; ours have {', '.join(DTYPES)}")
    return DTYPES[library_dtype.name]
