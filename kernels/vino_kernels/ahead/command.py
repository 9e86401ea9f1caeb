"""`python -m vino_kernels.ahead --out DIR`: compile models' kernels for GPU architectures, wherever Triton runs.

Prints one line per kernel with its resources; the exit code is 1 if a kernel exceeds a limit. An interrupted build
resumes when started again.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from vino_kernels.ahead.build import compile_variants
from vino_kernels.ahead.declare import variants
from vino_kernels.ahead.manifest import NAME, Entry
from vino_kernels.ahead.resources import SHARED
from vino_kernels.ahead.shapes import DTYPES, PRESETS, Shapes, read_config

FAILED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what the command line asks for and return the exit code."""
    asked = _parser().parse_args(arguments)
    try:
        models = tuple(_models(asked))
        wanted = [variant for arch in asked.arch for variant in variants(models, arch)]
        manifest = compile_variants(wanted, asked.out, _report)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        sys.stderr.write(f"vino_kernels.ahead: {error}\n")
        return FAILED
    sys.stdout.write(f"{len(manifest.entries)} kernels in {asked.out / NAME}\n")
    return 0


def _report(entry: Entry, kept: bool) -> None:
    used = entry.made.used
    shared = f"{used.static_shared + used.dynamic_shared} bytes shared"
    line = f"sm_{entry.variant.arch} {entry.variant.name}: {used.registers} registers, {used.spilled} spilled, {shared}"
    sys.stdout.write(f"{line}{', kept' if kept else ''}\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vino_kernels.ahead", description="Compile kernels ahead of time.")
    every = ",".join(f"sm_{arch}" for arch in SHARED)
    parser.add_argument("--out", type=Path, required=True, help="directory of the cubins and their manifest")
    parser.add_argument("--arch", type=_archs, default=tuple(SHARED), help=f"architectures; all when left out: {every}")
    parser.add_argument("--preset", choices=sorted(PRESETS), action="append", default=[], help="a model, by name")
    parser.add_argument(
        "--config", type=Path, action="append", default=[], help="a model, by its transformer/config.json"
    )
    parser.add_argument("--heads", type=int, help="a model, by its numbers: attention heads")
    parser.add_argument("--channels", type=int, help="channels of a head")
    parser.add_argument("--axes", type=_numbers, help="channels of a head for t,h,w")
    parser.add_argument("--theta", type=float, default=256.0, help="base of the rope frequencies")
    parser.add_argument(
        "--dtype", choices=DTYPES, action="append", help="of --config and --heads; bfloat16 when left out"
    )
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _archs(text: str) -> tuple[int, ...]:
    named = {f"sm_{arch}": arch for arch in SHARED}
    parts = text.split(",")
    if unknown := [part for part in parts if part not in named]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: legal are {', '.join(named)}")
    return tuple(dict.fromkeys(named[part] for part in parts))


def _models(asked: argparse.Namespace) -> Iterator[Shapes]:
    """Shapes of the models asked for by preset, config file or numbers; all presets if nothing is named."""
    dtypes = asked.dtype or ["bfloat16"]
    numbers = (asked.heads, asked.channels, asked.axes)
    if None not in numbers:
        yield from (Shapes(asked.heads, asked.channels, asked.axes, asked.theta, dtype) for dtype in dtypes)
    elif any(number is not None for number in numbers):
        raise ValueError("--heads, --channels and --axes belong together")
    for path in asked.config:
        yield from (read_config(path, dtype) for dtype in dtypes)
    nothing = None in numbers and not asked.config and not asked.preset
    for name in PRESETS if nothing else asked.preset:
        yield from PRESETS[name]
