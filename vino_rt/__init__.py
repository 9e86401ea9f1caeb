"""A runtime for the VINO image and video generator: compiled, verified engines behind one Python object.

from vino_rt import Request, Runtime

with Runtime.open(build=True) as runtime:
    runtime.generate(Request(prompt="a red square moves right", frames=17)).save("out.mp4")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vino_rt.errors import (
    Cancelled,
    EngineError,
    EngineMismatch,
    EngineMissing,
    InputError,
    MediaError,
    ModelError,
    OutOfMemory,
    OutputError,
    TaskFileError,
    UsageError,
    VinoError,
)

if TYPE_CHECKING:
    from vino_rt.bucket import Bucket
    from vino_rt.build import BuildProgress
    from vino_rt.cache import CacheStats
    from vino_rt.progress import Progress
    from vino_rt.request import Reference, Request
    from vino_rt.result import Result
    from vino_rt.runtime import Runtime
    from vino_rt.settings import Settings
    from vino_rt.tasks import Task, read_tasks
    from vino_rt.understand import Captioner

__version__ = "0.1.0"

__all__ = [
    "Bucket",
    "BuildProgress",
    "CacheStats",
    "Cancelled",
    "Captioner",
    "EngineError",
    "EngineMismatch",
    "EngineMissing",
    "InputError",
    "MediaError",
    "ModelError",
    "OutOfMemory",
    "OutputError",
    "Progress",
    "Reference",
    "Request",
    "Result",
    "Runtime",
    "Settings",
    "Task",
    "TaskFileError",
    "UsageError",
    "VinoError",
    "__version__",
    "read_tasks",
]

_LAZY = {
    "Bucket": "vino_rt.bucket",
    "BuildProgress": "vino_rt.build",
    "CacheStats": "vino_rt.cache",
    "Captioner": "vino_rt.understand",
    "Progress": "vino_rt.progress",
    "Reference": "vino_rt.request",
    "Request": "vino_rt.request",
    "Result": "vino_rt.result",
    "Runtime": "vino_rt.runtime",
    "Settings": "vino_rt.settings",
    "Task": "vino_rt.tasks",
    "read_tasks": "vino_rt.tasks",
}
"""Public names and the modules that define them. These import numpy and torch, which takes seconds: the command line
must answer Ctrl-C before that.
"""


def __getattr__(name: str) -> Any:
    """Import the module of a public name when the name is first used."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'vino_rt' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, those not yet imported included."""
    return sorted({*globals(), *__all__})
