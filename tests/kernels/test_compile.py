"""Every small kernel compiles ahead of time for each GPU we ship for, without spills and with 64-bit addresses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SLOW = [pytest.param(capability, marks=pytest.mark.slow) for capability in (80, 86, 89, 100, 120)]
# A launch of more needs an attribute of the function that not every loader sets.
SHARED = 48 * 1024
# At 64 a multiprocessor holds 1024 threads, which keep enough loads in flight for a kernel that only moves memory.
REGISTERS = 64
KERNELS = {"qk_norm_rope_bf16", "qk_norm_rope_fp32", "norm_modulate", "gated_residual", "guide_and_step"}
FP8 = {"norm_modulate_fp8"}


@pytest.mark.parametrize("capability", [90, *SLOW])
def test_compiles_without_a_gpu(capability: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.kernels.compile_all", str(capability)]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["name"] for row in rows} == KERNELS | (FP8 if capability >= 89 else set())
    for row in rows:
        assert row["local"] == row["stack"] == 0, f"spills: {row}"
        assert row["shared"] + row["dynamic_shared"] <= SHARED, row
        assert row["registers"] <= REGISTERS, row
        assert row["widened"] > 0, f"no address is computed in 64 bits: {row}"
