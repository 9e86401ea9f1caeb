"""The NVIDIA driver's version, asked of the library that comes with it, so that nothing else need be installed."""

import ctypes
import functools

from vino_rt.errors import EngineError

LIBRARY = "libnvidia-ml.so.1"
LONGEST = 80
"""Bytes of a version, as NVML's header says."""


@functools.cache
def driver_version() -> str:
    """Such as `580.65.06`; EngineError where the driver's management library is not there or does not answer."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise _untold(str(error)) from error
    said = ctypes.create_string_buffer(LONGEST)
    for name, arguments in (("nvmlInit_v2", ()), ("nvmlSystemGetDriverVersion", (said, LONGEST))):
        if code := getattr(library, name)(*arguments):
            raise _untold(f"{name} answered {code}")
    library.nvmlShutdown()
    return said.value.decode()


def _untold(why: str) -> EngineError:
    return EngineError(
        f"the version of the NVIDIA driver cannot be told ({why}), and engines are kept by it; see that nvidia-smi "
        f"works here: {LIBRARY} comes with the driver, and a container gets it with the driver capability `utility`"
    )
