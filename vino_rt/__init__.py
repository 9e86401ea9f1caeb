"""vino_rt: checkpoint in, compiled and proven engines out, and a lean runtime that draws, animates and edits with them.

from vino_rt import Request, Runtime

with Runtime.open(build=True) as runtime:
    runtime.generate(Request(prompt="a red square moves right", frames=17)).save("out.mp4")
"""

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
from vino_rt.request import Reference, Request

if TYPE_CHECKING:
    from vino_rt.progress import Progress
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


def __getattr__(name: str) -> Any:
    """Load the runtime, and torch with it, when it is first asked for: `vino-rt --help` needs neither."""
    if name == "Progress":
        from vino_rt.progress import Progress

        return Progress
    if name == "Result":
        from vino_rt.result import Result

        return Result
    if name == "Runtime":
        from vino_rt.runtime import Runtime

        return Runtime
    raise AttributeError(f"module 'vino_rt' has no attribute {name!r}")
