"""What commands that measure a GPU share: which one, its driver and libraries, in their rows; and their options."""

import argparse
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from importlib import metadata
from importlib.util import find_spec

import torch

from bench import harness
from bench.harness import Row

COMMIT = "BENCH_COMMIT"
"""Environment variable that names the commit of a copy without `.git`, as a borrowed machine gets it."""


@cache
def gpu() -> dict[str, str | int | float]:
    """The first CUDA device; empty where there is none."""
    if not torch.cuda.is_available():
        return {}
    found = torch.cuda.get_device_properties(0)
    return {
        "gpu": found.name,
        "capability": f"{found.major}.{found.minor}",
        "sms": found.multi_processor_count,
        "gpu_memory_gb": round(found.total_memory / 1e9, 1),
    }


@cache
def gpu_versions() -> dict[str, str]:
    """What decides how fast a GPU computes: of Triton, CUDA, cuDNN and the driver; empty without a CUDA device."""
    if not torch.cuda.is_available():
        return {}
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    found = {"torch": torch.__version__, "cuda": torch.version.cuda or "none", "cudnn": str(cudnn)}
    if find_spec("triton") is not None:
        found["triton"] = metadata.version("triton")
    return {**found, "driver": _driver(), "system": platform.release()}


def commit() -> str:
    """Hash of the checkout, or what `BENCH_COMMIT` says where git knows none."""
    found = harness.commit()
    return os.environ.get(COMMIT, found) if found == "none" else found


def place(rows: Iterable[Row]) -> list[Row]:
    """The rows with the GPU in `machine` and its libraries in `versions`, where there is one, and with `commit()`."""
    return [
        replace(row, machine={**row.machine, **gpu()}, versions={**row.versions, **gpu_versions()}, commit=commit())
        for row in rows
    ]


def _driver() -> str:
    """Of the NVIDIA driver; `unknown` where its own program is not there or does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown"
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.strip() or "unknown"


def is_quick(module: str, on_the_cpu: str, arguments: Sequence[str] | None) -> bool:
    """Read the one option `--quick` of a command; ends it with 2 where there is no CUDA device."""
    parser = argparse.ArgumentParser(f"python -m {module}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: its numbers mean nothing")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error(f"there is no CUDA device; on the CPU: python -m {on_the_cpu}")
    return bool(options.quick)
