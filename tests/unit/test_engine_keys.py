"""What of a machine and of our code is in a key: the driver of a GPU, and the files that engines are made from."""

import ast
import ctypes
import importlib.util
import shutil
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vino_rt.engines as engines
from tests.tensorrt.small import AREA, BUCKET, UNIT, FakeDevice, small_kinds
from vino_export.tensorrt.native import PACKED
from vino_export.tensorrt.network import network
from vino_export.tensorrt.profiles import profiles_of
from vino_rt.backends import driver
from vino_rt.backends.eager import EagerBackend
from vino_rt.backends.recipe import Recipe, load_recipe, make_backend
from vino_rt.backends.tensorrt.backend import TensorRtBackend
from vino_rt.backends.tensorrt.dynamo import TorchTensorRtBackend
from vino_rt.bucket import Bucket
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
    """Except for what decides nothing in an engine: errors, variants' names, its judges, how files are written."""
    exporter = importlib.util.find_spec("vino_export")
    folders = exporter.submodule_search_locations if exporter is not None else None
    assert folders is not None
    trees = [ast.parse(file.read_text()) for folder in folders for file in Path(folder).rglob("*.py")]
    imports = [node.module or "" for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    taken = {name.removeprefix("vino_rt.").replace(".", "/") for name in imports if name.startswith("vino_rt.")}
    sources = [name.removesuffix(".py") for name in engines.SOURCES]
    left = {name for name in taken if not any(f"{name}/".startswith(f"{source}/") for source in sources)}
    judging = {"backends/eager", "backends/cuda_graph"}
    assert left == {"errors", "memory", "weight_writer", "backends/recipe"} | judging


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
    assert engines.carries_kernels(chosen, block, make_backend(backend, None, torch.device(chosen.device))) is carried


KINDS = small_kinds()
OTHERS: Mapping[str, Bucket] = {
    field.name: replace(BUCKET, **{field.name: {"frames": 9, "branches": 2}.get(field.name, 64)})
    for field in fields(Bucket)
}
"""The bucket, with another value of each field."""


@pytest.mark.parametrize("name", KINDS)
def test_sizes_that_are_built_alike_and_no_others_have_one_key(name: str) -> None:
    """Engines of one key must have one list of profiles; a key may tell apart more than it must, but not all."""
    kind = KINDS[name]

    def both(*buckets: Bucket) -> tuple[str, Any]:
        return engines.sizes_of(kind, buckets), profiles_of(kind, buckets, UNIT, AREA)

    lists = [(BUCKET,), *((other,) for other in OTHERS.values()), *((BUCKET, other) for other in OTHERS.values())]
    lists += [(other, BUCKET) for other in OTHERS.values()]
    found = [both(*buckets) for buckets in lists]
    for key, profiles in found:
        assert all(others == profiles for other, others in found if other == key)


@pytest.mark.parametrize(
    ("name", "ignored"),
    [
        ("vae_decode", {"references", "text_tokens", "branches"}),
        ("vae_encode", {"references", "text_tokens", "branches"}),
        ("patch", {"frames", "height", "width", "text_tokens"}),
        ("text", {"frames", "height", "width", "references"}),
        ("modulation", {field.name for field in fields(Bucket)}),
        ("dual_block", set()),
        ("single_block", set()),
        ("head", set()),
    ],
)
def test_a_bucket_more_asks_for_engines_of_the_kinds_that_see_it(name: str, ignored: set[str]) -> None:
    kind = KINDS[name]
    before = engines.sizes_of(kind, [BUCKET])
    assert {field for field, other in OTHERS.items() if engines.sizes_of(kind, [BUCKET, other]) == before} == ignored


def test_a_size_that_nobody_explained_takes_all_of_a_bucket() -> None:
    kind = KINDS["modulation"]
    spec = replace(kind.spec, inputs=(replace(kind.spec.inputs[0], dims=("Q",)),))
    assert len({engines.sizes_of(replace(kind, spec=spec), [other]) for other in OTHERS.values()}) == len(OTHERS)


# An export of the autoencoder takes half a minute.
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("vae_encode", "vae_decode")]


@pytest.mark.parametrize("name", ["patch", "embed", "head", *SLOW])
def test_kinds_with_constants_are_those_whose_networks_have_some(name: str) -> None:
    """The others with weights of more than two dimensions do not convolve with them."""
    found = bool(network(KINDS[name], "plugin", PACKED).graph.initializer)
    assert TensorRtBackend(cuda=FakeDevice()).has_constants(KINDS[name]) is found
    assert not TorchTensorRtBackend(cuda=FakeDevice()).has_constants(KINDS[name])
    assert not EagerBackend().has_constants(KINDS[name])


def test_a_plan_with_constants_is_of_one_model(tiny_model: ModelDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another model of the same configs needs a plan of its own for the autoencoder, and shares those of blocks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(engines, "driver_version", lambda: "580.65.06")
    monkeypatch.setattr("vino_rt.backends.tensorrt.backend.load", lambda: SimpleNamespace(__version__="11.1.0.106"))
    record = tiny_model.files["vae/model.safetensors"]
    other = replace(tiny_model, files={**tiny_model.files, "vae/model.safetensors": replace(record, sha256="0" * 64)})
    assert other.config_hash == tiny_model.config_hash
    recipe, backend = load_recipe("tensorrt"), TensorRtBackend(cuda=FakeDevice())
    for name, kind in engines.checked_kinds(tiny_model, recipe).items():
        if recipe.backend_of(name) == "tensorrt":
            keys = [engines.engine_key(model, recipe, kind, backend) for model in (tiny_model, other)]
            assert (keys[0] == keys[1]) is (kind.part != "vae"), name


def test_plans_of_two_builders_compute_in_one_block() -> None:
    one, other = TensorRtBackend(cuda=FakeDevice()), TorchTensorRtBackend(cuda=FakeDevice())
    engines._share_room([EagerBackend(), one, other])
    assert other.room is one.room
