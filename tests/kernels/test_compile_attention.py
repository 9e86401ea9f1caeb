"""Every tile of the table compiles for every architecture within its shared memory, in 16 bits also within registers.

Needs no GPU. Float32 without tensor cores keeps its operands in registers and spills them; it is there to be right.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.policy.source import ROOT

# Bytes of shared memory one block may have: the CUDA programming guide's table of compute capabilities.
SHARED = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
DEFAULT = pytest.param(90, (128,))
OTHERS = [pytest.param(capability, (64, 128, 256), marks=pytest.mark.slow) for capability in SHARED]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("capability", "sizes"), [DEFAULT, *OTHERS], ids=str)
def test_compiles(capability: int, sizes: tuple[int, ...]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"
    command = [sys.executable, "-m", "tests.kernels.attention_cubins", str(capability), *map(str, sizes)]
    made = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
    kernels = [json.loads(line) for line in made.splitlines()]
    assert len(kernels) >= 9
    spilled = [kernel for kernel in kernels if kernel["stack"] and "float32" not in kernel["case"]]
    assert not spilled, "registers spilled to the stack"
    too_large = [kernel for kernel in kernels if kernel["shared"] > SHARED[capability]]
    assert not too_large, f"more than {SHARED[capability]} bytes of shared memory"
