"""`python -m bench.gpu_full [--quick]`: a denoise step of VINO at its released size on the CUDA device.

Random weights in bfloat16, our kernels, launched one by one and as one graph; what the host does meanwhile, and what a
change of buckets costs. A JSON line a row, the case with a requirement of its own first. Not run on a GPU yet.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.gpu_host import host_rows, switch_rows
from bench.gpu_place import gpu, is_quick
from bench.gpu_rows import write_rows
from bench.harness import CheckFailed, Mark, Measure, summary
from bench.kernels_time import Clock, Probes, clock_of
from bench.random_weights import random_weight
from bench.step import GUIDANCE, IMAGE_GUIDANCE, SCHEDULE, Case, noise, random_config, step_flops
from vino_rt.backends.base import PRECISIONS, Kind
from vino_rt.backends.cuda_graph import Recorder
from vino_rt.backends.triton import TritonBackend
from vino_rt.errors import OutOfMemory
from vino_rt.kernels import kernel_end
from vino_rt.models.vino.config import TransformerConfig
from vino_rt.models.vino.kinds import transformer_kinds
from vino_rt.models.vino.transformer import BoundPlans, Transformer
from vino_rt.plan import volume
from vino_rt.step import GuidedStep, Record, Work

PRECISION = "bfloat16"
CHECKED = 3
"""Steps after which plain and replayed ones must have come to the same bits."""
LONG_SECONDS, LONG_REPEATS = 0.5, 4
"""A case whose step takes so long is timed in fewer rounds."""
TEXT = 640
"""Rows of text of a branch."""
RATE = Mark(1.15, "x", "required at 640x640: at most")
CLIP = Mark(1300.0, "ms", "required of one branch at 848x480, 65 frames: at most")
CLIP_GPU = "H200"
"""In the name of the GPUs that this is required of."""


@dataclass(frozen=True)
class Sizes:
    """What is run."""

    config: TransformerConfig
    cases: tuple[Case, ...]
    side: int
    """Of the matrices whose product is the ceiling."""
    copied: int
    """Bytes of the copy that is the other ceiling."""
    repeats: int


def full_size() -> Sizes:
    """The released transformer: 848x480 with 65 frames, 640x640 alone, guided and with a reference, then 25 frames."""
    released = random_config(3072, 24, 20, 40, (16, 56, 56))
    still, short, clip = (1, 40, 40), (7, 30, 53), (17, 30, 53)
    pictures = Case(still, TEXT, 1), Case(still, TEXT, 2), Case(still, TEXT, 2, True)
    cases = (Case(clip, TEXT, 1), *pictures, Case(short, TEXT, 2))
    return Sizes(replace(released, text_embed_dim=4096, pooled_projection_dim=768), cases, 8192, 1 << 30, 10)


def quick_size() -> Sizes:
    """A few thousand weights: its numbers mean nothing."""
    return Sizes(
        random_config(32, 2, 1, 1, (4, 6, 6)), (Case((1, 3, 5), 7, 1), Case((1, 3, 5), 7, 2, True)), 64, 1 << 16, 2
    )


def measures(device: torch.device, sizes: Sizes, record: Record) -> Iterator[Measure]:
    """Rows, case by case; CheckFailed where what `record` made computes otherwise than plain launches."""
    torch.manual_seed(0)
    backend, clock = TritonBackend(device), clock_of(device)
    kinds = {name: kind.at(PRECISION) for name, kind in transformer_kinds(sizes.config).items()}
    engines = {name: backend.open(kind, None, list(_weights(kind, device))) for name, kind in kinds.items()}
    transformer = Transformer(sizes.config, engines)
    probes = Probes(device, (PRECISIONS[PRECISION],), sizes.side, sizes.copied)
    smallest = sorted(sizes.cases, key=lambda case: case.plan().image_tokens)[:2]
    wrong = []
    for case in sizes.cases:
        try:
            yield from _case_rows(case, transformer, probes, clock, sizes, record, host=case is smallest[0])
        except (CheckFailed, OutOfMemory, torch.OutOfMemoryError) as error:
            # The other cases may be right, and may fit.
            wrong.append(f"{case.label}: {error}")
    with torch.inference_mode():
        requests = {case.label: _request(case, transformer, device) for case in smallest}
        rows = list(switch_rows(requests, SCHEDULE, device, record))
    yield from rows
    if wrong:
        raise CheckFailed("; ".join(wrong))


def _weights(kind: Kind, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Of each layer."""
    for _ in range(kind.layers):
        yield {
            name: random_weight(name, shape, device=device, dtype=kind.dtype) for name, shape in kind.shapes().items()
        }


