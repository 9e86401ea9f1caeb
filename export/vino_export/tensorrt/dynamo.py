"""Build a plan through torch-tensorrt's Dynamo frontend, from the same exported programs as the other exporters.

Weights are arguments. Our operators are decomposed into plain ones, attention into one with an L x L mask, so this path
is for short sequences, and for those who prefer torch-tensorrt's converters to NVIDIA's ONNX parser.
"""

import tempfile
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
from vino_export.tensorrt.network import attends
from vino_export.tensorrt.profiles import Profile, Span, check_mask, profiles_of, shapes
from vino_export.tensorrt.progress import BuildStep
from vino_export.tensorrt.timings import timings_file
from vino_export.tensorrt.write import PlanOptions, layers_of
from vino_rt.backends.base import DTYPES, Kind, TensorSpec
from vino_rt.backends.tensorrt.description import Description, write_description
from vino_rt.backends.tensorrt.dynamo import load_builder
from vino_rt.backends.tensorrt.library import load, make_logger
from vino_rt.errors import EngineError
from vino_rt.models.vino.ops import plain_norm_modulate

SHORTER = "leave its bucket out, or build with the recipe tensorrt or tensorrt-plugin"
PHASE = "torch-tensorrt"
"""The only phase that a build reports: this builder has no progress callback and cannot be stopped while it runs."""


def write_dynamo_plan(kind: Kind, path: Path, weights: Mapping[str, Tensor], options: PlanOptions) -> None:
    """Build a kind's plan at `path`, with `engine.json` beside it.

    weights: of any layer; only their shapes and dtypes are read. Timings are kept in `options.timing_cache`, if given.
    The library's engine cache stays off: it is loaded by unpickling, which can execute foreign code, and the store
    keeps finished plans anyway. Raises EngineError if a library is missing or fails, or if a sequence is too long for a
    mask.
    """
    builder, library = load_builder(), load()
    found = profiles_of(kind, options.buckets, options.unit, options.area)
    check_mask(kind, attends(kind), found, SHORTER)
    profiles = [_at_least_one(profile) for profile in found]
    options.on_step(BuildStep(PHASE, 0, 1))
    with tempfile.TemporaryDirectory() as folder:
        timings = timings_file(options.timing_cache or Path(folder), f"torch-{builder.__version__}", options.target)
        timings.parent.mkdir(parents=True, exist_ok=True)
        plan = _converted(builder, kind, weights, profiles, _settings(options, timings))
    options.on_step(BuildStep(PHASE, 1, 1))
    path.write_bytes(plan)
    description = Description(
        kind=kind.name,
        tensorrt=str(library.__version__),
        target=options.target,
        variant=f"torch-tensorrt {builder.__version__}",
        inputs=tuple(spec.name for spec in kind.spec.inputs),
        weights=None,
        profiles=tuple({n: (s.least, s.best, s.most) for n, s in profile.items()} for profile in profiles),
        layers=layers_of(library, make_logger(library), kind, plan),
    )
    write_description(path, description)


def _converted(
    builder: Any, kind: Kind, weights: Mapping[str, Tensor], profiles: list[Profile], settings: Mapping[str, Any]
) -> bytes:
    program = plain_program(kind)
    given = [_input(builder, spec, profiles) for spec in kind.spec.inputs]
    fixed = [builder.Input(shape=tuple(x.shape), dtype=x.dtype, name=name) for name, x in weights.items()]
    try:
        plan: bytes = builder.dynamo.convert_exported_program_to_serialized_trt_engine(
            program,
            arg_inputs=(given, fixed),
            arg_input_binding_names=([spec.name for spec in kind.spec.inputs], list(weights)),
            output_binding_names=tree_unflatten([spec.name for spec in kind.spec.outputs], program.call_spec.out_spec),
            **settings,
        )
    except (RuntimeError, ValueError, AssertionError, NotImplementedError, OSError) as error:
        raise EngineError(f"{kind.name}: torch-tensorrt cannot build it: {str(error)[-1500:]}") from error
    return plan


def _settings(options: PlanOptions, timings: Path) -> dict[str, Any]:
    return {
        # Nothing may be left for PyTorch to run; one stream, which is what a graph is recorded from.
        "require_full_compilation": True,
        "max_aux_streams": 0,
        "disable_tf32": True,
        "optimization_level": options.optimization,
        # By default the library takes every mask for a causal one and drops it.
        "attn_bias_is_causal": False,
        # By default the file lies in the machine's directory of temporary files, which all users share.
        "timing_cache_path": str(timings),
        "cache_built_engines": False,
        "reuse_cached_engines": False,
    }


def plain_program(kind: Kind) -> torch.export.ExportedProgram:
    """The exported program of a kind in PyTorch's own operators only, with weights as arguments."""
    with without_library_notes():
        program: torch.export.ExportedProgram = export_with_arguments(kind).run_decompositions(_decompositions())
    return program


def _input(builder: Any, spec: TensorSpec, profiles: list[Profile]) -> Any:
    """An input with a shape range per profile, or with a single shape if its sizes are fixed."""
    dtype = DTYPES[spec.dtype]
    if all(isinstance(dim, int) for dim in spec.dims):
        return builder.Input(shape=spec.dims, dtype=dtype, name=spec.name)
    names = ("min_shape", "opt_shape", "max_shape")
    ranges = [dict(zip(names, shapes(spec, profile), strict=True)) for profile in profiles]
    return builder.Input(profiles=ranges, dtype=dtype, name=spec.name)


def _at_least_one(profile: Profile) -> Profile:
    """The profile with sizes of at least 1: the library supports no empty inputs (see `OneRowEngine`)."""
    return {name: Span(*(max(1, size) for size in (s.least, s.best, s.most))) for name, s in profile.items()}


def _decompositions() -> dict[Any, Callable[..., Any]]:
    return {
        torch.ops.vino.norm_modulate.default: plain_norm_modulate,
        torch.ops.vino.qk_norm_rope.default: plain_qk_norm_rope,
        torch.ops.vino.boundary_attention.default: masked_attention,
    }


def masked_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    """`boundary_attention` of q, k, v [L, H, C] with an [L, L] mask, so that no offset is read on the host."""
    rows = torch.arange(q.shape[0], device=q.device)
    segment = (rows[:, None] >= offsets[None, 1:-1]).sum(1)
    seen = segment[:, None] == segment[None]
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[None, None])[0].transpose(0, 1)
    return torch.where((rows < offsets[-2])[:, None, None], mixed, torch.zeros_like(mixed))
