"""What compiled code for an NVIDIA GPU depends on: the architecture and the driver's version.

The version comes from NVML, the library that is installed with the driver.
"""

import ctypes
import functools

import torch

from vino_rt.errors import EngineError

LIBRARY = "libnvidia-ml.so.1"
LONGEST = 80
"""Most bytes of a version string (NVML's header)."""


def gpu_architecture(device: torch.device) -> str:
    """The architecture of a CUDA device, such as `sm_90`."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@functools.cache
def driver_version() -> str:
    """Version of the NVIDIA driver, such as `580.65.06`; EngineError if NVML is missing or fails."""
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
