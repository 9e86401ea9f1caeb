"""What libraries say while they export and that no user can act on."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = ("torch.onnx._internal.exporter._registration", "torch._inductor.ir", "torch._inductor.compile_fx")
"""The first misses torchvision; the others tell which operators are called rather than compiled."""


@contextmanager
def without_library_notes() -> Iterator[None]:
    """Keep the exporters from telling a user what is absent on purpose and that torch calls its own old names."""
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
