"""Do weights exist once in memory, however many shapes are in use?

Every number comes from a fresh process that opens a transformer with more weights than activations and takes steps at
no, one or three shapes; what it holds is read from the kernel's own account of its pages. It knows no tensor inside.
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
from bench.step import RECIPES, SCHEDULE, Case, as_step, noise, open_transformer, prepare, random_config
from vino_rt.models.vino.config import TransformerConfig
from vino_rt.plan import volume

GROWTH = 10.0
"""Percent of the weights that memory may grow by from one shape to three."""
PAGES = {"Rss": "resident", "Pss": "proportional", "Anonymous": "anonymous"}
"""Lines of the kernel's account -> names in the rows."""
SHAPES = (0, 1, 3)


@dataclass(frozen=True)
class Scene:
    """A transformer and the shapes it is used at; their activations are small beside the weights."""

    config: TransformerConfig
    cases: tuple[Case, ...]


def scene(*, quick: bool) -> Scene:
    """About 150 M parameters and three frame counts and sizes; quick: a few thousand parameters."""
    if quick:
        targets, text, config = ((1, 2, 3), (1, 5, 3), (2, 3, 5)), 7, random_config(32, 2, 1, 1, (4, 6, 6))
    else:
        targets, text, config = ((1, 8, 12), (1, 16, 20), (2, 14, 16)), 64, random_config(512, 8, 8, 16, (16, 24, 24))
    return Scene(config, tuple(Case(target, text, 2) for target in targets))


def pages() -> dict[str, int]:
    """Bytes of this process by kind of page."""
    lines = [line.split() for line in Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]]
    found = {line[0].removesuffix(":"): 1024 * int(line[1]) for line in lines}
    return {name: found[line] for line, name in PAGES.items()}


def child(backend: str, directory: Path, shapes: int, *, quick: bool) -> dict[str, dict[str, int]]:
    """Bytes with the libraries loaded, and after opening engines and stepping twice at each of the first shapes."""
    stage = scene(quick=quick)
    if backend == "onnxruntime":
        import onnxruntime  # noqa: F401 (so that the library itself is not counted as weights)
    found = {"libraries": pages()}
    transformer = open_transformer(stage.config, backend, directory)
    modulation = transformer.modulation(SCHEDULE)
    bound = [case.bind(transformer, modulation) for case in stage.cases[:shapes]]
    for _ in range(2):
        for case, model in zip(stage.cases, bound, strict=False):
            latents = noise((volume(case.target), stage.config.patch_values), seed=0)
            as_step(lambda x, model=model: model.velocity(0, x), latents)()  # type: ignore[misc]
    return found | {"used": pages()}


def in_fresh_process(backend: str, directory: Path, shapes: int, *, quick: bool) -> dict[str, dict[str, int]]:
    """`child` in a process of its own."""
    command = [sys.executable, "-m", "bench.memory", backend, str(directory), str(shapes), *["--quick"][: int(quick)]]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, dict[str, int]] = json.loads(done.stdout)
    return found


def rows(backend: str, used: dict[int, dict[str, int]], weights: int) -> list[Measure]:
    """`used`: bytes above the libraries by kind of page, for each number of shapes."""
    whole = Mark(weights / 1e6, "MB", "the weights in float32, once")
    found = []
    for shapes, kinds in used.items():
        case = f"{backend}, {shapes} shape{'' if shapes == 1 else 's'} used"
        found += [Measure(case, f"{kind} memory", size / 1e6, "MB", ceiling=whole) for kind, size in kinds.items()]
    allowed = Mark(GROWTH, "%", "of the weights: allowed")
    growth = growth_percent(used, weights)
    return [*found, Measure(f"{backend}, 1 to 3 shapes", "growth of resident memory", growth, "%", ceiling=allowed)]


def growth_percent(used: dict[int, dict[str, int]], weights: int) -> float:
    """Growth of resident memory from one shape to three, in percent of the weights."""
    return 100 * (used[3]["resident"] - used[1]["resident"]) / weights


def run(*, quick: bool) -> Outcome:
    """All backends and numbers of shapes; quick: no limit holds where weights are smaller than an allocator's block."""
    import torch

    measures, failures = [], []
    with tempfile.TemporaryDirectory() as scratch:
        weights = 4 * prepare(scene(quick=quick).config, Path(scratch), torch.bfloat16)
        measures.append(Measure("model", "weights in float32", weights / 1e6, "MB"))
        for backend in RECIPES:
            used = {}
            for shapes in SHAPES:
                found = in_fresh_process(backend, Path(scratch), shapes, quick=quick)
                used[shapes] = {kind: size - found["libraries"][kind] for kind, size in found["used"].items()}
            measures += rows(backend, used, weights)
            growth = growth_percent(used, weights)
            if not quick and growth >= GROWTH:
                failures.append(f"{backend}: memory grows by {growth:.1f} % of the weights from one shape to three")
    return Outcome(measures, failures)


def main(arguments: Sequence[str] | None = None) -> int:
    """The measured process: print what it holds as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory")
    parser.add_argument("backend", choices=list(RECIPES))
    parser.add_argument("directory", type=Path)
    parser.add_argument("shapes", type=int, choices=SHAPES)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    print(json.dumps(child(options.backend, options.directory, options.shapes, quick=options.quick)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
