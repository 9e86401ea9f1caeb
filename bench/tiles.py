"""Which tile of each kernel is the fastest on this GPU, of those that are worth trying?

Every candidate (`candidates` of an operation's `configs.py`) is first judged against the reference, then all of them
are timed in the same rounds, at the sizes that matter. `--write` puts the fastest into `vino_kernels/tiles.json`, which
launches and the ahead-of-time build read before their reasoned tables.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import torch
from torch import Tensor
from triton.errors import TritonError

from bench import gpu_place
from bench.harness import Mark, Measure, Outcome, Timing, summary
from bench.kernels_cases import HEADS, THETA, Case, attention, axes_of, draw, memory_bound
from bench.kernels_check import shares
from bench.kernels_time import Call, Clock, Graphs, clock_of, launches_for, per_launch
from vino_kernels import tiles
from vino_kernels.boundary_attention import configs as attention_configs
from vino_kernels.choice import Device
from vino_kernels.choice.implementations import TMA_CAPABILITY
from vino_kernels.gated_residual import configs as residual_configs
from vino_kernels.launching import FP8_CAPABILITY, kernel_of
from vino_kernels.norm_modulate import configs as norm_configs
from vino_kernels.qk_norm_rope import configs as rope_configs
from vino_rt.errors import UsageError

place = gpu_place.place
ROWS, QUICK_ROWS = (1_600, 35_000), (200,)
SIZES = (128, 64)
"""Channels of a head."""
REPEATS, QUICK_REPEATS = 15, 3
Bind = Callable[["Sweep", tuple[Tensor, ...], Any], Call]


@dataclass(frozen=True)
class Sweep:
    """Tiles of one kernel that are timed in the same rounds."""

    operation: str
    """As `tiles.json` calls it."""
    case: Case
    candidates: tuple[Any, ...]
    """`Tile` or `Config` of the operation."""
    current: Any
    """What a launch takes now."""

    @property
    def key(self) -> tuple[str, int, str]:
        """Dtype, size and length of an entry."""
        shape = self.case.shape
        return str(shape.dtype).removeprefix("torch."), shape.channels, tiles.length_of(shape.rows)


@dataclass
class Report:
    """What has been found so far."""

    measures: list[Measure] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    entries: list[tiles.Entry] = field(default_factory=list)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--write", action="store_true", help=f"put the fastest tiles into {tiles.PATH.name}")
    parser.add_argument("--only", choices=sorted(tiles.FIELDS), help="one operation; all when left out")


def run(*, quick: bool, options: argparse.Namespace) -> Outcome:
    """Every sweep on the first CUDA device. Raises UsageError without one, and for a file written by a quick run."""
    if not torch.cuda.is_available():
        raise UsageError("bench tiles needs an NVIDIA GPU: it times tiles of GPU kernels; run it where PyTorch has one")
    if quick and options.write:
        raise UsageError("--write takes real sizes: leave --quick out")
    device, report = torch.device("cuda", 0), Report()
    clock = clock_of(device)
    for sweep in sweeps(Device.of(device), QUICK_ROWS if quick else ROWS):
        if options.only in (None, sweep.operation):
            measure(sweep, device, clock, report, QUICK_REPEATS if quick else REPEATS, bind)
            torch.cuda.empty_cache()
    if options.write:
        write(report.entries, tiles.PATH)
    return Outcome(report.measures, report.failures)


def sweeps(device: Device, lengths: Sequence[int]) -> Iterator[Sweep]:
    """All kernels at all sizes in bfloat16, as far as a GPU has what they take."""
    kernels = ("forward", "tma") if device.capability >= TMA_CAPABILITY else ("forward",)
    for rows in lengths:
        for channels in SIZES:
            for kernel in kernels:
                yield attention_sweep(kernel, attention(rows, channels=channels), device)
            fp8 = device.capability >= FP8_CAPABILITY
            for case in memory_bound(rows, HEADS, channels, torch.bfloat16, fp8=fp8):
                if case.operation != "guide_and_step":
                    yield memory_sweep(case, device)


def attention_sweep(kernel: str, case: Case, device: Device) -> Sweep:
    """Of attention's kernel `forward` or `tma`."""
    shape, (major, minor) = case.shape, device.capability
    found = attention_configs.candidates(kernel, shape.channels, shape.dtype, major)
    wanted = shape.channels, shape.dtype, shape.rows, major, minor
    current = attention_configs.tiles(*wanted).forward
    if kernel == "tma":
        current = attention_configs.tma_tile(*wanted)
    return Sweep(f"boundary_attention.{kernel}", case, _with(current, found), current)


