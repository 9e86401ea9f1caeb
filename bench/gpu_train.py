"""`python -m bench.gpu_train [--quick]`: the rows of `bench train` on the CUDA device alone, one JSON line each.

`bench train` begins with minutes on the CPU, which `bench gpu` has no time for.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from bench import train
from bench.gpu_place import is_quick
from bench.gpu_rows import write_rows
from bench.harness import Measure
from vino_rt.models.vino.preset import init_preset

FULL = train.Sizes(rows=3600, tokens=96, lessons=32, side=8192, repeats=5)
QUICK = train.Sizes(rows=1, tokens=1, lessons=2, side=64, repeats=1)


def measures(device: torch.device, sizes: train.Sizes) -> Iterator[Measure]:
    """Steps of the preset `mini` with random weights on a device; the rows of `flow` first, as soon as it is timed."""
    with tempfile.TemporaryDirectory() as scratch:
        model = init_preset("mini", Path(scratch) / "model")
        for parts in (partial(train.flow_work, model, sizes, device), partial(train.other_work, model, sizes)):
            works = parts()
            trials, ceilings = train.trials_of(model.path, works, sizes, device, [torch.get_num_threads()])
            found = [row for work in works for row in train.work_rows(work)] + train.series(trials, ceilings, sizes)
            yield from (replace(row, case=f"{device.type}, {row.case}") for row in found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the rows; 2 where there is no CUDA device."""
    quick = is_quick("bench.gpu_train", "bench train", arguments)
    return write_rows("train", "train", measures(torch.device("cuda", 0), QUICK if quick else FULL))


if __name__ == "__main__":
    raise SystemExit(main())
