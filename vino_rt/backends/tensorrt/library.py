"""The one place that imports `tensorrt`: which versions serve, what its types are called, what it says."""

import logging
from collections import deque
from typing import Any

import torch

from vino_rt.errors import EngineError

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


def make_logger(library: Any) -> Any:
    """An `ILogger` that hands everything to Python's logging and remembers the last errors in `said`."""
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
            return "; ".join(self.errors) or "it did not say why"

    return Logger()


def dtype_of(library_dtype: Any) -> torch.dtype:
    """PyTorch's type for TensorRT's; EngineError for one that no engine of ours has."""
    if library_dtype.name not in DTYPES:
        raise EngineError(f"an engine with a tensor of type {library_dtype.name}; ours have {', '.join(DTYPES)}")
    return DTYPES[library_dtype.name]
