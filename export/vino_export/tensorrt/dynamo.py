"""The same exported programs through torch-tensorrt's Dynamo path to the same place: a plan for `TensorRtBackend`.

Weights are arguments, as everywhere; our operators become plain ones, attention with a mask of rows by rows: this way
is for short sequences, and for those who prefer its converters to NVIDIA's ONNX parser.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_unflatten

from vino_export.notes import without_library_notes
from vino_export.package import plain_qk_norm_rope
from vino_export.program import export_with_arguments
from vino_export.tensorrt.profiles import Profile, Span, profiles_of, shapes
from vino_export.tensorrt.write import PlanOptions
from vino_rt.backends.base import DTYPES, Kind, TensorSpec
from vino_rt.backends.tensorrt.description import Description, write_description
from vino_rt.backends.tensorrt.dynamo import load_builder
from vino_rt.backends.tensorrt.library import load
from vino_rt.errors import EngineError
from vino_rt.models.vino.ops import plain_norm_modulate


def write_dynamo_plan(kind: Kind, path: Path, weights: Mapping[str, Tensor], options: PlanOptions) -> None:
    """Build a kind to `path`, with `engine.json` beside it.

    weights: of some layer; only their shapes and types are read. With `options.timing_cache` the builder keeps its
    timings and its engines there and takes them from there; it unpickles them, so the directory must be your own.
    Raises EngineError where a library is missing or refuses.
    """
    builder, library = load_builder(), load()
    found = profiles_of(kind, options.buckets, options.unit, options.area)
    profiles = [_at_least_one(profile) for profile in found]
    program = plain_program(kind)
    outputs = tree_unflatten([spec.name for spec in kind.spec.outputs], program.call_spec.out_spec)
    given = [_input(builder, spec, profiles) for spec in kind.spec.inputs]
    fixed = [builder.Input(shape=tuple(x.shape), dtype=x.dtype, name=name) for name, x in weights.items()]
    try:
        plan: bytes = builder.dynamo.convert_exported_program_to_serialized_trt_engine(
            program,
            arg_inputs=(given, fixed),
            arg_input_binding_names=([spec.name for spec in kind.spec.inputs], list(weights)),
            output_binding_names=outputs,
            # Nothing may be left for PyTorch to run; one stream, which is what a graph is recorded from.
            require_full_compilation=True,
            max_aux_streams=0,
            disable_tf32=True,
            optimization_level=options.optimization,
            **_caches(options),
        )
    except (RuntimeError, ValueError, AssertionError, NotImplementedError) as error:
        raise EngineError(f"{kind.name}: torch-tensorrt cannot build it: {str(error)[-1500:]}") from error
    path.write_bytes(plan)
    description = Description(
        kind=kind.name,
        tensorrt=str(library.__version__),
        target=options.target,
        variant=f"torch-tensorrt {builder.__version__}",
        inputs=tuple(spec.name for spec in kind.spec.inputs),
        weights=None,
        profiles=tuple({n: (s.least, s.best, s.most) for n, s in profile.items()} for profile in profiles),
    )
    write_description(path, description)


def plain_program(kind: Kind) -> torch.export.ExportedProgram:
    """The exported program of a kind, weights as arguments, of PyTorch's own operators alone."""
    with without_library_notes():
        program: torch.export.ExportedProgram = export_with_arguments(kind).run_decompositions(_decompositions())
    return program


def _input(builder: Any, spec: TensorSpec, profiles: list[Profile]) -> Any:
    """An input with a profile for each bucket, or of one shape where its sizes are fixed."""
    dtype = DTYPES[spec.dtype]
    if all(isinstance(dim, int) for dim in spec.dims):
        return builder.Input(shape=spec.dims, dtype=dtype, name=spec.name)
    names = ("min_shape", "opt_shape", "max_shape")
    ranges = [dict(zip(names, shapes(spec, profile), strict=True)) for profile in profiles]
    return builder.Input(profiles=ranges, dtype=dtype, name=spec.name)


def _at_least_one(profile: Profile) -> Profile:
    """The library has no profiles of sizes that may be zero: what runs the plan gives it a row (`OneRowEngine`)."""
    return {name: Span(*(max(1, size) for size in (s.least, s.best, s.most))) for name, s in profile.items()}


def _caches(options: PlanOptions) -> dict[str, Any]:
    folder = options.timing_cache
    if folder is None:
        return {"cache_built_engines": False, "reuse_cached_engines": False}
    return {
        "timing_cache_path": str(folder / "torch-tensorrt.timing"),
        "cache_built_engines": True,
        "reuse_cached_engines": True,
        "immutable_weights": False,
        "engine_cache_dir": str(folder / "torch-tensorrt"),
    }


def _decompositions() -> dict[Any, Callable[..., Any]]:
    return {
        torch.ops.vino.norm_modulate.default: plain_norm_modulate,
        torch.ops.vino.qk_norm_rope.default: plain_qk_norm_rope,
        torch.ops.vino.boundary_attention.default: masked_attention,
    }


def masked_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    """`boundary_attention` of q, k and v [L, H, C] with a mask [L, L], without a look at the offsets' values."""
    rows = torch.arange(q.shape[0], device=q.device)
    segment = (rows[:, None] >= offsets[None, 1:-1]).sum(1)
    seen = segment[:, None] == segment[None]
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[None, None])[0].transpose(0, 1)
    return torch.where((rows < offsets[-2])[:, None, None], mixed, torch.zeros_like(mixed))
