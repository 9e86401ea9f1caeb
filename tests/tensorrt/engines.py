"""A plan of one input and one output in plain Python: doubles its input, as TensorRT would do it, at addresses."""

import ctypes
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.tensorrt.small import FakeDevice
from vino_rt.backends.base import EngineSpec, Kind, TensorSpec
from vino_rt.backends.tensorrt.library import DTYPES
from vino_rt.backends.tensorrt.plan import Plan, Scratch

WIDTH = 4
LIBRARY = SimpleNamespace(
    TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
    TensorLocation=SimpleNamespace(DEVICE="gpu", HOST="host"),
    ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="by the user"),
)
SPEC = EngineSpec("twice", (TensorSpec("x", ("L", WIDTH)),), (TensorSpec("y", ("L", WIDTH)),))
KIND = Kind(SPEC, "transformer", "", 1, lambda: torch.nn.Identity(), lambda: [{"x": torch.randn(3, WIDTH)}])


class Context:
    """Refuses what is in `refused`; `device.events` tells of launches."""

    def __init__(self, engine: "Engine") -> None:
        self.engine, self.addresses, self.shapes = engine, {}, {}  # type: ignore[var-annotated]
        self.memory: tuple[int, int] | None = None

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.profile = profile_index
        return "profile" not in self.engine.refused

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return "shape" not in self.engine.refused

    def infer_shapes(self) -> list[str]:
        return ["x"] if "infer" in self.engine.refused else []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.shapes["x"])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return "address" not in self.engine.refused

    def set_device_memory(self, memory: int, size: int) -> None:
        self.memory = (memory, size)

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self.memory is not None
        assert self.memory[1] >= self.engine.sizes[self.profile]
        self.engine.device.events.append("launch")
        recording = "begin capture" in self.engine.device.events[-2:]
        if not recording:
            self.compute()
        return "run" not in self.engine.refused

    def compute(self) -> None:
        count = int(torch.Size(self.shapes["x"]).numel())
        x, y = ((ctypes.c_float * count).from_address(self.addresses[name]) for name in "xy")
        y[:] = [2 * value for value in x]


class Engine:
    """Takes `least` to 3 rows, or 5 to 9."""

    def __init__(self, device: FakeDevice, least: int = 3) -> None:
        self.device, self.refused, self.sizes = device, set(), (3000, 1000)  # type: ignore[var-annotated]
        self.least = least
        self.contexts: list[Context] = []
        self.num_optimization_profiles, self.num_io_tensors = 2, 2
        self.dtypes = {"x": "FLOAT", "y": "FLOAT"}
        self.shapes = {"x": (-1, WIDTH), "y": (-1, WIDTH)}
        self.place = "gpu"

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return self.sizes[profile_index]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, int]]:
        return [[(self.least, WIDTH), (3, WIDTH), (3, WIDTH)], [(5, WIDTH), (7, WIDTH), (9, WIDTH)]][profile_index]

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "x" else "out"

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.dtypes[name])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def get_tensor_location(self, name: str) -> str:
        return self.place

    def create_execution_context(self, strategy: str) -> Context | None:
        assert strategy == "by the user"
        if "context" in self.refused:
            return None
        self.contexts.append(Context(self))
        return self.contexts[-1]


def make_plan(scratch: Scratch | None = None, least: int = 3) -> tuple[Plan, Engine, FakeDevice]:
    """A plan with what to look at; `least` as of `Engine`."""
    device = FakeDevice()
    engine = Engine(device, least)
    logger = SimpleNamespace(said=lambda: "it is tired")
    plan = Plan(KIND, ("x",), LIBRARY, None, engine, logger, device, scratch or Scratch(device))
    return plan, engine, device


def rows(count: int, device: FakeDevice) -> Tensor:
    """Input at an address that TensorRT takes."""
    return device.empty((count, WIDTH), DTYPES["FLOAT"]).copy_(torch.randn(count, WIDTH))
