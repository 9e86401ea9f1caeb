"""ONNX Runtime on the CPU behind the engine protocol: one session per kind, weights as arguments.

Layers of a kind share the session and pass it their own weights on every call, so weights exist once in memory however
many shapes are in use (bench/LOG.md: at real lengths arguments are as fast as constants). Weights that a file takes in
int8 are quantised when an engine is opened; the float32 originals are not kept.
"""

import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from vino_rt.backends.base import (
    CPU,
    INT8,
    INT8_ATTENTION,
    REBUILD,
    SMALLER,
    Backend,
    BackendOptions,
    Engine,
    Kind,
    run_elsewhere,
)
from vino_rt.errors import EngineError, OutOfMemory
from vino_rt.memory import detail, is_shortage

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, RunOptions

INT8_SUFFIX, UINT8_SUFFIX, SCALE_SUFFIX = ".int8", ".uint8", ".scale"
"""Suffixes that ONNX files append to a weight's name: quantised values, by element type, and their scales."""
ELEMENTS = {
    torch.float32: 1, torch.uint8: 2, torch.int8: 3, torch.int32: 6, torch.int64: 7, torch.bfloat16: 16,
}  # fmt: skip
"""ONNX's numbers for element types."""
LARGEST = 127
ZERO_POINT = 128
"""Zero point of uint8 weights: each is the int8 weight plus this."""
OLDEST, TOO_NEW = (1, 31), (2,)
"""Supported versions of ONNX Runtime: from OLDEST up to, but not including, TOO_NEW."""
REQUIREMENT = f"onnxruntime>={'.'.join(map(str, OLDEST))},<{TOO_NEW[0]}"
"""The supported versions as a requirement for pip."""


def multiplies_int8() -> bool:
    """Whether ONNX Runtime multiplies uint8 activations by int8 weights exactly on this processor.

    On x86 without VNNI it adds pairs of products in 16 bits, which can overflow; uint8 weights are exact there.
    """
    found = torch.cpu.get_capabilities()
    return not found.get("avx2") or bool(found.get("avx512_vnni") or found.get("avx_vnni"))


def weight_suffix() -> str:
    """Suffix of quantised weights in files built on this processor: `INT8_SUFFIX` or `UINT8_SUFFIX`."""
    return INT8_SUFFIX if multiplies_int8() else UINT8_SUFFIX


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise a weight float32 [O, I] to int8 [I, O] and scales float32 [O]: symmetric, one per output channel."""
    largest = weight.abs().amax(1)
    scale = torch.where(largest > 0, largest / LARGEST, torch.ones_like(largest))
    return (weight / scale[:, None]).round().to(torch.int8).T.contiguous(), scale


class BoundSession:
    """A session with one layer's weights bound to it; inputs and outputs are bound on every call.

    Nothing is copied: the session reads weights and inputs in place, and outputs are tensors over its own memory.
    """

    def __init__(
        self,
        kind: str,
        session: "InferenceSession",
        weights: Mapping[str, Tensor],
        device: torch.device = CPU,
        options: "RunOptions | None" = None,
    ) -> None:
        self._kind, self._session, self._device, self._options = kind, session, device, options
        self.accepted = frozenset(node.name for node in session.get_inputs())
        self.outputs = tuple(node.name for node in session.get_outputs())
        # A binding stores addresses only: keep the tensors alive.
        self.weights = {name: weight for name, weight in weights.items() if name in self.accepted}
        self._binding = session.io_binding()
        for name, weight in self.weights.items():
            self._bind(name, weight)

    def run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Run on those of the contiguous inputs that the session takes; returns outputs in the file's order.

        Raises EngineError, OutOfMemory.
        """
        for name in inputs.keys() & self.accepted:
            self._bind(name, inputs[name])
        for name in self.outputs:
            self._binding.bind_output(name, self._device.type, self._device.index or 0)
        try:
            self._session.run_with_iobinding(self._binding, self._options)
            return tuple(from_dlpack(value) for value in self._binding.get_outputs())
        except library_errors() as error:
            raise explain(self._kind, error) from error
        finally:
            # Otherwise the next run would overwrite the outputs of this one.
            self._binding.clear_binding_outputs()

    def _bind(self, name: str, tensor: Tensor) -> None:
        number, shape = self._device.index or 0, list(tensor.shape)
        self._binding.bind_input(name, self._device.type, number, ELEMENTS[tensor.dtype], shape, tensor.data_ptr())


class OnnxEngine(Engine):
    """One layer: the shared session and the layer's weights, quantised where the file takes them quantised."""

    def __init__(self, kind: Kind, session: "InferenceSession", weights: Mapping[str, Tensor]) -> None:
        super().__init__(kind.spec)
        accepted = {node.name for node in session.get_inputs()}
        given = all_taken(weights, accepted)
        check_weights(kind, given, accepted)
        self.bound = BoundSession(kind.name, session, given)

    def _run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return self.bound.run(inputs)


