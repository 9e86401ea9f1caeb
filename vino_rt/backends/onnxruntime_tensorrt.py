"""ONNX Runtime's TensorRT provider; the store keeps the ONNX file and the plans that TensorRT made from it together.

The provider builds plans while a session is created, for the ranges of sizes in its options, and caches them beside the
file. Nothing is built while a request runs: outside of `build`, a missing plan is an error, and so are inputs outside
the ranges, for which the provider would silently build another plan. This backend has never run on the real library.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from vino_rt.backends.base import REBUILD, Kind
from vino_rt.backends.onnxruntime_cuda import CUDA_PROVIDER, BoundEngine, OnnxRuntimeCudaBackend
from vino_rt.backends.tensorrt.device import Device
from vino_rt.errors import EngineError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

TENSORRT_PROVIDER = "TensorrtExecutionProvider"
RANGES = "ranges.json"
"""File beside the ONNX file with the provider's options for sizes, by name."""
OPTIONS = ("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes")
PLANS = "*.engine"
Shape = tuple[int, ...]


class RangedEngine(BoundEngine):
    """One layer whose plans serve ranges of sizes; other sizes are refused before the provider sees them."""

    def __init__(
        self,
        kind: Kind,
        session: "InferenceSession",
        weights: Mapping[str, Tensor],
        place: Device,
        ranges: Mapping[str, tuple[Shape, Shape]],
    ) -> None:
        super().__init__(kind, session, weights, place)
        self._ranges = ranges

    def _run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        for name, (least, most) in self._ranges.items():
            shape = tuple(inputs[name].shape)
            if not all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)):
                raise EngineError(
                    f"{self.spec.kind}: tensor {name!r} has shape {shape}; the plans were built for {least} to {most}. "
                    "Add a [[bucket]] of this size to the recipe and run `vino-rt build`"
                )
        return super()._run(inputs)


class OnnxRuntimeTensorRtBackend(OnnxRuntimeCudaBackend):
    """The TensorRT provider, with the CUDA provider for operators that it does not take."""

    name = "onnxruntime-tensorrt"
    sized = True
    providers = (TENSORRT_PROVIDER, CUDA_PROVIDER)

    def build(self, kind: Kind, artefact: Path) -> None:
        """Let the provider write plans beside a file; raises as `open` does."""
        self.version()
        super().session(kind, artefact)
        _check_plans(kind, artefact)

    def engine(
        self, kind: Kind, artefact: Path, session: "InferenceSession", weights: Mapping[str, Tensor]
    ) -> BoundEngine:
        """The engine of one layer, which refuses sizes that no plan was built for."""
        return RangedEngine(kind, session, weights, self.place(), shape_ranges(kind, artefact))

    def session(self, kind: Kind, artefact: Path) -> "InferenceSession":
        """See `OnnxRuntimeCudaBackend.session`; EngineError if no plan was built."""
        _check_plans(kind, artefact)
        return super().session(kind, artefact)

    def options(self, provider: str, kind: Kind, artefact: Path) -> dict[str, str]:
        """Options of one provider, by ONNX Runtime's names; EngineError if `RANGES` cannot be read."""
        common = super().options(provider, kind, artefact)
        if provider != TENSORRT_PROVIDER:
            return common
        return {
            **common,
            **read_ranges(kind, artefact),
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(artefact.parent),
            "trt_bf16_enable": "1" if kind.precision == "bfloat16" else "0",
        }


def read_ranges(kind: Kind, artefact: Path) -> dict[str, str]:
    """The provider's options for sizes, read from `RANGES` beside a file; EngineError if that fails."""
    path = artefact.with_name(RANGES)
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return {name: str(said[name]) for name in OPTIONS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(kind, artefact, error) from error


def shape_ranges(kind: Kind, artefact: Path) -> dict[str, tuple[Shape, Shape]]:
    """Smallest and largest shape of every input with a dynamic size; EngineError if `RANGES` cannot be read."""
    told = read_ranges(kind, artefact)
    try:
        least, most = (_shapes(told[name]) for name in (OPTIONS[0], OPTIONS[-1]))
        if least.keys() != most.keys():
            raise ValueError(f"it has smallest shapes of {', '.join(least)} and largest ones of {', '.join(most)}")
    except ValueError as error:
        raise _unreadable(kind, artefact, error) from error
    return {name: (shape, most[name]) for name, shape in least.items()}


def _shapes(option: str) -> dict[str, Shape]:
    """Parse `NAME:2x3x4,NAME:5x6`; ValueError for anything else."""
    pairs = (part.rpartition(":") for part in option.split(",") if part)
    return {name: tuple(int(size) for size in sizes.split("x")) for name, _, sizes in pairs}


def _unreadable(kind: Kind, artefact: Path, error: Exception) -> EngineError:
    return EngineError(f"{kind.name}: {artefact.with_name(RANGES)} cannot be read ({error}); {REBUILD}")


def _check_plans(kind: Kind, artefact: Path) -> None:
    if not any(artefact.parent.glob(PLANS)):
        raise EngineError(f"{kind.name}: TensorRT left no plan beside {artefact}; {REBUILD}")
