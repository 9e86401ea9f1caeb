"""ONNX Runtime on an NVIDIA GPU behind the engine protocol: one session per kind, tensors and weights bound by address.

A session works on a stream of its own, in order with the caller's: ONNX Runtime takes the default stream for none.
Layers of a kind share the session; each has a binding that holds its weights where they lie, which are never copied.
Nothing falls back to the CPU: what ONNX Runtime would compute there is an error when an engine is opened.

Not run on a GPU yet: the tests run the same code on ONNX Runtime's CPU provider, over a stand-in of the stream.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from vino_rt.backends.base import Backend, Engine, Kind
from vino_rt.backends.onnxruntime import check_weights, explain, library_errors, library_version, unreadable
from vino_rt.backends.tensorrt.device import Device, TorchDevice
from vino_rt.errors import EngineError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

CUDA_PROVIDER = "CUDAExecutionProvider"
INSTALL = "pip uninstall onnxruntime, then pip install onnxruntime-gpu of the same version"
ELEMENTS = {torch.float32: 1, torch.int32: 6, torch.int64: 7, torch.bfloat16: 16}
"""PyTorch's types by the numbers that ONNX gives them."""
SIZES = frozenset({
    "Add", "Cast", "Concat", "Gather", "Identity", "Mul", "Range", "Reshape", "Shape", "Slice", "Squeeze", "Sub",
    "Unsqueeze",
})  # fmt: skip
"""What may stay on the host, where ONNX Runtime puts the arithmetic of shapes. On tensors of any other kind the CUDA
provider has all of these in every type that engines have.
"""


class BoundEngine(Engine):
    """One layer: a shared session and this layer's weights at their addresses."""

    def __init__(self, kind: Kind, session: "InferenceSession", weights: Mapping[str, Tensor], place: Device) -> None:
        import onnxruntime

        super().__init__(kind.spec, place.device)
        self._session, self._place = session, place
        self._accepted = {node.name for node in session.get_inputs()}
        check_weights(kind, weights, self._accepted)
        # The binding knows addresses alone: what lies there is kept here.
        self._weights = {name: tensor.to(place.device).contiguous() for name, tensor in weights.items()}
        self._binding = session.io_binding()
        for name, tensor in self._weights.items():
            self._bind(name, tensor)
        self._options = onnxruntime.RunOptions()
        # The caller's stream waits for this one; the host need not.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def _run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        for name in inputs.keys() & self._accepted:
            self._bind(name, inputs[name])
        for spec in self.spec.outputs:
            self._binding.bind_output(spec.name, self.device.type, self.device.index or 0)
        try:
            with self._place.ordered():
                self._session.run_with_iobinding(self._binding, self._options)
                outputs = tuple(from_dlpack(value) for value in self._binding.get_outputs())
        except library_errors() as error:
            raise explain(self.spec.kind, error) from error
        finally:
            # Else the next run would write where these lie.
            self._binding.clear_binding_outputs()
        return outputs

    def _bind(self, name: str, tensor: Tensor) -> None:
        number, shape = self.device.index or 0, list(tensor.shape)
        self._binding.bind_input(name, self.device.type, number, ELEMENTS[tensor.dtype], shape, tensor.data_ptr())


class OnnxRuntimeCudaBackend(Backend):
    """The CUDA provider."""

    name = "onnxruntime"
    providers: tuple[str, ...] = (CUDA_PROVIDER,)
    """In the order in which they take nodes."""

    def __init__(self, device: torch.device) -> None:
        self._where = device
        self._place: Device | None = None

    def version(self) -> str:
        """Version of the installed library; EngineError when it, or a provider, is not there."""
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
        """The providers: an engine of one is none of another."""
        return self.providers

    def open(self, kind: Kind, artefact: Path | None, weights: Sequence[Mapping[str, Tensor]]) -> list[Engine]:
        """Load the ONNX file once and make one engine per layer on it.

        Raises EngineError where a provider is missing, cannot be loaded or leaves work to the CPU, OutOfMemory.
        """
        self.version()
        if artefact is None:
            raise EngineError(f"backend {self.name!r} needs a built engine for kind {kind.name!r}")
        session = self.session(kind, artefact)
        return [BoundEngine(kind, session, layer, self.place()) for layer in weights]

    def place(self) -> Device:
        """The device and the stream that all sessions of this backend work on."""
        if self._place is None:
            self._place = TorchDevice(self._where)
        return self._place

    def session(self, kind: Kind, artefact: Path) -> "InferenceSession":
        """A session that computes everything with the providers; see `open` for what is raised."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        chosen = [(name, self.options(name, kind, artefact)) for name in self.providers]
        try:
            # Without `enable_fallback` 0 a provider that fails is left out and the session made on the CPU.
            session = onnxruntime.InferenceSession(str(artefact), options, providers=chosen, enable_fallback=0)
        except library_errors() as error:
            raise unreadable(kind.name, artefact, error) from error
        check_placement(kind, session, self.providers)
        return session

    def options(self, provider: str, kind: Kind, artefact: Path) -> dict[str, str]:
        """What a provider is told."""
        place = self.place()
        common = {"device_id": str(place.device.index or 0), "user_compute_stream": str(place.stream)}
        # float32 means float32: products of fewer bits would miss the bound that engines are verified to.
        return {**common, "use_tf32": "0"} if provider == CUDA_PROVIDER else common


def check_placement(kind: Kind, session: "InferenceSession", providers: Sequence[str]) -> None:
    """EngineError where a provider is not in use, or where nodes other than `SIZES` are computed by another one."""
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
            f'in {kind.precision}; let the recipe run this kind elsewhere: [kinds] {kind.name} = "eager"'
        )
