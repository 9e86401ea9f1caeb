"""`python -m bench.gpu_train [--quick]`: the rows of `bench train` on the CUDA device alone, one JSON line each.

`bench train` begins with minutes on the CPU, which `bench gpu` has no time for.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bench import train
from bench.gpu_place import is_quick, place
from bench.harness import Measure, as_json, stamp
from vino_rt.models.vino.preset import init_preset

FULL = train.Sizes(rows=3600, tokens=96, lessons=32, side=8192, repeats=5)
QUICK = train.Sizes(rows=1, tokens=1, lessons=2, side=64, repeats=1)


def measures(device: torch.device, sizes: train.Sizes) -> list[Measure]:
    """Steps of the preset `mini` with random weights on a device."""
    with tempfile.TemporaryDirectory() as scratch:
        model = init_preset("mini", Path(scratch) / "model")
        works = [*train.flow_work(model, sizes, device), *train.other_work(model, sizes)]
        trials, ceilings = train.trials_of(model.path, works, sizes, device, [torch.get_num_threads()])
        found = [row for work in works for row in train.work_rows(work)] + train.series(trials, ceilings, sizes)
    return [replace(row, case=f"{device.type}, {row.case}") for row in found]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the rows; 2 where there is no CUDA device."""
    quick = is_quick("bench.gpu_train", "bench train", arguments)
    rows = stamp("train", measures(torch.device("cuda", 0), QUICK if quick else FULL))
    print("\n".join(as_json(place(rows))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
