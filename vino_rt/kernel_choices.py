"""Which implementation of each hot operation the kernel dispatcher chooses for a model on a device, and why."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vino_rt.bucket import patch_grid
from vino_rt.kernels import OPERATIONS, Device, Needs, Shape, choose
from vino_rt.model_dir import ModelDir
from vino_rt.plan import MAX_BRANCHES, volume


@dataclass(frozen=True)
class KernelChoice:
    """The dispatcher's choice for one operation at one size."""

    operation: str
    case: str
    """`picture` or `clip`: the model's default size of either."""
    shape: str
    implementation: str | None
    """None where no implementation supports the call."""
    reason: str


def kernel_choices(model: ModelDir, device: torch.device) -> tuple[KernelChoice, ...]:
    """The choice for each operation at the model's default picture and clip, looked up in the table of measured times.

    bfloat16 on a CUDA device, float32 elsewhere; all guidance branches in one sequence. Only the learnable queries
    count as text rows; a prompt's tokens would add to them. Segment offsets live on the model's device: on a GPU this
    rules out implementations that loop over segments on the host, and every offset counts as a segment.
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
    """Each operation with the shape it is called with, in the order of `OPERATIONS`."""
    config, settings = model.transformer, model.settings
    width, height = settings.default_size
    dtype = torch.bfloat16 if on_gpu else torch.float32
    frames, sampling = (1, settings.image) if case == "picture" else (settings.default_frames, settings.video)
    branches = 2 if sampling.guidance > 1 else 1
    target = volume(patch_grid((frames, height, width), settings.unit))
    rows = branches * (target + model.connector.num_queries)
    heads, head_size = config.num_attention_heads, config.attention_head_dim
    row = Shape(dtype, rows, config.width)
    known = {
        "boundary_attention": Shape(dtype, rows, head_size, heads, MAX_BRANCHES if on_gpu else branches),
        "qk_norm_rope": Shape(dtype, rows, head_size, heads),
        "norm_modulate": row,
        "gated_residual": row,
        # Latents stay float32: a step's change would get lost in bfloat16.
        "guide_and_step": Shape(torch.float32, target, config.patch_values, segments=branches),
    }
    yield from ((operation, known[operation]) for operation in OPERATIONS)
