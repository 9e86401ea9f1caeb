"""The wheel in a clean environment, outside the checkout: what it holds, and that it draws without the repository.

Installs every dependency, so it is slow and needs the package index that pip is set up for. It knows the command line
and the names of files in the wheel, nothing of the modules behind them.
"""

import json
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PACKAGES = ("vino_rt", "vino_kernels", "vino_export")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def run(*command: str | Path, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Run a command with nothing on the import path but the interpreter's own packages; fail with its output."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=inherited, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the checkout."""
    target = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", target, ROOT, cwd=target)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    """Every file in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a program of an environment that holds the wheel and its dependencies, away from the checkout."""
    home = tmp_path_factory.mktemp("clean")
    venv.create(home / "venv", with_pip=True)
    programs = home / "venv" / "bin"
    run(programs / "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel, cwd=home)

    def program(name: str, *arguments: str | Path, cwd: Path) -> "subprocess.CompletedProcess[str]":
        return run(programs / name, *arguments, cwd=cwd)

    return program


def test_it_holds_the_packages_and_nothing_else(names: set[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= names


def test_it_holds_every_module_recipe_and_model_file(names: set[str]) -> None:
    homes = {"vino_rt": ROOT, "vino_kernels": ROOT / "kernels", "vino_export": ROOT / "export"}
    files = {
        path.relative_to(home).as_posix()
        for package, home in homes.items()
        for path in (home / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    recipes = {f"vino_rt/recipes/{path.name}" for path in (ROOT / "engines" / "recipes").glob("*.toml")}
    assert "vino_rt/recipes/cpu.toml" in recipes
    assert "vino_rt/mini/model.json" in files
    assert files | recipes <= names


def test_it_runs_from_where_it_was_installed(installed: Run, tmp_path: Path) -> None:
    program = "import json, vino_rt, vino_kernels, vino_export as e; print(json.dumps([vino_rt.__file__, e.__file__]))"
    for location in json.loads(installed("python", "-c", program, cwd=tmp_path).stdout):
        assert "site-packages" in Path(location).parts
        assert not Path(location).is_relative_to(ROOT)


def test_inspect(installed: Run, tmp_path: Path) -> None:
    assert installed("vino-rt", "inspect", cwd=tmp_path).stdout.strip()


def test_it_builds_and_draws(installed: Run, tmp_path: Path) -> None:
    store = ("--store", tmp_path / "store")
    installed("vino-rt", "build", "--recipe", "cpu", *store, cwd=tmp_path)
    request = ("a red square", "--size", "64x64", "--steps", "2", "--seed", "1")
    installed("vino-rt", "generate", *request, "-o", "out.png", *store, cwd=tmp_path)
    with Image.open(tmp_path / "out.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (64, 64))
    installed("vino-rt", "generate", *request, "--frames", "5", "-o", "out.mp4", *store, cwd=tmp_path)
    assert (tmp_path / "out.mp4").read_bytes()[4:8] == b"ftyp"
