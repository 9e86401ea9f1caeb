"""What of a machine and of our code is in a key: the driver of a GPU, and the files that engines are made from."""

import ast
import ctypes
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest

import vino_rt.engines as engines
from vino_rt.backends import driver
from vino_rt.backends.base import CPU
from vino_rt.backends.recipe import Recipe, load_recipe, make_backend
from vino_rt.errors import EngineError
from vino_rt.model_dir import ModelDir

PACKAGE = Path(engines.__file__).parent


class Library:
    """In the place of NVIDIA's management library: answers as its header says."""

    def __init__(self, name: str, *, starts: int = 0) -> None:
        assert name == "libnvidia-ml.so.1"
        self.calls: list[str] = []
        self._starts = starts

    def nvmlInit_v2(self) -> int:
        self.calls.append("init")
        return self._starts

    def nvmlSystemGetDriverVersion(self, said: Any, length: int) -> int:
        assert length == ctypes.sizeof(said)
        said.value = b"580.65.06"
        return 0

    def nvmlShutdown(self) -> int:
        self.calls.append("shutdown")
        return 0


def ask(monkeypatch: pytest.MonkeyPatch, library: Any) -> str:
    monkeypatch.setattr(ctypes, "CDLL", library)
    return driver.driver_version.__wrapped__()


def test_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Library] = []

    def load(name: str) -> Library:
        made.append(Library(name))
        return made[0]

    assert ask(monkeypatch, load) == "580.65.06"
    assert made[0].calls == ["init", "shutdown"]


def test_a_driver_that_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match=r"nvmlInit_v2 answered 9.*nvidia-smi works here"):
        ask(monkeypatch, lambda name: Library(name, starts=9))

    def absent(name: str) -> Library:
        raise OSError(f"{name}: cannot open shared object file")

    with pytest.raises(EngineError, match=r"libnvidia-ml.so.1: cannot open.*container gets it"):
        ask(monkeypatch, absent)


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package that digests are taken of."""
    for name in ("vino_rt", "vino_kernels"):
        source = PACKAGE if name == "vino_rt" else PACKAGE.parent / "kernels" / name
        shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(engines, "__file__", str(tmp_path / "vino_rt" / "engines.py"))
    real = importlib.util.find_spec

    def find(name: str) -> Any:
        found = real(name)
        if name == "vino_kernels" and found is not None:
            found.submodule_search_locations = [str(tmp_path / name)]
        return found

    monkeypatch.setattr(importlib.util, "find_spec", find)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "plain", "carrying"),
    [
        ("vino_rt/kernels.py", True, True),
        ("vino_rt/bucket.py", True, True),
        ("vino_rt/backends/onnxruntime.py", True, True),
        ("vino_rt/backends/onnxruntime_cuda.py", True, True),
        ("vino_rt/backends/onnxruntime_tensorrt.py", True, True),
        ("vino_rt/backends/tensorrt/description.py", True, True),
        ("vino_rt/models/vino/layers.py", True, True),
        ("vino_rt/backends/store.py", False, False),
        ("vino_rt/runtime.py", False, False),
        ("vino_kernels/norm_modulate/triton.py", False, True),
        ("vino_kernels/int8_attention/cpu.cpp", False, True),
        ("vino_kernels/int8_attention/packed.h", False, True),
    ],
)
def test_what_engines_are_made_from_changes_the_digest(copied: Path, file: str, plain: bool, carrying: bool) -> None:
    digest = engines.source_digest.__wrapped__
    before = [digest(kernels) for kernels in (False, True)]
    with (copied / file).open("a") as changed:
        changed.write("# changed\n")
    after = [digest(kernels) for kernels in (False, True)]
    assert [one != other for one, other in zip(before, after, strict=True)] == [plain, carrying]


def test_what_the_exporter_takes_of_this_package_is_in_the_digest() -> None:
    """But for what decides nothing in an engine: errors, names of variants, the module that an engine is judged by."""
    exporter = importlib.util.find_spec("vino_export")
    folders = exporter.submodule_search_locations if exporter is not None else None
    assert folders is not None
    trees = [ast.parse(file.read_text()) for folder in folders for file in Path(folder).rglob("*.py")]
    imports = [node.module or "" for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    taken = {name.removeprefix("vino_rt.").replace(".", "/") for name in imports if name.startswith("vino_rt.")}
    sources = [name.removesuffix(".py") for name in engines.SOURCES]
    left = {name for name in taken if not any(f"{name}/".startswith(f"{source}/") for source in sources)}
    assert left == {"errors", "backends/recipe", "backends/eager"}


def test_a_file_that_is_not_there_is_named(copied: Path) -> None:
    (copied / "vino_rt" / "backends" / "onnxruntime.py").unlink()
    with pytest.raises(FileNotFoundError, match=r"backends/onnxruntime\.py"):
        engines.source_digest.__wrapped__()


@pytest.mark.parametrize(
    ("recipe", "backend", "carried"),
    [
        ("aotinductor-cuda", "aotinductor", True),
        ("aotinductor", "aotinductor", False),
        ("tensorrt", "tensorrt", False),
        ("cpu-int8", "onnxruntime", False),
        ("cpu-int8-avx512", "onnxruntime", True),
    ],
)
def test_which_engines_carry_kernels(tiny_model: ModelDir, recipe: str, backend: str, carried: bool) -> None:
    chosen: Recipe = load_recipe(recipe)
    block = engines.checked_kinds(tiny_model, chosen)["single_block"]
    assert engines.carries_kernels(chosen, block, make_backend(backend, None, CPU)) is carried
