"""Plans built by torch-tensorrt, run like any other plan, without torch-tensorrt.

We use torch-tensorrt to build only: its own saved programs are loaded by unpickling and do not select a profile after
loading (as of its release 2.14).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vino_rt.backends.base import Kind
from vino_rt.backends.tensorrt.backend import TensorRtBackend, TensorRtEngine
from vino_rt.errors import EngineError

OLDEST = (2, 14)
"""The first release that supports several profiles."""
INSTALL = "pip install 'torch-tensorrt>=2.14,<2.16'"


class OneRowEngine(TensorRtEngine):
    """A plan whose sizes are at least 1, as this builder requires; see `TensorRtEngine`.

    An input without rows, such as the references of a request without any, is replaced by one row of zeros, and the
    result is cut off. This is valid because all kinds that may get empty inputs compute each row independently.
    """

    def _run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        if all(tensor.numel() for tensor in inputs.values()):
            return super()._run(inputs)
        sizes = self.spec.check(inputs, self.device)
        outputs = super()._run({n: x if x.numel() else self._one_row(x) for n, x in inputs.items()})
        cuts = [tuple(slice(sizes.get(dim)) for dim in map(str, spec.dims)) for spec in self.spec.outputs]
        return tuple(output[cut] for output, cut in zip(outputs, cuts, strict=True))

    def _one_row(self, empty: Tensor) -> Tensor:
        shape = tuple(max(1, size) for size in empty.shape)
        return self._plan.device.empty(shape, empty.dtype).zero_()


class TorchTensorRtBackend(TensorRtBackend):
    """`TensorRtBackend` with plans from another builder, which are separate engines in the store."""

    name = "torch-tensorrt"
    engine = OneRowEngine

    def has_constants(self, kind: Kind) -> bool:
        """False: this builder makes the weights of every kind inputs."""
        return False


def load_builder() -> Any:
    """Import `torch_tensorrt`; EngineError naming what to install if it is missing or too old."""
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
