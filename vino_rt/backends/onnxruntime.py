"""ONNX Runtime on the CPU behind the engine protocol: one session per kind, weights as arguments.

Layers of a kind share the session and hand it their own weights on every call, so weights exist once in memory however
many shapes are in use (bench/LOG.md: at real lengths arguments are as fast as constants). Weights that a file takes as
int8 are quantised once, when an engine is opened; the float32 original is not kept.
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
"""What an ONNX file appends to the name of a quantised weight, by its element type, and to the name of its scales."""
ELEMENTS = {
    torch.float32: 1, torch.uint8: 2, torch.int8: 3, torch.int32: 6, torch.int64: 7, torch.bfloat16: 16,
}  # fmt: skip
"""The numbers that ONNX gives to the types of tensors."""
LARGEST = 127
ZERO_POINT = 128
"""Zero point of uint8 weights: each is the int8 weight plus this."""
OLDEST, TOO_NEW = (1, 31), (2,)
"""Versions of ONNX Runtime that have the operators of our files: from the first up to, not including, the second."""
REQUIREMENT = f"onnxruntime>={'.'.join(map(str, OLDEST))},<{TOO_NEW[0]}"
"""The same as pip takes it, and as this package requires it."""


def multiplies_int8() -> bool:
    """Whether ONNX Runtime multiplies uint8 activations by int8 weights exactly on this processor.

    On x86 without VNNI it adds pairs of products in 16 bits, which overflow. It is exact there for uint8 weights.
    """
    found = torch.cpu.get_capabilities()
    return not found.get("avx2") or bool(found.get("avx512_vnni") or found.get("avx_vnni"))


def weight_suffix() -> str:
    """Suffix by element type of the quantised weights in files that are built on this processor."""
    return INT8_SUFFIX if multiplies_int8() else UINT8_SUFFIX


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise a weight float32 [O, I] to int8 [I, O] and scales float32 [O]: symmetric, one per output channel."""
    largest = weight.abs().amax(1)
    scale = torch.where(largest > 0, largest / LARGEST, torch.ones_like(largest))
    return (weight / scale[:, None]).round().to(torch.int8).T.contiguous(), scale


class BoundSession:
    """A session of one layer: the layer's weights are bound once, inputs and outputs at every call.

    Nothing is copied: the session reads weights and inputs where they lie, and outputs are tensors on its own memory.
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
        # A binding knows addresses alone: the tensors there are kept here.
        self.weights = {name: weight for name, weight in weights.items() if name in self.accepted}
        self._binding = session.io_binding()
        for name, weight in self.weights.items():
            self._bind(name, weight)

    def run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Compute on those of the contiguous inputs that the session takes; outputs come in the file's order."""
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
            # Otherwise the next run would write to the outputs of this one.
            self._binding.clear_binding_outputs()

    def _bind(self, name: str, tensor: Tensor) -> None:
        number, shape = self._device.index or 0, list(tensor.shape)
        self._binding.bind_input(name, self._device.type, number, ELEMENTS[tensor.dtype], shape, tensor.data_ptr())


class OnnxEngine(Engine):
    """One layer: a session that layers share and the layer's weights, quantised where the file takes them so."""

    def __init__(self, kind: Kind, session: "InferenceSession", weights: Mapping[str, Tensor]) -> None:
        super().__init__(kind.spec)
        accepted = {node.name for node in session.get_inputs()}
        given = all_taken(weights, accepted)
        check_weights(kind, given, accepted)
        self.bound = BoundSession(kind.name, session, given)

    def _run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return self.bound.run(inputs)


class OnnxRuntimeBackend(Backend):
    """CPU execution provider; `threads` None leaves the number to the library (one per physical core)."""

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
        """Version of the installed library; EngineError when it is not there."""
        return library_version()

    def check(self, kind: Kind) -> None:
        """See `Backend.check`; int8 attention needs a processor with its instructions."""
        super().check(kind)
        if kind.precision == INT8_ATTENTION:
            # Not at the top of the file: it imports the kernels, which no other precision needs.
            from vino_rt.kernels import check_int8_attention

            check_int8_attention(kind.name)

    def target(self) -> tuple[str, ...]:
        """Tell files with uint8 weights, which this processor may need, from those with int8 weights."""
        return () if multiplies_int8() else ("uint8 weights",)

    def open(self, kind: Kind, artefact: Path | None, weights: Sequence[Mapping[str, Tensor]]) -> list[Engine]:
        """Load the ONNX file once and make one engine per layer on it."""
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
        # A pattern plans one block of memory for every shape it has seen and keeps them all: with several sizes in use
        # that is a sixth more memory and no faster (bench/LOG.md).
        options.enable_mem_pattern = False
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        # Every kind has a pool of its own; without this the pool of the kind that just ran keeps a core busy waiting.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def all_taken(weights: Mapping[str, Tensor], accepted: Set[str]) -> dict[str, Tensor]:
    """All weights of a layer as `taken` converts them."""
    return {n: tensor for name, weight in weights.items() for n, tensor in taken(name, weight, accepted).items()}


def taken(name: str, weight: Tensor, accepted: Set[str]) -> dict[str, Tensor]:
    """Convert a weight to what a file takes: the tensor itself, or the quantised one and its scales."""
    suffix = next((suffix for suffix in (INT8_SUFFIX, UINT8_SUFFIX) if name + suffix in accepted), None)
    if suffix is None:
        return {name: weight.contiguous()}
    values, scale = quantise(weight)
    if suffix == UINT8_SUFFIX:
        values = (values.to(torch.int16) + ZERO_POINT).to(torch.uint8)
    return {name + suffix: values, name + SCALE_SUFFIX: scale}


def library_version() -> str:
    """Version of ONNX Runtime; EngineError naming what to install where it is missing or of an unsupported version."""
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
    """EngineError naming weights that a file does not take and tensors that it takes and nobody gives."""
    given = set(weights) | {spec.name for spec in kind.spec.inputs}
    unknown, missing = sorted(set(weights) - accepted), sorted(accepted - given)
    if unknown or missing:
        raise EngineError(f"{kind.name}: the engine takes no weights named {unknown} and needs {missing}; {REBUILD}")


def library_errors() -> tuple[type[Exception], ...]:
    """What the library raises: classes of its own without a common base, and what the language adds for allocations."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "EPFail", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile",
        "NotImplemented", "RuntimeException",
    )  # fmt: skip
    return (*(getattr(state, name) for name in names), MemoryError, RuntimeError, ValueError)


def unreadable(kind: str, artefact: Path, error: Exception) -> EngineError | OutOfMemory:
    """What to raise for an error of the library's while it opens a file."""
    if is_shortage(error):
        return explain(kind, error)
    return EngineError(
        f"{kind}: ONNX Runtime cannot open {artefact}: {str(error)[:500]}; delete {artefact.parent} and build again"
    )


def explain(kind: str, error: Exception) -> EngineError | OutOfMemory:
    """What to raise for an error of the library's."""
    if is_shortage(error):
        return OutOfMemory(f"{kind}: ONNX Runtime ran out of memory{detail(error)}; {SMALLER}")
    return EngineError(f"{kind}: ONNX Runtime failed: {str(error)[:500]}; {run_elsewhere(kind)}")
