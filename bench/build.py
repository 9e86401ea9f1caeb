"""How long does it take to build a model's engines, and does that depend on how many blocks it has?

One engine serves all blocks of a kind, so a model of 60 blocks should build like one of 2. Both are built from nothing,
in turns, with the recipe for the CPU; opening, which does depend on the blocks, is timed beside it.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.harness import Mark, Measure, Outcome, Timing
from vino_rt.backends.recipe import load_recipe
from vino_rt.backends.store import Store
from vino_rt.build import build
from vino_rt.engines import open_engines
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino import preset

BLOCKS = {"2 blocks": (1, 1), "60 blocks": (20, 40)}
"""Dual and single blocks; the larger has as many as the released model."""
LIMIT = Mark(1.5, "x", "required: at most")
REPEATS = 3


def model_of(blocks: tuple[int, int], out: Path) -> ModelDir:
    """A directory like `vino-mini` with random weights and another number of blocks."""
    file = Path(preset.__file__).parent / "presets" / "mini.json"
    data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    data["transformer"] |= {"num_layers": blocks[0], "num_single_layers": blocks[1]}
    return preset.write_preset(data, out, seed=0)


def timed(model: ModelDir, store: Path) -> tuple[float, float]:
    """Seconds to build all engines into a new store, and to open them."""
    recipe, place = load_recipe("cpu"), Store(store)
    began = time.perf_counter()
    build(model, recipe, place)
    built = time.perf_counter()
    open_engines(model, recipe, place, None)
    return built - began, time.perf_counter() - built


def run(*, quick: bool) -> Outcome:
    """Both models in turns; quick: once, and no limit holds for so little."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        models = {name: model_of(blocks, place / name) for name, blocks in BLOCKS.items()}
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
        for turn in range(1 if quick else REPEATS):
            # In another order every time: what comes first warms the libraries up.
            for name in sorted(models, reverse=bool(turn % 2)):
                seconds[name].append(timed(models[name], place / f"store {name} {turn}"))
    return outcome(seconds, quick=quick)


def outcome(seconds: dict[str, list[tuple[float, float]]], *, quick: bool) -> Outcome:
    """Rows of (build, open) seconds by model, and whether the ratio keeps the limit."""
    builds = {name: Timing(tuple(build for build, _ in pairs)) for name, pairs in seconds.items()}
    opens = {name: Timing(tuple(opened for _, opened in pairs)) for name, pairs in seconds.items()}
    measures = [timing.measure(name, "build") for name, timing in builds.items()]
    measures += [timing.measure(name, "open") for name, timing in opens.items()]
    few, many = BLOCKS
    ratio = builds[many].median / builds[few].median
    measures.append(Measure("60 blocks / 2 blocks", "build", ratio, "x", None, LIMIT))
    missed = not quick and ratio > LIMIT.value
    return Outcome(measures, [f"60 blocks take {ratio:.2f} times the build of 2"] if missed else [])
