"""The same checks on NVIDIA's bindings of the oldest and the newest API family, each in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.policy.source import ROOT
from tests.tensorrt.bindings import FAMILIES, absent, make_site

CHECKS = Path(__file__).parent / "family"
CASES = 40
"""At least so many: a process that collected nothing has checked nothing."""


@pytest.fixture(scope="module", params=FAMILIES)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory from which the bindings of a family are imported; skips with the reason where there are none."""
    family = str(request.param)
    if reason := absent(family):
        pytest.skip(reason)
    return make_site(family, tmp_path_factory.mktemp(f"bindings-{family}"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_family(site: Path, tmp_path: Path) -> None:
    path = os.pathsep.join(map(str, (site, ROOT, ROOT / "kernels", ROOT / "export")))
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": path, "TRITON_CACHE_DIR": str(tmp_path)}
    options = ["-q", "-p", "no:cacheprovider", "-o", "python_files=check_*.py"]
    command = [sys.executable, "-m", "pytest", *options, str(CHECKS)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert passed is not None, done.stdout[-2000:]
    assert int(passed[1]) >= CASES
