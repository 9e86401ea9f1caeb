"""The stand-in for CUDA's driver has the real bindings' functions, parameters and constants."""

import inspect
import sys
from enum import IntEnum
from types import ModuleType

import pytest

from tests.kernels.ahead_driver import LAUNCH, CUdevice_attribute, CUfunction_attribute, CUresult, StandIn
from vino_kernels.ahead.driver import Context, CudaError, bindings, call

FUNCTIONS = [name for name in vars(StandIn) if name.startswith("cu") and not name.endswith("attribute")]


@pytest.fixture
def real() -> ModuleType:
    module: ModuleType = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings are not installed")
    return module


@pytest.mark.parametrize("function", FUNCTIONS)
def test_parameters_are_the_real_ones(real: ModuleType, function: str) -> None:
    expected = list(inspect.signature(getattr(real, function)).parameters)
    own = [name for name in inspect.signature(getattr(StandIn, function)).parameters if name != "self"]
    assert (list(LAUNCH) if function == "cuLaunchKernel" else own) == expected


@pytest.mark.parametrize("enum", [CUresult, CUdevice_attribute, CUfunction_attribute])
def test_constants_are_the_real_ones(real: ModuleType, enum: type[IntEnum]) -> None:
    for member in enum:
        assert int(getattr(getattr(real, enum.__name__), member.name)) == member


def test_the_bindings_are_found(real: ModuleType) -> None:
    assert bindings() is real


def test_missing_bindings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs cuda-python.*pip install 'vino-rt\[gpu\]'"):
        bindings()


def test_an_error_has_a_name_and_says_what_was_done() -> None:
    driver = StandIn({}, failing="cuDeviceGet")
    with pytest.raises(CudaError, match=r"^CUDA_ERROR_OUT_OF_MEMORY \(what.*\) while looking for GPU 3$") as caught:
        Context(driver, 3)
    assert caught.value.name == "CUDA_ERROR_OUT_OF_MEMORY"


def test_a_machine_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = StandIn({})

    def absent(_flags: int) -> tuple[CUresult]:
        raise RuntimeError("no libcuda.so.1")

    monkeypatch.setattr(driver, "cuInit", absent)
    with pytest.raises(CudaError, match=r"no driver \(no libcuda.so.1\) while starting CUDA"):
        Context(driver, 0)


def test_results_of_a_call() -> None:
    driver = StandIn({})
    assert call(driver, "starting", "cuInit", 0) is None
    assert call(driver, "looking", "cuDeviceGet", 2) == "device 2"


def test_the_context_before_comes_back() -> None:
    driver = StandIn({})
    context = Context(driver, 0)
    driver.stack.append("somebody's")

    def fail_inside() -> None:
        with context.current():
            assert driver.stack == ["somebody's", "primary context"]
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert driver.stack == ["somebody's"]
