"""How long from the start of a process to its first denoise step, engines built?

Twice: a small program around `Runtime`, which tells its parts, and `vino-rt generate` as a user types it. Clocks are
read in both processes; the kernel's monotonic clock is the same in all of them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.harness import ROOT, CheckFailed, Mark, Measure, Outcome, summary

LIMIT = Mark(10.0, "s", "required: at most")
PROMPT = "a red fox in the snow"
STEPS = 2
PARTS = ("import", "open", "condition", "first step")


def child(store: Path) -> dict[str, float]:
    """Seconds of the monotonic clock at the end of each part."""
    from vino_rt.progress import Progress
    from vino_rt.request import Request
    from vino_rt.runtime import Runtime

    ends = {"import": time.monotonic()}

    def note(progress: Progress) -> None:
        if progress.stage == "denoise" and progress.done < 2:
            ends[("condition", "first step")[progress.done]] = time.monotonic()

    with Runtime.open(store=store) as runtime:
        ends["open"] = time.monotonic()
        runtime.generate(Request(prompt=PROMPT, task="t2i", steps=STEPS, seed=0), on_step=note)
    return ends


def of_runtime(store: Path) -> dict[str, float]:
    """Seconds of each part of the program around `Runtime`, in order."""
    start = time.monotonic()
    command = [sys.executable, "-m", "bench.startup", str(store)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    ends: dict[str, float] = json.loads(done.stdout)
    times = [start, *(ends[part] for part in PARTS)]
    return {part: times[i + 1] - times[i] for i, part in enumerate(PARTS)}


def of_command(store: Path, out: Path) -> dict[str, float]:
    """Seconds from the start of `vino-rt generate` to the start and the end of its first step."""
    start = time.monotonic()
    options = [
        "--json",
        "--quiet",
        "--no-build",
        "--overwrite",
        "--steps",
        str(STEPS),
        "--seed",
        "0",
        "--store",
        str(store),
    ]
    command = [sys.executable, "-m", "vino_rt", "generate", PROMPT, "-o", str(out), *options]
    seen: dict[str, float] = {}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event.get("stage") == "denoise" and event["done"] < 2:
                seen[("first step starts", "first step ends")[event["done"]]] = time.monotonic() - start
    if process.returncode or len(seen) != 2:
        raise CheckFailed(f"`vino-rt generate` ended with code {process.returncode} and reported {sorted(seen)}")
    return seen


def rows(case: str, runs: Sequence[Mapping[str, float]], limits: Mapping[str, Mark]) -> list[Measure]:
    """One row for each part over several runs."""
    return [summary([run[part] for run in runs], case, part, "s", limits.get(part)) for part in runs[0]]


def run(*, quick: bool) -> Outcome:
    """Five runs of both, in turn; quick: one."""
    from vino_rt.backends.recipe import load_recipe
    from vino_rt.backends.store import Store
    from vino_rt.build import build
    from vino_rt.model_dir import ModelDir, bundled_model

    parts, commands = [], []
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "store"
        build(ModelDir.open(bundled_model()), load_recipe("cpu"), Store(store))
        for _ in range(1 if quick else 5):
            found = of_runtime(store)
            total = sum(found.values())
            parts.append(found | {"first step starts": total - found["first step"], "first step ends": total})
            commands.append(of_command(store, Path(scratch) / "out.png"))
    limits = {"first step starts": LIMIT}
    measures = rows("Runtime in a program", parts, limits) + rows("vino-rt generate", commands, limits)
    late = [m for m in measures if m.ceiling and m.value > m.ceiling.value]
    return Outcome(measures, [f"{m.case}: {m.metric} after {m.value:.1f} s, at most {LIMIT.value:g} s" for m in late])


def main(arguments: Sequence[str] | None = None) -> int:
    """The measured process: print when its parts ended as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.startup")
    parser.add_argument("store", type=Path)
    print(json.dumps(child(parser.parse_args(arguments).store)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
