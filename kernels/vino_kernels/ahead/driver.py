"""The CUDA driver API as the loader needs it: named errors, and the primary context, which PyTorch uses as well.

`bindings()` returns `cuda.bindings.driver` of cuda-python; tests pass a stand-in with the same functions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

Driver: TypeAlias = Any
"""The driver module or a stand-in; the bindings have no type annotations."""


class CudaError(RuntimeError):
    """A failed driver call; `name` is the error's name, such as CUDA_ERROR_INVALID_VALUE."""

    def __init__(self, name: str, text: str, doing: str) -> None:
        super().__init__(f"{name} ({text}) while {doing}")
        self.name = name


def bindings() -> Driver:
    """Import the driver's bindings; ModuleNotFoundError with what to install if they are missing."""
    try:
        from cuda.bindings import driver
    except ModuleNotFoundError as error:
        message = "launching compiled kernels needs cuda-python, which is not installed: pip install 'vino-rt[gpu]'"
        raise ModuleNotFoundError(message, name=error.name) from error
    return driver


def call(driver: Driver, doing: str, function: str, *arguments: Any) -> Any:
    """Call a driver function and return its result, if it has one. Raises CudaError; `doing` is for its message."""
    status, *results = getattr(driver, function)(*arguments)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise CudaError(
            _text(driver.cuGetErrorName(status), str(status)),
            _text(driver.cuGetErrorString(status), "no text"),
            doing,
        )
    return results[0] if results else None


def _text(found: tuple[Any, bytes | None], otherwise: str) -> str:
    _, text = found
    return otherwise if text is None else text.decode()


class Context:
    """The primary context of one GPU, which PyTorch uses as well: its tensors and streams are valid here."""

    def __init__(self, driver: Driver, ordinal: int) -> None:
        """Retain the primary context of GPU `ordinal`, creating it if need be, until `release`."""
        self._driver = driver
        self.name = f"GPU {ordinal}"
        try:
            call(driver, "starting CUDA", "cuInit", 0)
        except CudaError:
            raise
        except RuntimeError as error:  # The bindings found no libcuda.
            raise CudaError("no driver", str(error), "starting CUDA") from error
        self._device = call(driver, f"looking for {self.name}", "cuDeviceGet", ordinal)
        self._context = call(driver, f"entering {self.name}", "cuDevicePrimaryCtxRetain", self._device)

    def arch(self) -> int:
        """Architecture of the GPU: compute capability times ten."""
        kinds = self._driver.CUdevice_attribute
        wanted = kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
        doing = f"asking {self.name} for its architecture"
        major, minor = (call(self._driver, doing, "cuDeviceGetAttribute", kind, self._device) for kind in wanted)
        return 10 * int(major) + int(minor)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this the thread's current context inside the block."""
        call(self._driver, f"entering {self.name}", "cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            call(self._driver, f"leaving {self.name}", "cuCtxPopCurrent")

    def release(self) -> None:
        """Release the context; to be called once."""
        call(self._driver, f"leaving {self.name}", "cuDevicePrimaryCtxRelease", self._device)
