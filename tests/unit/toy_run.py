"""Trains the toy as one of torchrun's processes, then lets things go wrong: `toy_run OUT MICRO_BATCHES`.

Every process writes what it was told into OUT/told-RANK.json.
"""

import json
import resource
import sys
from pathlib import Path

import torch

from tests.unit.toy_objective import Toy, toy_stage
from vino_rt.errors import VinoError
from vino_rt.train.distributed import World, open_world
from vino_rt.train.loop import Call, train
from vino_rt.train.stage import Group, Stage


def steady_stage(out: Path, accumulate: int) -> Stage:
    """A stage with everything on that can go wrong between processes."""
    log = {"every": 1, "sheet_every": 4, "checkpoint_every": 4, "keep": 9}
    return toy_stage(out, accumulate=accumulate, recompute=True, log=log)


def muon_stage(out: Path, accumulate: int) -> Stage:
    """A stage in which Muon updates the matrices of the blocks."""
    groups = (Group(match="blocks", method="muon"),)
    return toy_stage(out, accumulate=accumulate, log={"every": 1}, optimiser={"groups": groups})


def failing(out: Path, accumulate: int, world: World) -> dict[str, str]:
    """Errors that only one process can see, as this one was told of them."""
    told = {}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name, toy, limit in (("nan", Toy(faults={7: "nan"}), soft), ("full", Toy(), 2900)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            train(steady_stage(out / name, accumulate), toy, Call(), world)
        except VinoError as error:
            told[name] = str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    return told


def main(out: str, micro_batches: str) -> None:
    """Train eight steps in two calls, eight with Muon, then fail twice."""
    torch.set_num_threads(1)
    with open_world("cpu") as world:
        accumulate = int(micro_batches) // world.size
        for steps in (4, 8):
            train(steady_stage(Path(out) / "good", accumulate), Toy(), Call(steps=steps), world)
        train(muon_stage(Path(out) / "muon", accumulate), Toy(), Call(), world)
        told = failing(Path(out), accumulate, world)
        (Path(out) / f"told-{world.rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
