"""Plans that torch-tensorrt built, run as any other plan: nothing of torch-tensorrt is needed or loaded when they run.

Its own saved programs are read by unpickling, and choose no profile once they are loaded (read in its release 2.14):
so it builds here, and does not run.
"""

from typing import Any

from vino_rt.backends.tensorrt.backend import TensorRtBackend
from vino_rt.errors import EngineError

OLDEST = (2, 14)
"""The first release whose inputs have several profiles."""
INSTALL = "pip install 'torch-tensorrt>=2.14,<2.16'"


class TorchTensorRtBackend(TensorRtBackend):
    """See `TensorRtBackend`; another builder, and so other engines in the store."""

    name = "torch-tensorrt"


def load_builder() -> Any:
    """The module `torch_tensorrt`; EngineError naming what to install where it is missing or too old."""
    try:
        import torch_tensorrt
    except (ImportError, OSError) as error:
        raise EngineError(
            f"building for backend 'torch-tensorrt' needs its library ({error}); on a machine with an NVIDIA GPU "
            f"install it with: {INSTALL}"
        ) from error
    major, minor, *_ = str(torch_tensorrt.__version__).split(".")
    if (int(major), int(minor)) < OLDEST:
        raise EngineError(f"torch-tensorrt {torch_tensorrt.__version__} is too old; install another with: {INSTALL}")
    return torch_tensorrt
