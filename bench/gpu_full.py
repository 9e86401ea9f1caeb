"""`python -m bench.gpu_full [--quick]`: a denoise step of VINO at its released size on the CUDA device.

Random weights in bfloat16, our kernels, launched one by one and as one graph; a JSON line a row. Not run on a GPU yet.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.gpu_place import place
from bench.harness import CheckFailed, Mark, Measure, as_json, stamp, summary
from bench.step import GUIDANCE, IMAGE_GUIDANCE, SCHEDULE, Case, noise, random_config, step_flops
from vino_rt.backends.base import Kind
from vino_rt.backends.cuda_graph import Recorder
from vino_rt.backends.triton import TritonBackend
from vino_rt.errors import VinoError
from vino_rt.kernels import kernel_end
from vino_rt.models.vino.config import TransformerConfig
from vino_rt.models.vino.kinds import transformer_kinds
from vino_rt.models.vino.transformer import BoundPlans, Transformer
from vino_rt.plan import volume
from vino_rt.step import GuidedStep, Record, Work

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
    repeats: int


def full_size() -> Sizes:
    """The released transformer: 640x640 alone, guided and with a reference, 848x480 with 25 and 65 frames."""
    released = random_config(3072, 24, 20, 40, (16, 56, 56))
    still, short, clip = (1, 40, 40), (7, 30, 53), (17, 30, 53)
    pictures = Case(still, TEXT, 1), Case(still, TEXT, 2), Case(still, TEXT, 2, True)
    cases = (*pictures, Case(short, TEXT, 2), Case(clip, TEXT, 1))
    return Sizes(replace(released, text_embed_dim=4096, pooled_projection_dim=768), cases, 8192, 10)


def quick_size() -> Sizes:
    """A few thousand weights: its numbers mean nothing."""
    return Sizes(random_config(32, 2, 1, 1, (4, 6, 6)), (Case((1, 3, 5), 7, 1), Case((1, 3, 5), 7, 2, True)), 64, 2)


def measures(device: torch.device, sizes: Sizes, record: Record) -> Iterator[Measure]:
    """Rows, case by case; CheckFailed where what `record` made computes otherwise than plain launches."""
    torch.manual_seed(0)
    backend = TritonBackend(device)
    kinds = {name: kind.at("bfloat16") for name, kind in transformer_kinds(sizes.config).items()}
    engines = {name: backend.open(kind, None, list(_weights(kind, device))) for name, kind in kinds.items()}
    transformer = Transformer(sizes.config, engines)
    with torch.inference_mode():
        left, right = (torch.randn(sizes.side, sizes.side, device=device, dtype=torch.bfloat16) for _ in range(2))
        rate = 2 * sizes.side**3 / min(_seconds(device, lambda: left @ right, sizes.repeats))
        yield Measure("bfloat16 product", "ceiling", rate / 1e12, "TFLOP/s")
        for case in sizes.cases:
            yield from _case_rows(case, transformer, device, record, rate, sizes.repeats)


def _weights(kind: Kind, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Of each layer, drawn so that values stay finite through many of them."""
    for _ in range(kind.layers):
        layer = {}
        for name, shape in kind.shapes().items():
            spread = torch.Size(shape[1:]).numel() ** -0.5 if len(shape) > 1 else 0.02
            centre = float(len(shape) == 1 and name.endswith("weight"))
            layer[name] = torch.randn(shape, device=device, dtype=kind.dtype).mul_(spread).add_(centre)
        yield layer


def _case_rows(
    case: Case, transformer: Transformer, device: torch.device, record: Record, rate: float, repeats: int
) -> list[Measure]:
    config, plan = transformer.config, case.plan()
    start = noise((volume(case.target), config.patch_values), seed=7).to(device)
    bound = BoundPlans([case.bind(transformer, transformer.modulation(SCHEDULE))])
    steps = {
        name: GuidedStep(bound, start, SCHEDULE, (GUIDANCE, IMAGE_GUIDANCE), how, kernel_end())
        for name, how in (("plain launches", _plainly), ("replayed", record))
    }
    for step in steps.values():
        step.begin(start)
        for _ in range(3):
            step.advance()
    plain, replayed = (step.latents for step in steps.values())
    if not (plain.isfinite().all() and torch.equal(plain, replayed)):
        raise CheckFailed(f"{case.label}: three replayed steps are not those of plain launches, or not finite")
    ideal = step_flops(config, plan) / rate
    rows = []
    for name, step in steps.items():
        step.begin(start)
        found = _seconds(device, step.advance, repeats)
        mark = CLIP if (volume(case.target), case.branches) == (27_030, 1) else None
        rows.append(summary([1e3 * s for s in found], case.label, f"step, {name}", "ms", mark))
        mark = RATE if volume(case.target) == 1600 else None
        rows.append(summary([s / ideal for s in found], case.label, f"step, {name} / matrix rate", "x", mark))
    if device.type == "cuda":
        rows.append(Measure(case.label, "memory, peak", torch.cuda.max_memory_reserved(device) / 1e9, "GB"))
    return rows


def _plainly(work: Work) -> Work:
    return work


def _seconds(device: torch.device, call: Callable[[], object], count: int) -> list[float]:
    """Of each call to its end on the device, the first left out."""
    found = []
    for _ in range(count + 1):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - start)
    return found[1:]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the rows; 2 where there is no CUDA device."""
    parser = argparse.ArgumentParser("python -m bench.gpu_full")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: its numbers mean nothing")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device; on the CPU: python -m bench step")
    device = torch.device("cuda", 0)
    try:
        for row in measures(device, quick_size() if options.quick else full_size(), Recorder(device)):
            print("\n".join(as_json(place(stamp("step", [row])))), flush=True)
    except (CheckFailed, VinoError, torch.OutOfMemoryError) as error:
        print(f"full size: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
