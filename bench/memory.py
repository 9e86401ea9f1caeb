"""Do weights exist once in memory, however many shapes are in use?

Every number comes from a fresh process that opens a transformer with more weights than activations and takes steps at
no, one or four shapes; what it holds is read from the kernel's own account of its pages. It knows no tensor inside.

A larger shape needs larger activations whatever becomes of the weights. So the limit compares all four shapes,
smallest first, with the largest one alone; how memory grows from the smallest alone is shown too, without a limit.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.harness import ROOT, Mark, Measure, Outcome
from bench.step import FIRST, RECIPES, SCHEDULE, Case, as_step, noise, open_transformer, prepare, random_config
from vino_rt.models.vino.config import TransformerConfig
from vino_rt.plan import volume

GROWTH = 10.0
"""Percent of the weights by which four shapes may need more memory than the largest of them."""
PAGES = {"Rss": "resident", "Pss": "proportional", "Anonymous": "anonymous"}
"""Lines of the kernel's account -> names in the rows."""
USES = {"no shape": slice(0, 0), "smallest": slice(0, 1), "largest": slice(3, 4), "all four": slice(0, 4)}
"""Which of the shapes a process steps at."""


@dataclass(frozen=True)
class Scene:
    """A transformer and the four shapes it is used at, smallest first."""

    config: TransformerConfig
    cases: tuple[Case, ...]


def scene(*, quick: bool) -> Scene:
    """About 150 M parameters and four sizes and frame counts; quick: a few thousand parameters."""
    if quick:
        targets, text, config = ((1, 2, 3), (1, 5, 3), (4, 2, 3), (2, 3, 5)), 7, random_config(32, 2, 1, 1, (4, 6, 6))
    else:
        targets, text, config = (
            ((1, 8, 12), (1, 16, 20), (5, 8, 10), (2, 14, 16)),
            64,
            random_config(512, 8, 8, 16, (16, 24, 24)),
        )
    return Scene(config, tuple(Case(target, text, 2) for target in targets))


def pages() -> dict[str, int]:
    """Bytes of this process by kind of page."""
    lines = [line.split() for line in Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]]
    found = {line[0].removesuffix(":"): 1024 * int(line[1]) for line in lines}
    return {name: found[line] for line, name in PAGES.items()}


def child(backend: str, directory: Path, use: str, *, quick: bool) -> dict[str, dict[str, int]]:
    """Bytes with the libraries loaded, and after opening engines and stepping twice at each shape of `use`."""
    stage = scene(quick=quick)
    if backend == "onnxruntime":
        import onnxruntime  # noqa: F401 (so that the library itself is not counted as weights)
    found = {"libraries": pages()}
    transformer = open_transformer(stage.config, backend, directory)
    modulation = transformer.modulation(SCHEDULE)
    cases = stage.cases[USES[use]]
    bound = [case.bind(transformer, modulation) for case in cases]
    for _ in range(2):
        for case, model in zip(cases, bound, strict=True):
            latents = noise((volume(case.target), stage.config.patch_values), seed=0)
            as_step(lambda x, model=model: model.velocity(FIRST, x), latents)()  # type: ignore[misc]
    return found | {"used": pages()}


def in_fresh_process(backend: str, directory: Path, use: str, *, quick: bool) -> dict[str, dict[str, int]]:
    """`child` in a process of its own."""
    command = [sys.executable, "-m", "bench.memory", backend, str(directory), use, *(["--quick"] if quick else [])]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, dict[str, int]] = json.loads(done.stdout)
    return found


def rows(backend: str, used: dict[str, dict[str, int]], weights: int) -> list[Measure]:
    """`used`: bytes above the libraries by kind of page, for every use."""
    whole = Mark(weights / 1e6, "MB", "the weights in float32, once")
    found = []
    for use, kinds in used.items():
        case = f"{backend}, {use}"
        found += [Measure(case, f"{kind} memory", size / 1e6, "MB", ceiling=whole) for kind, size in kinds.items()]
    for before, limit in (("smallest", None), ("largest", Mark(GROWTH, "%", "of the weights: allowed"))):
        growth = growth_percent(used, before, weights)
        found.append(Measure(f"{backend}, {before} to all four", "growth of resident memory", growth, "%", None, limit))
    return found


def growth_percent(used: dict[str, dict[str, int]], before: str, weights: int) -> float:
    """Growth of resident memory from one shape to all four, in percent of the weights."""
    return 100 * (used["all four"]["resident"] - used[before]["resident"]) / weights


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be chosen beside the options of every benchmark."""
    parser.add_argument(
        "--only", choices=list(RECIPES), action="append", help="one of the recipes; more than once: some"
    )


def run(*, quick: bool, options: argparse.Namespace | None = None) -> Outcome:
    """All backends and uses; quick: no limit holds where weights are smaller than an allocator's block."""
    import torch

    chosen = (options and options.only) or list(RECIPES)
    measures, failures = [], []
    with tempfile.TemporaryDirectory() as scratch:
        weights = 4 * prepare(scene(quick=quick).config, Path(scratch), torch.bfloat16, chosen)
        measures.append(Measure("model", "weights in float32", weights / 1e6, "MB"))
        for backend in chosen:
            used = {}
            for use in USES:
                found = in_fresh_process(backend, Path(scratch), use, quick=quick)
                used[use] = {kind: size - found["libraries"][kind] for kind, size in found["used"].items()}
            measures += rows(backend, used, weights)
            growth = growth_percent(used, "largest", weights)
            if not quick and growth >= GROWTH:
                failures.append(
                    f"{backend}: memory grows by {growth:.1f} % of the weights from the largest shape to all"
                )
    return Outcome(measures, failures)


def main(arguments: Sequence[str] | None = None) -> int:
    """The measured process: print what it holds as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory")
    parser.add_argument("backend", choices=list(RECIPES))
    parser.add_argument("directory", type=Path)
    parser.add_argument("use", choices=list(USES))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    print(json.dumps(child(options.backend, options.directory, options.use, quick=options.quick)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
