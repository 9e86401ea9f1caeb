"""The kernels that a model's transformer needs on one architecture, from the tables that choose launches at run time.

Attention has one kernel for short and one for long sequences; the other operations have one kernel for all lengths,
with the tile for long sequences, where the time is spent. The parameters of every kernel are declared here by name and
type; `compiler.py` refuses declarations that do not match the kernel.
"""

from collections.abc import Iterable, Iterator

import torch

from vino_kernels.ahead.shapes import Shapes
from vino_kernels.ahead.variant import Argument, Variant
from vino_kernels.boundary_attention import configs as attention
from vino_kernels.gated_residual import configs as residual
from vino_kernels.grid import Rule
from vino_kernels.guide_and_step import configs as step
from vino_kernels.launching import FP8_CAPABILITY
from vino_kernels.norm_modulate import configs as norm
from vino_kernels.qk_norm_rope import configs as rope

LENGTHS = {"short": attention.SHORT - 1, "long": attention.SHORT}
"""A representative number of rows for each length class of attention's tiles."""
BRANCHES = (1, 2, 3)


def variants(shapes: Iterable[Shapes], arch: int) -> tuple[Variant, ...]:
    """All kernels that models of these shapes launch on an architecture, such as 90, each once.

    Raises ValueError if two different kernels would get the same name.
    """
    found: dict[str, Variant] = {}
    for variant in (variant for model in shapes for variant in _of(model, arch)):
        if found.setdefault(variant.name, variant) != variant:
            raise ValueError(f"two different kernels would be called {variant.name}")
    return tuple(found.values())


def _of(model: Shapes, arch: int) -> Iterator[Variant]:
    yield from _rope(model, arch)
    yield from _norm(model, arch)
    yield from _residual(model, arch)
    yield from _step(model, arch)
    for length, rows in LENGTHS.items():
        yield attention_variant(model, arch, "forward", rows, length)


def _tensor(name: str, element: str, *shape: Rule, aligned: bool = True) -> Argument:
    return Argument(name, f"*{element}", aligned, shape)


def _rope(model: Shapes, arch: int) -> Iterator[Variant]:
    x = model.element
    rows: tuple[Rule, ...] = ("rows", model.heads, model.channels)
    arguments = (
        _tensor("q_ptr", x, *rows),
        _tensor("k_ptr", x, *rows),
        _tensor("q_weight_ptr", x, model.channels),
        _tensor("k_weight_ptr", x, model.channels),
        _tensor("positions_ptr", "i32", "rows", 3, aligned=False),
        _tensor("q_out_ptr", x, *rows),
        _tensor("k_out_ptr", x, *rows),
    )
    name = f"qk_norm_rope-{x}-{model.heads}x{model.channels}-{'_'.join(map(str, model.axes))}-{model.theta:g}"
    config = rope.choose(model.heads, model.channels, None, getattr(torch, model.dtype), divmod(arch, 10))
    constants = rope.constants(model.heads, model.channels, model.axes, model.theta, config)
    yield Variant(arch, name, "qk_norm_rope", "qk_norm_rope_kernel", arguments, constants, rope.GRID, config.warps)


def _norm(model: Shapes, arch: int) -> Iterator[Variant]:
    """LayerNorm as the model uses it; in 16 bits also with a float8 result, on GPUs that have this type."""
    fp8 = model.dtype != "float32" and divmod(arch, 10) >= FP8_CAPABILITY
    for quantise in (False, True) if fp8 else (False,):
        x, made = model.element, "fp8e4nv" if quantise else model.element
        divisor = (_tensor("out_scale_ptr", "fp32", 1, aligned=False),) if quantise else ()
        arguments = (
            _tensor("x_ptr", x, "rows", model.width),
            _tensor("shift_ptr", x, model.width),
            _tensor("scale_ptr", x, model.width),
            *divisor,
            _tensor("out_ptr", made, "rows", model.width),
            Argument("rows", "i32"),
        )
        # Without a float8 result the kernel does not read the divisor.
        unread = {} if quantise else {"out_scale_ptr": None}
        dtype, place = getattr(torch, model.dtype), divmod(arch, 10)
        config = norm.choose(model.width, quantise=quantise, dtype=dtype, capability=place)
        constants = {**unread, **norm.constants(model.width, rms=False, quantise=quantise, config=config)}
        name = f"norm_modulate-{x}-{model.width}{'-fp8' if quantise else ''}"
        kernel = "norm_modulate_kernel"
        yield Variant(arch, name, "norm_modulate", kernel, arguments, constants, norm.GRID, config.warps)


