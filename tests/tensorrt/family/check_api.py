"""Every name of the library that our code spells out is there, also where no test passes."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import tensorrt as trt
import tensorrt.plugin as quick

from tests.policy.source import ROOT, dotted
from vino_rt.backends.tensorrt.library import BEFORE, DTYPES, OLDEST, load, version_of
from vino_rt.errors import EngineError

FILES = sorted(
    path
    for folder in ("vino_rt/backends/tensorrt", "export/vino_export/tensorrt")
    for path in (ROOT / folder).glob("*.py")
)


def spelled(path: Path) -> Iterator[str]:
    """`library.BuilderFlag.TF32` for each chain of attributes that begins at the library or at its plugins."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            _, found, rest = f".{dotted(node)}".partition(".library.")
            if found:
                yield f"library.{rest}"
            elif dotted(node).startswith("quick."):
                yield dotted(node)


def test_names() -> None:
    chains = {chain for path in FILES for chain in spelled(path)}
    assert len(chains) > 20
    for chain in sorted(chains):
        root, *names = chain.split(".")
        value = trt if root == "library" else quick
        for name in names:
            assert hasattr(value, name), f"tensorrt {trt.__version__} has no {chain}"
            value = getattr(value, name)


def test_types_are_called_so() -> None:
    for name in DTYPES:
        assert getattr(trt.DataType, name).name == name


def test_this_family_is_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load() is trt
    assert OLDEST <= version_of(trt) < BEFORE
    for version in ("10.15.1.29", "12.0.0.1"):
        monkeypatch.setattr(trt, "__version__", version)
        with pytest.raises(EngineError, match=f"TensorRT {version} is not supported; install .*>=10.16,<12"):
            load()
