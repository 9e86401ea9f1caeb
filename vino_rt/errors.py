"""The exception tree: every error a user can meet, and the exit code it ends the command line with.

    VinoError                     1
    ├── UsageError                2   options that contradict each other or a call made in the wrong state
    ├── InputError                3   a prompt, size, number or reference that cannot be used
    │   ├── MediaError            3   an image or video file that cannot be read
    │   ├── TaskFileError         3   a task file that is not in the released format
    │   └── OutputError           3   a path that cannot be written
    ├── ModelError                4   a model directory or checkpoint that is incomplete or wrong
    ├── EngineError               4   an engine or the store it lies in
    │   ├── EngineMissing         4   not built yet; the message names the command that builds it
    │   └── EngineMismatch        4   built for another model, machine or version; names the field that differs
    ├── OutOfMemory               5   host or device memory ran out; the message says what would fit
    └── Cancelled               130   the caller or Ctrl-C stopped the request

A message names the value, what would be legal and what to do next. `assert` is for our own mistakes only.
"""


def reason(error: Exception) -> str:
    """Why something failed, for a message that names the file itself: without the number and the name of an OSError."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


class VinoError(Exception):
    """Base of all errors raised on purpose by vino_rt."""

    exit_code = 1


class UsageError(VinoError):
    """Options contradict each other, or an object is used in the wrong state."""

    exit_code = 2


class InputError(VinoError):
    """A prompt, size, number or reference that cannot be used."""

    exit_code = 3


class MediaError(InputError):
    """An image or video file that is missing, broken, too large or not media at all."""


class TaskFileError(InputError):
    """A task file that is not valid JSON or not in the released format."""


class OutputError(InputError):
    """An output path that exists, is a directory or is not writable, or whose disk is full."""


class ModelError(VinoError):
    """A checkpoint or model directory that is incomplete, damaged or of another architecture."""

    exit_code = 4


class EngineError(VinoError):
    """An engine, recipe or store that cannot be used."""

    exit_code = 4


class EngineMissing(EngineError):
    """The store holds no engine for this key; the message names the command that builds it."""


class EngineMismatch(EngineError):
    """An engine was built for another model, machine or version; the message names the field."""


class OutOfMemory(VinoError):
    """Memory ran out; the message says what was asked for and what would fit."""

    exit_code = 5


class Cancelled(VinoError):
    """A request cancelled by its caller, of which nothing was written, or an interrupted command."""

    exit_code = 130