def memory_sweep(case: Case, device: Device) -> Sweep:
    """Of an operation that only moves memory."""
    shape, place = case.shape, device.capability
    current: Any
    found: tuple[Any, ...]
    name = f"{case.operation}.fp8" if shape.variant else case.operation
    if case.operation == "qk_norm_rope":
        current = rope_configs.choose(shape.heads, shape.channels, shape.rows, shape.dtype, place)
        found = rope_configs.candidates(shape.channels)
    elif case.operation == "norm_modulate":
        fp8 = bool(shape.variant)
        current = norm_configs.choose(
            shape.channels, quantise=fp8, rows=shape.rows, dtype=shape.dtype, capability=place
        )
        found = norm_configs.candidates(shape.channels)
    else:
        current = residual_configs.choose(shape.channels, shape.rows, shape.dtype, place)
        found = residual_configs.candidates(shape.channels)
    return Sweep(name, case, _with(current, found), current)


def _with(current: Any, found: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys((current, *found)))


def bind(sweep: Sweep, inputs: tuple[Tensor, ...], tile: Any) -> Call:
    """The launch of a kernel with a tile; of attention the result without its log-sum-exp."""
    operation, _, kernel = sweep.operation.partition(".")
    if operation == "boundary_attention":
        attend, (q, k, v, offsets) = kernel_of(operation, "launch", f"launch_{kernel}"), inputs
        return lambda: attend(q, k, v, offsets, None, tile)[0]
    launch = kernel_of(operation)
    if operation == "qk_norm_rope":
        axes = axes_of(sweep.case)
        return lambda: launch(*inputs, axes, THETA, tile)
    if operation == "norm_modulate":
        x, shift, scale, *divisor = inputs
        return lambda: launch(x, shift, scale, False, divisor[0] if divisor else None, tile)
    return lambda: launch(*inputs, tile)


def measure(sweep: Sweep, device: torch.device, clock: Clock, report: Report, repeats: int, binder: Bind) -> None:
    """Judge the candidates, time the right ones, rank them and note the fastest."""
    inputs = draw(sweep.case, device)
    right = judged(sweep, inputs, report, binder)
    if not right:
        report.failures.append(f"{sweep.operation}, {sweep.case.shape}: no candidate ran and was right")
        return
    graphs = Graphs(device)
    calls: dict[str, Call] = {}
    for name, tile in right.items():
        if sweep.case.moved:
            count = launches_for(sweep.case.moved)
            sets = [inputs, *(tuple(x.clone() for x in inputs) for _ in range(count - 1))]
            calls[name] = graphs.record([binder(sweep, one, tile) for one in sets])
        else:
            calls[name] = binder(sweep, inputs, tile)
    rank(sweep, right, per_launch(clock.interleave(calls, repeats=repeats), calls), report)


def judged(sweep: Sweep, inputs: tuple[Tensor, ...], report: Report, binder: Bind) -> dict[str, Any]:
    """The candidates that run and are right, by name. One that takes more than this GPU has is told and left out."""
    outputs, named = {}, {}
    for tile in sweep.candidates:
        name = label(tile)
        try:
            outputs[name] = binder(sweep, inputs, tile)()
        except (RuntimeError, ValueError, TypeError, AttributeError, CalledProcessError, TritonError) as error:
            print(f"{sweep.operation}, {name}: left out: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        named[name] = tile
    found = {}
    for name, share in shares(sweep.case, inputs, outputs).items():
        if share <= 1:
            found[name] = named[name]
        else:
            where = f"{sweep.operation}, {sweep.case.shape}, {name}"
            report.failures.append(f"{where}: off by {share:.3g} times what is allowed")
    return found


def label(tile: Any) -> str:
    """Such as `own 128, other 64, warps 8, stages 3, specialised False`."""
    return ", ".join(f"{name} {value}" for name, value in asdict(tile).items())


def rank(sweep: Sweep, right: dict[str, Any], timings: dict[str, Timing], report: Report) -> None:
    """Rows from the fastest to the slowest beside the tile in use, and the entry of the fastest."""
    case = f"{sweep.operation}, {sweep.case.shape}"
    ordered = sorted(timings, key=lambda name: timings[name].median)
    now = timings.get(label(sweep.current))
    mark = Mark(1e6 * now.median, "us", "by the tile in use") if now else None
    for number, name in enumerate(ordered, 1):
        taken = [1e6 * seconds for seconds in timings[name].seconds]
        report.measures.append(summary(taken, case, f"{number}. {name}", "us", mark))
    fastest = ordered[0]
    dtype, size, length = sweep.key
    report.entries.append(
        tiles.Entry(
            operation=sweep.operation,
            capability=str(gpu_place.gpu()["capability"]),
            dtype=dtype,
            size=size,
            length=length,
            tile=asdict(right[fastest]),
            microseconds=round(1e6 * timings[fastest].median, 2),
            gpu=str(gpu_place.gpu()["gpu"]),
            versions=gpu_place.gpu_versions(),
            commit=gpu_place.commit(),
        )
    )


def write(found: Sequence[tiles.Entry], path: Path) -> None:
    """Put entries into the file in the place of those of the same key; others stay. Renamed into place when whole."""
    old = tiles.read(path.read_text(encoding="utf-8"), str(path))
    text = tiles.render({**old, **{entry.key: entry for entry in found}})
    tiles.read(text, "the tiles that were measured")
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
    print(f"{path}: {len(found)} entries written", file=sys.stderr)
