"""CMake knows the target that compiles the kernels; what the target runs is tested in test_ahead_build.py."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.policy.source import ROOT
from vino_kernels.ahead.command import main

CMAKE = shutil.which("cmake")


@pytest.mark.skipif(CMAKE is None, reason="cmake is not installed")
def test_the_target_is_there(tmp_path: Path) -> None:
    assert CMAKE is not None
    configure = [CMAKE, "-S", str(ROOT), "-B", str(tmp_path), f"-DPython3_EXECUTABLE={sys.executable}"]
    subprocess.run(configure, check=True, capture_output=True)
    listed = subprocess.run(
        [CMAKE, "--build", str(tmp_path), "--target", "help"], check=True, capture_output=True, text=True
    ).stdout
    assert {"kernels", "check", "engines", "wheel"} <= {word.rstrip(":") for word in listed.split()}
    dry = [CMAKE, "--build", str(tmp_path), "--target", "kernels", "--", "-n"]
    command = subprocess.run(dry, check=True, capture_output=True, text=True).stdout
    assert f"-m vino_kernels.ahead --out {tmp_path}/kernels" in command


def test_its_failure_is_the_build_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A target fails when its command ends with anything but zero."""
    assert main(["--out", str(tmp_path), "--config", str(tmp_path / "missing.json")]) == 1
    assert "missing.json" in capsys.readouterr().err
