"""ONNX Runtime on the CPU behind the engine protocol: one session per kind, weights as arguments.

Layers of a kind share the session and hand it their own weights on every call, so weights exist once in memory however
many shapes are in use (bench/LOG.md: at real lengths arguments are as fast as constants). Where a file takes a weight
as int8, it is rounded once, when its engine is opened, and what it was rounded from is not kept.
"""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vino_rt.backends.base import INT8_ATTENTION, REBUILD, Backend, Engine, Kind
from vino_rt.errors import EngineError, OutOfMemory

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

INT8, UINT8, SCALE = ".int8", ".uint8", ".scale"
"""What an ONNX file appends to the name of a quantised weight, by its element type, and to the name of its scales."""
LARGEST = 127
ZERO_POINT = 128
"""Of a uint8 weight: it is the int8 weight plus this."""


def multiplies_int8() -> bool:
    """Whether ONNX Runtime multiplies uint8 activations by int8 weights exactly on this processor.

    On x86 without VNNI it adds pairs of products in 16 bits, which overflow. It is exact there for uint8 weights.
    """
    found = torch.cpu.get_capabilities()
    return not found.get("avx2") or bool(found.get("avx512_vnni") or found.get("avx_vnni"))


def weight_suffix() -> str:
    """`INT8` or `UINT8`: the element type of quantised weights in files that are built on this processor."""
    return INT8 if multiplies_int8() else UINT8


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight float32 [O, I] as int8 [I, O] and float32 [O]: symmetric, one scale for each output channel."""
    largest = weight.abs().amax(1)
    scale = torch.where(largest > 0, largest / LARGEST, torch.ones_like(largest))
    return (weight / scale[:, None]).round().to(torch.int8).T.contiguous(), scale


class OnnxEngine(Engine):
    """One layer: a shared session and the layer's weights, as numpy views of the tensors they came in or rounded."""

    def __init__(self, kind: Kind, session: "InferenceSession", weights: Mapping[str, Tensor]) -> None:
        super().__init__(kind.spec)
        self._session = session
        self._outputs = [spec.name for spec in kind.spec.outputs]
        self._accepted = {node.name for node in session.get_inputs()}
        self._weights = {
            name: tensor.numpy()
            for given, weight in weights.items()
            for name, tensor in taken(given, weight, self._accepted).items()
        }
        check_weights(kind, self._weights, self._accepted)

    def _run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        feeds: dict[str, Any] = {n: t.numpy() for n, t in inputs.items() if n in self._accepted}
        try:
            outputs = self._session.run(self._outputs, feeds | self._weights)
        except library_errors() as error:
            raise explain(self.spec.kind, error) from error
        return tuple(torch.from_numpy(array) for array in outputs)


class OnnxRuntimeBackend(Backend):
    """CPU execution provider; `threads` None leaves the number to the library (one per physical core)."""

    name = "onnxruntime"

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads

    def version(self) -> str:
        """Version of the installed library; EngineError when it is not there."""
        return library_version()

    def target(self) -> tuple[str, ...]:
        """The element type of quantised weights where it is not int8."""
        return () if multiplies_int8() else ("uint8 weights",)

    def open(self, kind: Kind, artefact: Path | None, weights: Sequence[Mapping[str, Tensor]]) -> list[Engine]:
        """Load the ONNX file once and make one engine per layer on it."""
        self.version()
        if artefact is None:
            raise EngineError(f"backend 'onnxruntime' needs a built engine for kind {kind.name!r}")
        try:
            session = self._session(str(artefact))
            if any(node.name.endswith(INT8) for node in session.get_inputs()) and not multiplies_int8():
                raise EngineError(f"{kind.name}: {artefact} was built for a processor with VNNI; {REBUILD}")
            if kind.precision == INT8_ATTENTION:
                # Here and not above: that file is made of this one.
                from vino_rt.backends.onnxruntime_halves import open_halves

                return open_halves(kind, session, self._session, weights, self.threads or torch.get_num_threads())
        except library_errors() as error:
            raise unreadable(kind.name, artefact, error) from error
        return [OnnxEngine(kind, session, layer) for layer in weights]

    def _session(self, source: str | bytes) -> "InferenceSession":
        """Of a path or a file's content."""
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


def taken(name: str, weight: Tensor, accepted: Set[str]) -> dict[str, Tensor]:
    """A weight in the form a file takes it: as it is, or quantised to int8 or uint8."""
    suffix = next((suffix for suffix in (INT8, UINT8) if name + suffix in accepted), None)
    if suffix is None:
        return {name: weight.contiguous()}
    values, scale = quantise(weight)
    if suffix == UINT8:
        values = (values.to(torch.int16) + ZERO_POINT).to(torch.uint8)
    return {name + suffix: values, name + SCALE: scale}


def library_version() -> str:
    """Of ONNX Runtime; EngineError when it is not there."""
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            "backend 'onnxruntime' needs its library; install it with: pip install onnxruntime"
        ) from error
    return str(onnxruntime.__version__)


def check_weights(kind: Kind, weights: Mapping[str, Any], accepted: Set[str]) -> None:
    """EngineError naming weights that a file does not take and tensors that it takes and nobody gives."""
    given = set(weights) | {spec.name for spec in kind.spec.inputs}
    unknown, missing = sorted(set(weights) - accepted), sorted(accepted - given)
    if unknown or missing:
        raise EngineError(
            f"{kind.name}: the engine takes no weights named {unknown} and needs {missing}; "
            "rebuild it with `vino-rt build`"
        )


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
    told = explain(kind, error)
    if isinstance(told, OutOfMemory):
        return told
    return EngineError(f"{told}; delete {artefact.parent} and build again")


def explain(kind: str, error: Exception) -> EngineError | OutOfMemory:
    """What to raise for an error of the library's."""
    text = str(error)
    short = ("bad_alloc", "allocate memory", "out of memory", "CUDA failure 2:")
    if isinstance(error, MemoryError) or any(sign in text for sign in short):
        return OutOfMemory(f"{kind}: ONNX Runtime ran out of memory; use a smaller size or fewer frames ({text[:200]})")
    return EngineError(f"{kind}: ONNX Runtime failed: {text[:500]}")