def _request(case: Case, transformer: Transformer, device: torch.device) -> tuple[BoundPlans, Tensor]:
    """What a request of a case brings: its conditions, bound, and its noise."""
    start = noise((volume(case.target), transformer.config.patch_values), seed=7).to(device)
    return BoundPlans([case.bind(transformer, transformer.modulation(SCHEDULE))]), start


def _steps(bound: BoundPlans, start: Tensor, record: Record) -> dict[str, GuidedStep]:
    """Steps by how they run, checked against each other."""
    steps = {
        name: GuidedStep(bound, start, SCHEDULE, (GUIDANCE, IMAGE_GUIDANCE), how, kernel_end())
        for name, how in (("plain launches", _plainly), ("replayed", record))
    }
    _begin(steps, start)
    for step in steps.values():
        for _ in range(CHECKED):
            step.advance()
    plain, replayed = (step.latents for step in steps.values())
    if not (plain.isfinite().all() and torch.equal(plain, replayed)):
        raise CheckFailed(f"{CHECKED} replayed steps are not those of plain launches, or not finite")
    return steps


def _begin(steps: Mapping[str, GuidedStep], start: Tensor) -> None:
    """Go to the first step again: a schedule has only so many."""
    for step in steps.values():
        step.begin(start)


def _case_rows(
    case: Case, transformer: Transformer, probes: Probes, clock: Clock, sizes: Sizes, record: Record, *, host: bool
) -> list[Measure]:
    """Rows of a case; with `host` also of what the host does."""
    device = probes.device
    with torch.inference_mode():
        bound, start = _request(case, transformer, device)
        steps = _steps(bound, start, record)
        _begin(steps, start)
        rows = _time_rows(steps, case, probes, clock, sizes)
        if host:
            _begin(steps, start)
            rows += host_rows(steps, case.label, device)
    if device.type == "cuda":
        rows.append(Measure(case.label, "memory, peak", torch.cuda.max_memory_reserved(device) / 1e9, "GB"))
    return rows


def _time_rows(
    steps: Mapping[str, GuidedStep], case: Case, probes: Probes, clock: Clock, sizes: Sizes
) -> list[Measure]:
    calls = {name: step.advance for name, step in steps.items()}
    long = _seconds(calls["replayed"], probes.device) > LONG_SECONDS
    repeats, warmup = (LONG_REPEATS, 1) if long else (sizes.repeats, 3)
    timings = clock.interleave(calls | probes.calls(), repeats=repeats, warmup=warmup)
    best, (dtype,) = probes.best(timings), probes.dtypes
    rows = [Measure(case.label, f"ceiling: product, {PRECISION}", best.rates[dtype] / 1e12, "TFLOP/s")]
    ideal = step_flops(sizes.config, case.plan()) / best.rates[dtype]
    clip = (volume(case.target), case.branches) == (27_030, 1) and CLIP_GPU in str(gpu().get("gpu", ""))
    for name in steps:
        held = name == "replayed"
        rows.append(timings[name].measure(case.label, f"step, {name}", CLIP if held and clip else None))
        shares = [seconds / ideal for seconds in timings[name].seconds]
        mark = RATE if held and volume(case.target) == 1600 else None
        rows.append(summary(shares, case.label, f"step, {name} / matrix rate", "x", mark))
    return rows


def _seconds(call: Work, device: torch.device) -> float:
    """Of one call, with what the device does for it."""
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _plainly(work: Work) -> Work:
    return work


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the rows; 2 where there is no CUDA device."""
    quick = is_quick("bench.gpu_full", "bench step", arguments)
    device = torch.device("cuda", 0)
    sizes = quick_size() if quick else full_size()
    return write_rows("step", "full size", measures(device, sizes, Recorder(device)))


if __name__ == "__main__":
    raise SystemExit(main())