class OnnxRuntimeBackend(Backend):
    """ONNX Runtime's CPU execution provider; threads: None for the library's default, one per physical core."""

    name = "onnxruntime"
    precisions = ("float32", INT8, INT8_ATTENTION)
    pool_per_kind = True

    def __init__(self, threads: int | None = None) -> None:
        super().__init__()
        self.threads = threads

    @classmethod
    def create(cls, options: BackendOptions) -> "OnnxRuntimeBackend":
        """See `Backend.create`."""
        return cls(options.threads)

    def version(self) -> str:
        """Version of the installed library; EngineError if it is missing or unsupported."""
        return library_version()

    def check(self, kind: Kind) -> None:
        """See `Backend.check`; int8 attention needs a processor with its instructions."""
        super().check(kind)
        if kind.precision == INT8_ATTENTION:
            # Not at the top of the file: it imports the kernels, which no other precision needs.
            from vino_rt.kernels import check_int8_attention

            check_int8_attention(kind.name)

    def target(self) -> tuple[str, ...]:
        """Marks files with uint8 weights, which processors without VNNI need; empty for int8 weights."""
        return () if multiplies_int8() else ("uint8 weights",)

    def open(self, kind: Kind, artefact: Path | None, weights: Sequence[Mapping[str, Tensor]]) -> list[Engine]:
        """Load the ONNX file once and make one engine per layer.

        Raises EngineError for a file that cannot be read or was built for another processor, or weights that do not
        fit, and OutOfMemory.
        """
        self.version()
        artefact = self.required(kind, artefact)
        try:
            session = self._session(str(artefact))
            if any(node.name.endswith(INT8_SUFFIX) for node in session.get_inputs()) and not multiplies_int8():
                raise EngineError(f"{kind.name}: {artefact} was built for a processor with VNNI; {REBUILD}")
            if kind.precision == INT8_ATTENTION:
                # Not at the top of the file: that module imports this one.
                from vino_rt.backends.onnxruntime_halves import open_halves

                return open_halves(kind, session, self._session, weights, self.threads or torch.get_num_threads())
        except library_errors() as error:
            raise unreadable(kind.name, artefact, error) from error
        return [OnnxEngine(kind, session, layer) for layer in weights]

    def _session(self, source: str | bytes) -> "InferenceSession":
        """Make a session from the path of a file or from its content."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Memory patterns preallocate a block for every input shape seen so far and keep it: with several sizes in use
        # that takes a sixth more memory and is no faster (bench/LOG.md).
        options.enable_mem_pattern = False
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        # Every kind has its own thread pool; without this, the pool that ran last keeps spinning and occupies cores.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def all_taken(weights: Mapping[str, Tensor], accepted: Set[str]) -> dict[str, Tensor]:
    """All weights of a layer, each converted by `taken`."""
    return {n: tensor for name, weight in weights.items() for n, tensor in taken(name, weight, accepted).items()}


def taken(name: str, weight: Tensor, accepted: Set[str]) -> dict[str, Tensor]:
    """Convert a weight to the inputs that a file takes: the tensor itself, or its quantised values and scales."""
    suffix = next((suffix for suffix in (INT8_SUFFIX, UINT8_SUFFIX) if name + suffix in accepted), None)
    if suffix is None:
        return {name: weight.contiguous()}
    values, scale = quantise(weight)
    if suffix == UINT8_SUFFIX:
        values = (values.to(torch.int16) + ZERO_POINT).to(torch.uint8)
    return {name + suffix: values, name + SCALE_SUFFIX: scale}


def library_version() -> str:
    """Version of ONNX Runtime; EngineError naming what to install if it is missing or unsupported."""
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            f"backend 'onnxruntime' needs its library; install it with: pip install '{REQUIREMENT}'"
        ) from error
    version = str(onnxruntime.__version__)
    if not OLDEST <= tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < TOO_NEW:
        raise EngineError(
            f"backend 'onnxruntime' needs ONNX Runtime {'.'.join(map(str, OLDEST))} or newer, below {TOO_NEW[0]}; this "
            f"is {version}. Install one with: pip install '{REQUIREMENT}' (or onnxruntime-gpu of such a version)"
        )
    return version


def check_weights(kind: Kind, weights: Mapping[str, Any], accepted: Set[str]) -> None:
    """Raise EngineError naming weights that a file does not take and inputs of the file that nothing provides."""
    given = set(weights) | {spec.name for spec in kind.spec.inputs}
    unknown, missing = sorted(set(weights) - accepted), sorted(accepted - given)
    if unknown or missing:
        raise EngineError(f"{kind.name}: the engine takes no weights named {unknown} and needs {missing}; {REBUILD}")


def library_errors() -> tuple[type[Exception], ...]:
    """The exception types that the library raises; its own have no common base class."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "EPFail", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile",
        "NotImplemented", "RuntimeException",
    )  # fmt: skip
    return (*(getattr(state, name) for name in names), MemoryError, RuntimeError, ValueError)


def unreadable(kind: str, artefact: Path, error: Exception) -> EngineError | OutOfMemory:
    """The exception to raise for a library error while opening a file."""
    if is_shortage(error):
        return explain(kind, error)
    return EngineError(
        f"{kind}: ONNX Runtime cannot open {artefact}: {str(error)[:500]}; delete {artefact.parent} and build again"
    )


def explain(kind: str, error: Exception) -> EngineError | OutOfMemory:
    """The exception to raise for a library error while running an engine."""
    if is_shortage(error):
        return OutOfMemory(f"{kind}: ONNX Runtime ran out of memory{detail(error)}; {SMALLER}")
    return EngineError(f"{kind}: ONNX Runtime failed: {str(error)[:500]}; {run_elsewhere(kind)}")
