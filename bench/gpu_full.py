"""`python -m bench.gpu_full [--quick]`: a denoise step of VINO at its released size on the CUDA device.

Random weights in bfloat16, our kernels, launched one by one and as one graph; a JSON line a row. Not run on a GPU yet.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.gpu_place import is_quick, place
from bench.harness import CheckFailed, Mark, Measure, as_json, stamp, summary
from bench.kernels_time import Clock, Probes, clock_of
from bench.random_weights import random_weight
from bench.step import GUIDANCE, IMAGE_GUIDANCE, SCHEDULE, Case, noise, random_config, step_flops
from vino_rt.backends.base import PRECISIONS, Kind
from vino_rt.backends.cuda_graph import Recorder
from vino_rt.backends.triton import TritonBackend
from vino_rt.errors import VinoError
from vino_rt.kernels import kernel_end
from vino_rt.models.vino.config import TransformerConfig
from vino_rt.models.vino.kinds import transformer_kinds
from vino_rt.models.vino.transformer import BoundPlans, Transformer
from vino_rt.plan import volume
from vino_rt.step import GuidedStep, Record, Work

PRECISION = "bfloat16"
CHECKED = 3
"""Steps after which plain and replayed ones must have come to the same bits."""
TEXT = 640
"""Rows of text of a branch."""
RATE = Mark(1.15, "x", "required at 640x640: at most")
CLIP = Mark(1300.0, "ms", "required of one branch at 848x480, 65 frames, on an H200: at most")


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
    """The released transformer: 640x640 alone, guided and with a reference, 848x480 with 25 and 65 frames."""
    released = random_config(3072, 24, 20, 40, (16, 56, 56))
    still, short, clip = (1, 40, 40), (7, 30, 53), (17, 30, 53)
    pictures = Case(still, TEXT, 1), Case(still, TEXT, 2), Case(still, TEXT, 2, True)
    cases = (*pictures, Case(short, TEXT, 2), Case(clip, TEXT, 1))
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
    for case in sizes.cases:
        with torch.inference_mode():
            found = _case_rows(_steps(case, transformer, device, record), case, probes, clock, sizes)
        yield from found
        if device.type == "cuda":
            yield Measure(case.label, "memory, peak", torch.cuda.max_memory_reserved(device) / 1e9, "GB")


def _weights(kind: Kind, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Of each layer."""
    for _ in range(kind.layers):
        yield {
            name: random_weight(name, shape, device=device, dtype=kind.dtype) for name, shape in kind.shapes().items()
        }


def _steps(case: Case, transformer: Transformer, device: torch.device, record: Record) -> dict[str, GuidedStep]:
    """Steps by how they run, checked against each other and begun again."""
    start = noise((volume(case.target), transformer.config.patch_values), seed=7).to(device)
    bound = BoundPlans([case.bind(transformer, transformer.modulation(SCHEDULE))])
    steps = {
        name: GuidedStep(bound, start, SCHEDULE, (GUIDANCE, IMAGE_GUIDANCE), how, kernel_end())
        for name, how in (("plain launches", _plainly), ("replayed", record))
    }
    for step in steps.values():
        step.begin(start)
        for _ in range(CHECKED):
            step.advance()
    plain, replayed = (step.latents for step in steps.values())
    if not (plain.isfinite().all() and torch.equal(plain, replayed)):
        raise CheckFailed(f"{case.label}: {CHECKED} replayed steps are not those of plain launches, or not finite")
    for step in steps.values():
        step.begin(start)
    return steps


def _case_rows(steps: dict[str, GuidedStep], case: Case, probes: Probes, clock: Clock, sizes: Sizes) -> list[Measure]:
    calls = {name: step.advance for name, step in steps.items()}
    timings = clock.interleave(calls | probes.calls(), repeats=sizes.repeats)
    best, (dtype,) = probes.best(timings), probes.dtypes
    rows = [Measure(case.label, f"ceiling: product, {PRECISION}", best.rates[dtype] / 1e12, "TFLOP/s")]
    ideal = step_flops(sizes.config, case.plan()) / best.rates[dtype]
    for name in steps:
        clip = CLIP if (volume(case.target), case.branches) == (27_030, 1) else None
        rows.append(timings[name].measure(case.label, f"step, {name}", clip))
        shares = [seconds / ideal for seconds in timings[name].seconds]
        mark = RATE if volume(case.target) == 1600 else None
        rows.append(summary(shares, case.label, f"step, {name} / matrix rate", "x", mark))
    return rows


def _plainly(work: Work) -> Work:
    return work


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the rows; 2 where there is no CUDA device."""
    quick = is_quick("bench.gpu_full", "bench step", arguments)
    device = torch.device("cuda", 0)
    try:
        for row in measures(device, quick_size() if quick else full_size(), Recorder(device)):
            print("\n".join(as_json(place(stamp("step", [row])))), flush=True)
    except (CheckFailed, VinoError, torch.OutOfMemoryError) as error:
        print(f"full size: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
