"""vino_rt: checkpoint in, compiled and proven engines out, and a lean runtime that draws, animates and edits with them.

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
    from vino_rt.progress import Progress
    from vino_rt.request import Reference, Request
    from vino_rt.result import Result
    from vino_rt.runtime import Runtime

__all__ = [
    "Cancelled",
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
    "TaskFileError",
    "UsageError",
    "VinoError",
]


LATE = {
    "Progress": "vino_rt.progress",
    "Reference": "vino_rt.request",
    "Request": "vino_rt.request",
    "Result": "vino_rt.result",
    "Runtime": "vino_rt.runtime",
}
"""Names and their modules, which import numpy and torch; `vino-rt` is there to answer Ctrl-C before either."""


def __getattr__(name: str) -> Any:
    """Load what needs numpy or torch when it is first asked for."""
    if name in LATE:
        return getattr(import_module(LATE[name]), name)
    raise AttributeError(f"module 'vino_rt' has no attribute {name!r}")
