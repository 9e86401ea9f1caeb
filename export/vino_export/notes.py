"""Silence messages of libraries during an export that no user can act on."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = ("torch.onnx._internal.exporter._registration", "torch._inductor.ir", "torch._inductor.compile_fx")
"""The first logger warns that torchvision is missing; the others list operators that are called, not compiled."""


@contextmanager
def without_library_notes() -> Iterator[None]:
    """Silence the loggers above, and torch's deprecation warnings about its own code."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
