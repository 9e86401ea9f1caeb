"""Verify an engine built for fixed sizes at each of these sizes, against the eager module on the engine's device.

`vino_export.verify` compares an engine with float64 on examples of a few hundred rows. A library may choose other
kernels for each size that an engine is built for, which the examples do not reach, and at these sizes float64 is too
slow. So here the reference is the eager module in the kind's own dtype, and the bound follows from that module's error
on the examples.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from vino_export.tensorrt.profiles import profiles_of
from vino_export.verify import MARGIN, ROUNDING, call, peak
from vino_rt.backends.base import DTYPES, Engine, Kind, TensorSpec
from vino_rt.backends.cuda_graph import Recorder
from vino_rt.backends.eager import load_module
from vino_rt.bucket import Bucket
from vino_rt.errors import EngineError
from vino_rt.memory import named_shortage

GROWTH = 2.0
"""Largest of a hundred million errors over the largest of a hundred thousand, for normally distributed errors."""
PADDING = 3
"""Rows of padding in the generated segment offsets, if there are enough rows."""
Sizes = Mapping[str, int]
"""Every dynamic size of a kind by name."""


def verify_sizes(
    kind: Kind,
    engine: Engine,
    weights: Mapping[str, Tensor],
    sizes: Sequence[Sizes],
    rounding: float,
    *,
    record: bool = False,
    on_size: Callable[[int], None] = lambda done: None,
) -> None:
    """Compare the engine with the eager module on random inputs of each of the sizes.

    The difference of an output may be at most `GROWTH` times the sum of the errors that both may have. Two runs must
    agree bit for bit and, with `record`, so must the replay of a CUDA graph of the run. rounding: `Verdict.rounding`.
    on_size: called with the number of sizes done. Raises EngineError naming the size and the output, OutOfMemory if a
    size needs more memory than the device has.
    """
    module = load_module(kind, {name: tensor.to(engine.device) for name, tensor in weights.items()})
    allowed = GROWTH * (MARGIN + 1) * rounding + ROUNDING
    for number, size in enumerate(sizes):
        shown = ", ".join(f"{name} {count}" for name, count in size.items())
        advice = f"verifying {kind.name} at {shown}; leave its [[bucket]] out of the recipe or build on a larger GPU"
        with named_shortage(advice):
            inputs, where = inputs_at(kind, size, engine.device), f"{kind.name} at {shown}"
            given = engine.fit(**inputs)
            outputs = engine.run(**given)
            _compare(kind, outputs, engine.run(**given), f"{where}: two runs differ in")
            if record:
                _compare(kind, outputs, _replayed(engine, given), f"{where}: launches and their recording differ in")
            _judge(kind, outputs, module, inputs, allowed, where)
        on_size(number + 1)


def _refused(kind: Kind) -> str:
    return (
        "the engine is not stored; leave that [[bucket]] out of the recipe, or let the recipe run this kind with "
        f'PyTorch: [kinds] {kind.name} = "eager"'
    )


def _compare(kind: Kind, first: Sequence[Tensor], second: Sequence[Tensor], what: str) -> None:
    for spec, one, other in zip(kind.spec.outputs, first, second, strict=True):
        if not torch.equal(one, other):
            raise EngineError(f"{what} output {spec.name!r}; {_refused(kind)}")


def _judge(
    kind: Kind,
    outputs: Sequence[Tensor],
    module: torch.nn.Module,
    inputs: Mapping[str, Tensor],
    allowed: float,
    where: str,
) -> None:
    # The reference must not compute float32 convolutions in TensorFloat32.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        ours = call(module, inputs)
    for spec, output, judge in zip(kind.spec.outputs, outputs, ours, strict=True):
        if output.shape != judge.shape:
            told = f"has shape {tuple(output.shape)} instead of {tuple(judge.shape)}"
            raise EngineError(f"{where}: output {spec.name!r} {told}; {_refused(kind)}")
        error, bound = peak(output.float() - judge), allowed * peak(judge)
        if not error <= bound:
            told = f"is {error:.3g} from eager PyTorch, allowed {bound:.3g}"
            raise EngineError(f"{where}: output {spec.name!r} {told}; {_refused(kind)}")


def _replayed(engine: Engine, given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Record a run as a CUDA graph, as steps are recorded, and return the outputs of its replay."""
    kept = tuple(torch.full_like(output, torch.nan) for output in engine.run(**given))

    def work() -> None:
        for own, output in zip(kept, engine.run(**given), strict=True):
            own.copy_(output)

    replay = Recorder(engine.device)(work)
    for own in kept:
        own.fill_(torch.nan)
    replay()
    torch.cuda.synchronize(engine.device)
    return kept


def bucket_sizes(kind: Kind, buckets: Sequence[Bucket], unit: int, area: int) -> list[dict[str, int]]:
    """The sizes that an engine is optimised for: one for each of its profiles except that of the examples.

    unit, area: see `ModelSettings`.
    """
    *profiles, _ = profiles_of(kind, buckets, unit, area)
    return [{name: span.best for name, span in profile.items()} for profile in profiles]


def inputs_at(kind: Kind, sizes: Sizes, device: torch.device) -> dict[str, Tensor]:
    """Random inputs of these sizes, deterministic; tables and indices have values that a request may have."""
    generator = torch.Generator(device).manual_seed(0)
    return {spec.name: _input(spec, sizes, generator) for spec in kind.spec.inputs}


def _input(spec: TensorSpec, sizes: Sizes, generator: torch.Generator) -> Tensor:
    shape = [sizes[dim] if isinstance(dim, str) else dim for dim in spec.dims]
    device, name = generator.device, spec.name
    if name in ("offsets", "text_offsets"):
        return _offsets(sizes["J" if name == "offsets" else "T"], shape[0], device)
    if name == "orders":
        order = torch.randperm(shape[1], generator=generator, device=device)
        return torch.stack((order, order.argsort()))
    below = {"image_index": ("S", "N"), "text_branch": ("B",), "target_index": ("J",)}
    if name in below:
        most = sum(sizes[size] for size in below[name])
        return torch.randint(most, shape, generator=generator, device=device)
    if name == "positions":
        return torch.randint(100, shape, generator=generator, device=device, dtype=torch.int32)
    if name in ("cos", "sin"):
        angles = torch.randn(shape, generator=torch.Generator(device).manual_seed(1), device=device)
        return angles.cos() if name == "cos" else angles.sin()
    values = torch.randn(shape, generator=generator, device=device)
    return (100 * values.abs() if name == "timesteps" else values).to(DTYPES[spec.dtype])


def _offsets(rows: int, count: int, device: torch.device) -> Tensor:
    """Segment offsets int32 [count]: a long branch, a short one, empty ones, then padding."""
    end = max(0, rows - PADDING)
    cuts = [0, end - end // 3, *[end] * (count - 3), rows]
    return torch.tensor(cuts, dtype=torch.int32, device=device)
