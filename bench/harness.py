"""What every benchmark shares: interleaved timing, this machine's ceilings, rows for people and for machines.

Benchmarks hand back `Measure`s; which machine, versions and commit they belong to is stamped on here. It knows no
model and no engine.
"""

import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

ROOT = Path(__file__).parents[1]
VERSIONS = ("torch", "onnxruntime")
SETTLE_SECONDS = 0.01
"""Pause before every timed call: the thread pool of the library that ran before spins for a moment and holds cores."""


class CheckFailed(Exception):
    """What was to be timed computes something wrong; no number may come of it."""


@dataclass(frozen=True)
class Spread:
    """How far the runs behind a median lie apart, in the unit of the value."""

    runs: int
    min: float
    p10: float
    p90: float


@dataclass(frozen=True)
class Interval:
    """Where the true share lies with 95 % confidence, when so many were tried; in the unit of the value."""

    runs: int
    low: float
    high: float


@dataclass(frozen=True)
class Mark:
    """What a value is held against: a physical limit measured in the same run, a requirement, or others' figure."""

    value: float
    unit: str
    what: str


@dataclass(frozen=True)
class Measure:
    """One number of a benchmark; with a spread it is the median of several runs, with an interval a share of them."""

    case: str
    metric: str
    value: float
    unit: str
    spread: Spread | Interval | None = None
    ceiling: Mark | None = None


@dataclass(frozen=True)
class Row:
    """A measure with where it comes from; the fields are those of a line of JSON."""

    bench: str
    case: str
    metric: str
    value: float
    unit: str
    spread: Spread | Interval | None
    ceiling: Mark | None
    machine: Mapping[str, str | int | float]
    versions: Mapping[str, str]
    commit: str


@dataclass(frozen=True)
class Outcome:
    """What a benchmark found, and which of its limits were missed."""

    measures: Sequence[Measure]
    failures: Sequence[str] = ()


@dataclass(frozen=True)
class Timing:
    """Seconds of each run of one callable; run i of all callables of a call to `interleave` belong together."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    def measure(self, case: str, metric: str, ceiling: Mark | None = None) -> Measure:
        """Median and spread in milliseconds."""
        return summary([1e3 * s for s in self.seconds], case, metric, "ms", ceiling)

    def ratio(self, other: "Timing") -> list[float]:
        """This over the other, run by run, so that what slowed a whole round cancels."""
        return [a / b for a, b in zip(self.seconds, other.seconds, strict=True)]


def summary(values: Sequence[float], case: str, metric: str, unit: str, ceiling: Mark | None = None) -> Measure:
    """Median and spread of several values."""
    low, p10, middle, p90 = (float(v) for v in np.quantile(values, (0.0, 0.1, 0.5, 0.9)))
    return Measure(case, metric, middle, unit, Spread(len(values), low, p10, p90), ceiling)


def interleave(cases: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 1) -> dict[str, Timing]:
    """Time all callables round by round, every round in another order, so that the machine's noise hits all alike.

    Says on stderr how far it is; round 0 and below are the warm-up.
    """
    names = list(cases)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, repeats):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            time.sleep(SETTLE_SECONDS)
            start = time.perf_counter()
            cases[name]()
            taken = time.perf_counter() - start
            if number >= 0:
                seconds[name].append(taken)
        # Between rounds and on stderr: nothing of it is timed, and rows stay alone on stdout.
        print(f"round {number + 1} of {repeats}", file=sys.stderr, flush=True)
    return {name: Timing(tuple(taken)) for name, taken in seconds.items()}


@dataclass(frozen=True)
class Ceilings:
    """Probes of what the machine can do, to be timed in the same rounds as what is held against them."""

    side: int
    """Side of the square float32 matrices that are multiplied."""
    numbers: int
    """Float32 numbers that are copied."""

    def probes(self) -> dict[str, Callable[[], object]]:
        """Callables by name; hand their timings to `measures` and `flop_rate`."""
        a, b = torch.rand(self.side, self.side), torch.rand(self.side, self.side)
        out = torch.empty_like(a)
        source = torch.zeros(self.numbers)
        target = torch.zeros(self.numbers)
        session, feeds = _matmul_session(), {"a": a.numpy(), "b": b.numpy()}
        return {
            "sgemm torch": lambda: torch.mm(a, b, out=out),
            "sgemm onnxruntime": lambda: session.run(None, feeds),
            "copy": lambda: target.copy_(source),
        }

    def flop_rate(self, timings: Mapping[str, Timing]) -> float:
        """Floating-point operations per second of the faster matrix product."""
        return 2.0 * self.side**3 / min(timings[f"sgemm {name}"].median for name in VERSIONS)

    def measures(self, timings: Mapping[str, Timing], case: str) -> list[Measure]:
        """One row for each probe."""
        work, traffic = 2e-9 * self.side**3, 8e-9 * self.numbers
        products = [
            summary([work / s for s in timings[f"sgemm {name}"].seconds], case, f"ceiling: sgemm {name}", "GFLOP/s")
            for name in VERSIONS
        ]
        moved = [traffic / s for s in timings["copy"].seconds]
        return [*products, summary(moved, case, "ceiling: copy, read and written", "GB/s")]


def _matmul_session() -> Any:
    """A product of two arguments: like our engines, it gets no constant to rearrange beforehand."""
    import onnxruntime
    from onnx import TensorProto, helper

    names = (("a", ["M", "K"]), ("b", ["K", "N"]), ("out", ["M", "N"]))
    a, b, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in names)
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["out"])], "matmul", [a, b], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@cache
def machine() -> dict[str, str | int | float]:
    """What this computer is, as far as speed depends on it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    # Names such as "AMD EPYC" stand for generations that differ by a factor of two.
    numbers = [
        line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() in ("cpu family", "model")
    ]
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {
        "cpu": models[0] if models else platform.machine(),
        "cpu_generation": "-".join(numbers[:2]) or "unknown",
        "cores": len(models),
        "threads": torch.get_num_threads(),
        "memory_gb": round(int(total.split()[1]) / 1e6, 1),
    }


