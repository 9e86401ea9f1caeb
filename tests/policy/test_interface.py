"""What others build on: the public names, the error tree, and what `import vino_rt` loads.

A name that joins or leaves changes this file, so that it is a decision and not an accident.
"""

import importlib
import inspect
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import vino_rt
from tests.policy.source import ROOT
from vino_rt import errors

PUBLIC = {
    "Bucket",
    "BuildProgress",
    "CacheStats",
    "Cancelled",
    "Captioner",
    "EngineError",
    "EngineMismatch",
    "EngineMissing",
    "InputError",
    "MediaError",
    "ModelError",
    "OutOfMemory",
    "OutputError",
    "Progress",
    "Reference",
    "Request",
    "Result",
    "Runtime",
    "Settings",
    "Task",
    "TaskFileError",
    "UsageError",
    "VinoError",
    "__version__",
    "read_tasks",
}
HEAVY = {"tensorrt", "torch_tensorrt", "onnxruntime", "onnx", "onnxscript", "triton", "transformers", "diffusers"}
EXIT_CODES = {1, 2, 3, 4, 5, 130}
DRAWN = re.compile(r"^[\s│├└─]*([A-Z]\w+)\s+(\d+)\b", re.MULTILINE)


def error_classes() -> dict[str, type[errors.VinoError]]:
    """The classes that errors.py defines, all of them below VinoError."""
    own: dict[str, type[errors.VinoError]] = {}
    for name, value in vars(errors).items():
        if inspect.isclass(value):
            assert issubclass(value, errors.VinoError), f"{name} is outside the tree"
            own[name] = value
    return own


def test_public_names() -> None:
    assert set(vino_rt.__all__) == PUBLIC
    assert len(vino_rt.__all__) == len(PUBLIC), "a public name is listed twice"
    assert set(dir(vino_rt)) >= PUBLIC


def test_version_is_the_distribution_s() -> None:
    assert vino_rt.__version__ == metadata.version("vino-rt")


@pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__"}))
def test_public_name_is_there_and_documented(name: str) -> None:
    assert inspect.getdoc(getattr(vino_rt, name))


@pytest.mark.parametrize("name", sorted(error_classes()))
def test_error_has_a_docstring_and_an_exit_code(name: str) -> None:
    error = error_classes()[name]
    assert error.__dict__.get("__doc__"), f"{name} has no docstring of its own"
    assert error.exit_code in EXIT_CODES


def test_error_tree_is_drawn_as_it_is() -> None:
    drawn = {name: int(code) for name, code in DRAWN.findall(errors.__doc__ or "")}
    assert drawn == {name: error.exit_code for name, error in error_classes().items()}


def test_every_error_is_public() -> None:
    assert error_classes().keys() <= PUBLIC


def test_import_is_light() -> None:
    program = "import json, sys, vino_rt; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    command = [sys.executable, "-c", program]
    loaded = set(json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout))
    assert "vino_rt" in loaded
    assert not loaded & (HEAVY | {"vino_export", "bench", "tests"})


@pytest.mark.parametrize("package", ["vino_rt", "vino_kernels", "vino_export"])
def test_package_is_a_typed_directory(package: str) -> None:
    location = importlib.import_module(package).__file__
    assert location is not None, f"{package} has no __init__.py"
    assert (Path(location).parent / "py.typed").is_file()
