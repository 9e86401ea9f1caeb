"""ONNX Runtime on an NVIDIA GPU behind the engine protocol: one session per kind, tensors and weights bound by address.

Sessions run on a stream of their own, ordered with the caller's: ONNX Runtime cannot use the default stream. Layers of
a kind share the session; each has a binding with its own weights, which are not copied. Nothing falls back to the CPU:
opening an engine fails if ONNX Runtime would compute part of it there.

Not run on a GPU yet: tests run the same code on ONNX Runtime's CPU provider, with a stand-in for the stream.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vino_rt.backends.base import Backend, Engine, Kind, run_elsewhere
from vino_rt.backends.onnxruntime import BoundSession, check_weights, library_errors, library_version, unreadable
from vino_rt.backends.tensorrt.device import Device, TorchDevice
from vino_rt.errors import EngineError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

CUDA_PROVIDER = "CUDAExecutionProvider"
INSTALL = "pip uninstall onnxruntime, then pip install onnxruntime-gpu of the same version"
SIZES = frozenset({
    "Add", "Cast", "Concat", "Gather", "Identity", "Mul", "Range", "Reshape", "Shape", "Slice", "Squeeze", "Sub",
    "Unsqueeze",
})  # fmt: skip
"""Operators that may run on the host, where ONNX Runtime puts the arithmetic on shapes. For other tensors the CUDA
provider supports all of them in every type that engines use.
"""


class BoundEngine(Engine):
    """One layer: the shared session and this layer's weights, run in order with the caller's stream."""

    def __init__(self, kind: Kind, session: "InferenceSession", weights: Mapping[str, Tensor], cuda: Device) -> None:
        import onnxruntime

        super().__init__(kind.spec, cuda.device)
        self._cuda = cuda
        check_weights(kind, weights, {node.name for node in session.get_inputs()})
        options = onnxruntime.RunOptions()
        # The caller's stream waits for this one, so the host need not.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        placed = {name: tensor.to(cuda.device).contiguous() for name, tensor in weights.items()}
        self.bound = BoundSession(kind.name, session, placed, cuda.device, options)

    def _run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        with self._cuda.ordered():
            return self.bound.run(inputs)


class OnnxRuntimeCudaBackend(Backend):
    """ONNX Runtime's CUDA execution provider; cuda: stand-in for the device, for tests."""

    name = "onnxruntime"
    providers: tuple[str, ...] = (CUDA_PROVIDER,)
    """Execution providers in order of priority."""

    pool_per_kind = True

    def __init__(self, device: torch.device, *, cuda: Device | None = None) -> None:
        super().__init__(device)
        self._cuda = cuda

    def version(self) -> str:
        """Version of the installed library; EngineError if it or one of the providers is missing."""
        version = library_version()
        import onnxruntime

        found = onnxruntime.get_available_providers()
        if missing := [name for name in self.providers if name not in found]:
            raise EngineError(
                f"backend {self.name!r} on a GPU needs ONNX Runtime with {', '.join(missing)}; this one, {version}, "
                f"has {', '.join(found)}. The package that has it takes the place of this one: {INSTALL}"
            )
        return version

    def target(self) -> tuple[str, ...]:
        """The providers: an engine built for one set does not serve another."""
        return self.providers

    def open(self, kind: Kind, artefact: Path | None, weights: Sequence[Mapping[str, Tensor]]) -> list[Engine]:
        """Load the ONNX file once and make one engine per layer.

        Raises EngineError if a provider is missing, cannot be loaded or leaves work to the CPU, and OutOfMemory.
        """
        self.version()
        artefact = self.required(kind, artefact)
        session = self.session(kind, artefact)
        return [self.engine(kind, artefact, session, layer) for layer in weights]

    def engine(
        self, kind: Kind, artefact: Path, session: "InferenceSession", weights: Mapping[str, Tensor]
    ) -> BoundEngine:
        """The engine of one layer."""
        return BoundEngine(kind, session, weights, self.place())

    def place(self) -> Device:
        """The device and stream that all sessions of this backend use."""
        if self._cuda is None:
            self._cuda = TorchDevice(self.device)
        return self._cuda

    def session(self, kind: Kind, artefact: Path) -> "InferenceSession":
        """A session that runs on the providers alone; raises as `open` does."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        chosen = [(name, self.options(name, kind, artefact)) for name in self.providers]
        try:
            # Unless fallback is disabled, a provider that fails to load is dropped and the session runs on the CPU.
            session = onnxruntime.InferenceSession(str(artefact), options, providers=chosen, enable_fallback=0)
        except library_errors() as error:
            raise unreadable(kind.name, artefact, error) from error
        check_placement(kind, session, self.providers)
        return session

    def options(self, provider: str, kind: Kind, artefact: Path) -> dict[str, str]:
        """Options of one provider, by ONNX Runtime's names."""
        place = self.place()
        common = {"device_id": str(place.device.index or 0), "user_compute_stream": str(place.stream)}
        # No TF32: its rounding would exceed the bound that float32 engines are verified against.
        return {**common, "use_tf32": "0"} if provider == CUDA_PROVIDER else common


def check_placement(kind: Kind, session: "InferenceSession", providers: Sequence[str]) -> None:
    """Raise EngineError if a provider is not in use, or another one runs operators that are not in `SIZES`."""
    if lost := [name for name in providers if name not in session.get_providers()]:
        raise EngineError(
            f"{kind.name}: ONNX Runtime has {', '.join(lost)} and cannot load it; install the versions of CUDA, cuDNN "
            "and TensorRT that this version of onnxruntime-gpu was built for"
        )
    elsewhere = {
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name not in providers
        for node in part.get_nodes()
    }
    if left := sorted(elsewhere - SIZES):
        raise EngineError(
            f"{kind.name}: ONNX Runtime would compute {', '.join(left)} on the CPU, {' and '.join(providers)} cannot "
            f"in {kind.precision}; {run_elsewhere(kind.name)}"
        )
