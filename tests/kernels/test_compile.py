"""Every kernel compiles ahead of time for each GPU we ship for, within its limits and with 64-bit addresses.

Needs no GPU. Attention's gradient is among them, which no engine packs. Attention in float32 has no tensor cores and
keeps its operands in registers, which heads of 256 spill; they are there to be right.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.policy.source import ROOT
from vino_kernels.ahead.resources import SHARED
from vino_kernels.boundary_attention.configs import TMA

# A launch of more needs an attribute of the function that not every loader sets.
SMALL_SHARED = 48 * 1024
# At 64 a multiprocessor holds 1024 threads, which keep enough loads in flight for a kernel that only moves memory.
SMALL_REGISTERS = 64
PRODUCTS = {9: "wgmma", 10: "tcgen05", 12: "mma"}
"""By major compute capability, the instruction that multiplies tiles of 16 bits as fast as the GPU can."""
HEAD_SIZES = (64, 128, 256)
SLOW = [pytest.param(capability, marks=pytest.mark.slow) for capability in SHARED if capability != 90]


def compiled(cache: Path, *arguments: object) -> list[dict[str, Any]]:
    """What `compile_all` writes."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "tests.kernels.compile_all", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("capability", [90, *SLOW])
def test_small_kernels(capability: int, tmp_path: Path) -> None:
    rows = compiled(tmp_path, "small", capability)
    assert len(rows) == (22 if capability >= 89 else 20)
    for row in rows:
        assert row["spilled"] == 0, row
        assert row["static_shared"] + row["dynamic_shared"] <= SMALL_SHARED, row
        assert row["registers"] <= SMALL_REGISTERS, row
        assert row["widened"] > 0, f"no address is computed in 64 bits: {row}"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("capability", SHARED)
def test_attention(capability: int, tmp_path: Path) -> None:
    rows = compiled(tmp_path, "attention", capability, *HEAD_SIZES)
    assert len(rows) >= 9
    for row in rows:
        assert row["static_shared"] + row["dynamic_shared"] <= SHARED[capability], row
        assert row["widened"] > 0, f"no address is computed in 64 bits: {row}"
        assert "forward-fp32-256" in row["name"] or row["spilled"] == 0, row
        tma = "-tma-" in row["name"]
        assert (row["copies"] > 0) == tma, f"tiles are copied by hardware where the kernel asks for it: {row}"
        if tma and "bf16" in row["name"] and "-256-" not in row["name"]:
            assert row[PRODUCTS[capability // 10]] > 0, row
            groups = 3 if TMA[capability // 10, int(row["name"].split("-")[3]), 2].specialised else None
            assert groups is None or row["warps"] == 4 * groups, f"no warps of their own copy: {row}"
