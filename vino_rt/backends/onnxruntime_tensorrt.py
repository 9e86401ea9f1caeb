"""ONNX Runtime's TensorRT provider: the file and the plans that TensorRT made of it lie together in the store.

The provider builds plans while a session is made, for the range of sizes that it is told, and keeps them beside the
file, where the next session finds them. A session that finds none is refused unless it is made to build: nothing is
built when a request comes. It has never run on the library.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from vino_rt.backends.base import REBUILD, Kind
from vino_rt.backends.onnxruntime_cuda import CUDA_PROVIDER, OnnxRuntimeCudaBackend
from vino_rt.errors import EngineError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

TENSORRT_PROVIDER = "TensorrtExecutionProvider"
RANGES = "ranges.json"
"""Beside the file: what the provider is told of sizes, by the names of its options."""
OPTIONS = ("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes")
PLANS = "*.engine"


class OnnxRuntimeTensorRtBackend(OnnxRuntimeCudaBackend):
    """The TensorRT provider, with that for CUDA behind it."""

    name = "onnxruntime-tensorrt"
    sized = True
    providers = (TENSORRT_PROVIDER, CUDA_PROVIDER)

    def build(self, kind: Kind, artefact: Path) -> None:
        """Let the provider write plans beside a file; raises as `open`."""
        self.version()
        super().session(kind, artefact)
        _check_plans(kind, artefact)

    def session(self, kind: Kind, artefact: Path) -> "InferenceSession":
        """See `OnnxRuntimeCudaBackend`; EngineError where no plan was built."""
        _check_plans(kind, artefact)
        return super().session(kind, artefact)

    def options(self, provider: str, kind: Kind, artefact: Path) -> dict[str, str]:
        """What a provider is told."""
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
    """What lies in `RANGES` beside a file; EngineError for anything else."""
    path = artefact.with_name(RANGES)
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return {name: str(said[name]) for name in OPTIONS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{kind.name}: {path} cannot be read ({error}); {REBUILD}") from error


def _check_plans(kind: Kind, artefact: Path) -> None:
    if not any(artefact.parent.glob(PLANS)):
        raise EngineError(f"{kind.name}: TensorRT left no plan beside {artefact}; {REBUILD}")
