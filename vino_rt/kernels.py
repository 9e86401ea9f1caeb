"""The one door to `vino_kernels`: the model's hot operations as kernels, and which fits a model where, and why."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vino_kernels.choice import OPERATIONS, Device, Needs, Shape, choose
from vino_rt.backends.base import REBUILD
from vino_rt.bucket import patch_grid
from vino_rt.errors import EngineError, OutOfMemory
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.ops import PLAIN, Operations, Turn
from vino_rt.plan import MAX_BRANCHES, volume
from vino_rt.step import End

STREAM = 5
"""Tensors that say what an `ops.Stream` is."""
Int8Attention = Callable[..., Tensor]
"""Of the tensors of all streams, cos, sin, offsets, and maybe orders: see `ops.joint_attention`. Contiguous, CPU."""


def kernel_operations() -> Operations:
    """The hot operations as the dispatcher runs them: kernels on CUDA tensors, their references on the CPU."""
    # Here and not above: registering the operations imports Triton where it is installed.
    from vino_kernels.choice import dispatch

    def rotate(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
        return dispatch.qk_norm_rope(q, k, q_weight, k_weight, turn.positions, turn.axes, turn.theta)

    return Operations(rotate, dispatch.boundary_attention, dispatch.norm_modulate, dispatch.gated_residual)


def kernel_end() -> End:
    """The end of a denoise step as the dispatcher runs it: guidance and Euler step in one pass, in float32."""
    from vino_kernels.choice import dispatch

    return dispatch.guide_and_step


def kernel_nodes() -> Operations:
    """The hot operations as our kernels whatever a call's size: what an export keeps as nodes for a compiler on CUDA.

    The choice among implementations is not asked: it looks at sizes, and what is exported is for every size.
    """
    from vino_kernels.boundary_attention import boundary_attention
    from vino_kernels.gated_residual import gated_residual
    from vino_kernels.norm_modulate import norm_modulate
    from vino_kernels.qk_norm_rope import qk_norm_rope

    def rotate(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
        return qk_norm_rope(q, k, q_weight, k_weight, turn.positions, turn.axes, turn.theta)

    def attend(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
        return boundary_attention(q, k, v, offsets)[0]

    return Operations(rotate, attend, norm_modulate, gated_residual)


def int8_attention_operations() -> Operations:
    """The plain operations, attention rounded as our kernel for the CPU rounds it: what judges an engine with it."""
    from vino_kernels.int8_attention import int8_attention

    return replace(PLAIN, boundary_attention=int8_attention)


def compile_int8_attention(compiler: str) -> bytes:
    """Our int8 attention for the CPU as a shared library; EngineError with the compiler's words where it fails."""
    from vino_kernels.int8_attention import compile_library

    try:
        return compile_library(compiler)
    except RuntimeError as error:
        raise EngineError(f"int8 attention: {error}") from error


def load_int8_attention(where: str, library: bytes, threads: int) -> Int8Attention:
    """The same ready to run with so many threads; EngineError where the library or this processor does not serve.

    It raises EngineError for a model's head size that it does not take, OutOfMemory.
    """
    from vino_kernels.int8_attention import Library, Stream, missing_instructions

    if missing := missing_instructions():
        raise EngineError(f"{where}: int8 attention needs {', '.join(missing)} of the processor; use recipe 'cpu-int8'")
    try:
        loaded = Library(library)
    except (OSError, AttributeError) as error:
        raise EngineError(f"{where}: its kernel cannot be loaded ({error}); {REBUILD}") from error

    def attend(
        flat: Sequence[Tensor], cos: Tensor, sin: Tensor, offsets: Tensor, orders: Tensor | None = None
    ) -> Tensor:
        streams = [Stream(*flat[i : i + STREAM]) for i in range(0, len(flat), STREAM)]
        try:
            return loaded.attend(streams, cos, sin, offsets, None if orders is None else orders[0], threads)
        except MemoryError as error:
            raise OutOfMemory(f"{where}: {error}; use a smaller size or fewer frames") from error
        except ValueError as error:
            raise EngineError(f"{where}: {error}; use recipe 'cpu-int8'") from error

    return attend


@dataclass(frozen=True)
class KernelChoice:
    """What the dispatcher takes for one operation at one size."""

    operation: str
    case: str
    """`picture` or `clip`: the model's default."""
    shape: str
    implementation: str | None
    """None where no implementation can serve."""
    reason: str


def kernel_choices(model: ModelDir, device: torch.device) -> tuple[KernelChoice, ...]:
    """The choice for each operation at the model's default picture and clip, looked up in the table of measured times.

    bfloat16 on a CUDA device, float32 else; all branches that guidance needs in one sequence. Rows of text are the
    learnable queries: those of a prompt come on top. The model's offsets lie on its device: on a GPU no implementation
    can serve that calls once for each segment, and every entry of the table counts as one.
    """
    facts = Device.of(device)
    needs = Needs(host_bounds=facts.kind != "cuda")
    found = []
    for case in ("picture", "clip"):
        for operation, shape in _shapes(model, case, on_gpu=facts.kind == "cuda"):
            try:
                choice = choose(operation, shape, facts, needs)
            except ValueError as error:
                found.append(KernelChoice(operation, case, str(shape), None, str(error)))
                continue
            found.append(KernelChoice(operation, case, str(shape), choice.implementation, choice.reason))
    return tuple(found)


def _shapes(model: ModelDir, case: str, *, on_gpu: bool) -> Iterator[tuple[str, Shape]]:
    """What each operation is called with, in the order of `OPERATIONS`."""
    config, (width, height) = model.transformer, model.default_size
    dtype = torch.bfloat16 if on_gpu else torch.float32
    frames, sampling = (1, model.image) if case == "picture" else (model.default_frames, model.video)
    branches = 2 if sampling.guidance > 1 else 1
    target = volume(patch_grid((frames, height, width), model.unit))
    rows = branches * (target + model.connector.num_queries)
    heads, head_size = config.num_attention_heads, config.attention_head_dim
    row = Shape(dtype, rows, config.width)
    known = {
        "boundary_attention": Shape(dtype, rows, head_size, heads, MAX_BRANCHES if on_gpu else branches),
        "qk_norm_rope": Shape(dtype, rows, head_size, heads),
        "norm_modulate": row,
        "gated_residual": row,
        # Latents stay float32: a step adds little to them.
        "guide_and_step": Shape(torch.float32, target, config.patch_values, segments=branches),
    }
    yield from ((operation, known[operation]) for operation in OPERATIONS)
