"""How the commands that `bench gpu` runs print their rows: each as it comes, and what misses its limit at the end."""

import sys
from collections.abc import Iterable

import torch

from bench.gpu_place import place
from bench.harness import CheckFailed, Measure, as_json, stamp
from vino_rt.errors import VinoError

AT_MOST = "at most"
"""How the limit of a measure ends that must not be above it."""


def write_rows(bench: str, name: str, measures: Iterable[Measure]) -> int:
    """Print a JSON line a row to stdout and, behind the step's name, what went wrong to stderr; the exit code."""
    missed: list[str] = []
    try:
        for measure in measures:
            (line,) = as_json(place(stamp(bench, [measure])))
            print(line, flush=True)
            missed += filter(None, [over(measure)])
    except (CheckFailed, VinoError, torch.OutOfMemoryError) as error:
        missed.append(str(error))
    for text in missed:
        print(f"{name}: {text}", file=sys.stderr)
    return 1 if missed else 0


def over(measure: Measure) -> str:
    """What a measure has above its limit; empty where it has none or keeps to it."""
    limit = measure.ceiling
    if limit is None or not limit.what.endswith(AT_MOST) or measure.value <= limit.value:
        return ""
    value, most = f"{measure.value:.4g} {measure.unit}".rstrip(), f"{limit.value:g} {limit.unit}".rstrip()
    return f"{measure.case}: {measure.metric} is {value}, {limit.what} {most}"