def _residual(model: Shapes, arch: int) -> Iterator[Variant]:
    x, width = model.element, model.width
    arguments = (
        _tensor("x_ptr", x, "rows", width),
        _tensor("gate_ptr", x, width),
        _tensor("y_ptr", x, "rows", width),
        _tensor("out_ptr", x, "rows", width),
        Argument("rows", "i32"),
    )
    config = residual.choose(width, None, getattr(torch, model.dtype), divmod(arch, 10))
    constants, name = residual.constants(width, config), f"gated_residual-{x}-{width}"
    kernel = "gated_residual_kernel"
    yield Variant(arch, name, "gated_residual", kernel, arguments, constants, residual.GRID, config.warps)


def _step(model: Shapes, arch: int) -> Iterator[Variant]:
    """The guidance and Euler step. Latents are float32 in every model; latents and velocities are passed flat.

    `by16` is for counts that are multiples of 16, such as those of latents with 16 channels: every branch then begins
    at an aligned address and is read in vectors. The other variant takes any count, element by element.
    """
    for branches in BRANCHES:
        for by16 in (False, True):
            arguments = (
                _tensor("latents_ptr", "fp32", "count"),
                _tensor("velocity_ptr", model.element, branches, "count"),
                _tensor("guidance_ptr", "fp32", 2, aligned=False),
                _tensor("delta_ptr", "fp32", 1, aligned=False),
                _tensor("out_ptr", "fp32", "count"),
                Argument("count", "i32", aligned=by16),
            )
            constants, kernel = step.constants(branches), "guide_and_step_kernel"
            name = f"guide_and_step-{model.element}-{branches}{'-by16' if by16 else ''}"
            yield Variant(arch, name, "guide_and_step", kernel, arguments, constants, step.GRID, step.WARPS)


def attention_variant(model: Shapes, arch: int, kernel: str, rows: int, length: str) -> Variant:
    """`boundary_attention` tuned for sequences of about `rows` rows; correct for any number.

    kernel: `forward`; or `tma` (which needs scratch memory), `queries` or `keys` (the gradient), which no engine
    launches. length: part of the variant's name.
    """
    wanted = model.channels, getattr(torch, model.dtype), rows, *divmod(arch, 10)
    tile: attention.Tile = attention.tma_tile(*wanted) if kernel == "tma" else getattr(attention.tiles(*wanted), kernel)
    launch = tile.warps, tile.stages
    constants = attention.constants(model.channels, tile, model.cuts)
    if kernel == "tma":
        constants["SPECIALISED"] = tile.specialised
    slots = constants["SEGMENT_SLOTS"], constants["GROUP_SLOTS"]
    arguments = (*_attention_inputs(model, slots), *_attention_results(model, kernel))
    name = f"boundary_attention-{kernel}-{model.element}-{model.channels}-{length}-{slots[0]}x{slots[1]}"
    return Variant(arch, name, "boundary_attention", f"{kernel}_kernel", arguments, constants, attention.GRID, *launch)


def _attention_inputs(model: Shapes, slots: tuple[int, int]) -> Iterator[Argument]:
    """Input arguments, for any number of heads; strides come from the tensors, so q, k and v may be views of one."""
    aligned = model.channels % 16 == 0
    for x in "qkv":
        strides: tuple[Rule, ...] = (f"{x}_row", f"{x}_head", 1)
        yield Argument(x, f"*{model.element}", aligned, ("rows", "heads", model.channels), strides)
    yield _tensor("offsets", "i32", ("add", "n_segments", 1), aligned=False)
    yield _tensor("groups", "i32", ("add", "n_groups", 1), aligned=False)
    for x in "qkv":
        yield Argument(f"{x}_row", "i32", aligned)
        yield Argument(f"{x}_head", "i32", aligned)
    yield Argument("heads", "i32")
    yield Argument("n_segments", "i32", most=slots[0] - 1)
    yield Argument("n_groups", "i32", most=slots[1] - 1)


def _attention_results(model: Shapes, kernel: str) -> Iterator[Argument]:
    names = {
        "forward": ("out", "lse"),
        "tma": ("out", "lse"),
        "queries": ("grad_out", "grad_lse", "out", "lse", "grad_q", "shift"),
        "keys": ("grad_out", "lse", "shift", "grad_k", "grad_v"),
    }
    for name in names[kernel]:
        if name in ("lse", "grad_lse", "shift"):
            yield _tensor(name, "fp32", "rows", "heads")
        else:
            yield _tensor(name, model.element, "rows", "heads", model.channels)