@cache
def versions() -> dict[str, str]:
    """Python and the libraries that compute, as far as they are installed."""
    there = [name for name in VERSIONS if find_spec(name) is not None]
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in there}}


@cache
def commit() -> str:
    """Hash of the checkout, `-dirty` when files differ from it; `none` outside a checkout and without git."""
    if shutil.which("git") is None:
        return "none"
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    if head.returncode:
        return "none"
    status = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True)
    return head.stdout.strip() + ("-dirty" if status.stdout.strip() else "")


def stamp(bench: str, measures: Iterable[Measure]) -> list[Row]:
    """Say of each measure where it comes from."""
    place: dict[str, Any] = {"machine": machine(), "versions": versions(), "commit": commit()}
    return [Row(bench=bench, **vars(measure), **place) for measure in measures]


def as_json(rows: Iterable[Row]) -> list[str]:
    """One line of JSON for each row."""
    return [json.dumps(asdict(row)) for row in rows]


def save(rows: Sequence[Row], directory: Path) -> Path:
    """Append rows to the benchmark's file of results and return its path."""
    directory.mkdir(exist_ok=True)
    path = directory / f"{rows[0].bench}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in as_json(rows))
    return path


def table(rows: Sequence[Row]) -> Table:
    """Rows as people read them; machine, versions and commit stand below."""
    places = {f"{shown(row.machine)}; {shown(row.versions)}; commit {row.commit[:12]}{row.commit[40:]}" for row in rows}
    out = Table(title=f"bench {rows[0].bench}" if rows else None, caption="\n".join(sorted(places)))
    for name in ("case", "metric"):
        out.add_column(name, overflow="fold")
    for name in ("median or share", "p10 .. p90 or 95 %", "min"):
        out.add_column(name, justify="right", no_wrap=True)
    out.add_column("held against", overflow="fold")
    for row, before in zip(rows, (None, *rows), strict=False):
        case = "" if before and before.case == row.case else row.case
        spread = _spread(row.spread)
        mark = f"{row.ceiling.value:.4g} {row.ceiling.unit} {row.ceiling.what}" if row.ceiling else ""
        out.add_row(case, row.metric, f"{row.value:.4g} {row.unit}", *spread, mark)
    return out


def _spread(spread: Spread | Interval | None) -> tuple[str, str]:
    """The two columns about it."""
    if spread is None:
        return "", ""
    if isinstance(spread, Interval):
        return f"{spread.low:.4g} .. {spread.high:.4g}", ""
    return f"{spread.p10:.4g} .. {spread.p90:.4g}", f"{spread.min:.4g}"


def shown(values: Mapping[str, object]) -> str:
    """Names and values on one line."""
    return ", ".join(f"{name} {value}" for name, value in values.items())
