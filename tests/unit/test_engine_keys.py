"""What of a machine and of our code is in a key: the driver of a GPU, and the files that engines are made from."""

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
        ("vino_rt/backends/onnxruntime.py", True, True),
        ("vino_rt/backends/onnxruntime_cuda.py", True, True),
        ("vino_rt/backends/onnxruntime_tensorrt.py", True, True),
        ("vino_rt/backends/tensorrt/description.py", True, True),
        ("vino_rt/models/vino/layers.py", True, True),
        ("vino_rt/backends/store.py", False, False),
        ("vino_rt/runtime.py", False, False),
        ("vino_kernels/norm_modulate/triton.py", False, True),
    ],
)
def test_what_engines_are_made_from_changes_the_digest(copied: Path, file: str, plain: bool, carrying: bool) -> None:
    digest = engines.source_digest.__wrapped__
    before = [digest(kernels) for kernels in (False, True)]
    with (copied / file).open("a") as changed:
        changed.write("# changed\n")
    after = [digest(kernels) for kernels in (False, True)]
    assert [one != other for one, other in zip(before, after, strict=True)] == [plain, carrying]


def test_a_file_that_is_not_there_is_named(copied: Path) -> None:
    (copied / "vino_rt" / "backends" / "onnxruntime.py").unlink()
    with pytest.raises(FileNotFoundError, match=r"backends/onnxruntime\.py"):
        engines.source_digest.__wrapped__()


@pytest.mark.parametrize(
    ("recipe", "backend", "carried"),
    [("aotinductor-cuda", "aotinductor", True), ("aotinductor", "aotinductor", False), ("tensorrt", "tensorrt", False)],
)
def test_which_engines_carry_kernels(recipe: str, backend: str, carried: bool) -> None:
    chosen: Recipe = load_recipe(recipe)
    assert engines.carries_kernels(chosen, make_backend(backend, None, CPU)) is carried
