"""AOTInductor packages for a GPU as far as they go without one: what is exported and asked for, and what is refused.

The compiler and the loader of a GPU are not run here; the last tests need one.
"""

import operator
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.policy.source import ROOT
from tests.unit.models import COMPILES
from tests.unit.traced_programs import GPU, called
from vino_export import package as exporter
from vino_export.package import options, program_for, write_package
from vino_export.verify import verify
from vino_rt.backends import aotinductor
from vino_rt.backends.aotinductor import AotInductorBackend, AotInductorEngine, describe, processor
from vino_rt.backends.base import CPU, Kind, torch_version
from vino_rt.backends.recipe import load_recipe, make_backend
from vino_rt.engines import engine_key, kinds_of, layer_weights
from vino_rt.errors import EngineError, EngineMismatch, OutOfMemory
from vino_rt.model_dir import ModelDir


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch would say of an H100."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("vino_rt.engines.driver_version", lambda: "580.65.06")


def test_programs_for_a_gpu_hold_our_kernels() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/traced_programs.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


def test_the_program_for_a_cpu_holds_none(tiny_model: ModelDir) -> None:
    program = program_for(kinds_of(tiny_model)["single_block"], CPU)
    assert called(program, "vino_kernels") == set()
    assert called(program, "vino") == {"boundary_attention", "linear"}


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("search", [True, False])
def test_what_the_compiler_is_told(tiny_model: ModelDir, search: bool) -> None:
    told = options(kinds_of(tiny_model)["head"].at("bfloat16"), GPU, max_autotune=search)
    assert told["max_autotune"] is search
    for name in told:
        operator.attrgetter(name)(torch._inductor.config)
    assert '"device": "sm_90"' in told["aot_inductor.metadata"][aotinductor.DESCRIPTION]


@pytest.mark.usefixtures("hopper")
def test_keys(tiny_model: ModelDir) -> None:
    recipe, kind = load_recipe("aotinductor-cuda"), kinds_of(tiny_model)["head"].at("bfloat16")
    key = engine_key(tiny_model, recipe, kind, make_backend("aotinductor", None, GPU))
    other = engine_key(tiny_model, recipe, kind, make_backend("aotinductor", None, GPU, max_autotune=True))
    assert (key.capability, key.driver, key.device, key.flags) == ("sm_90", "580.65.06", "cuda", (processor(),))
    assert other.flags == (processor(), "max_autotune")
    assert "triton" in key.backend_version


def test_triton_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aotinductor, "find_spec", lambda _: None)
    assert AotInductorBackend().version() == torch_version()
    with pytest.raises(EngineError, match=r"on a GPU needs Triton.*pip install 'vino-rt\[gpu\]'"):
        AotInductorBackend(None, GPU).version()


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(("device", "given"), [(CPU, (False, 1, -1)), (GPU, (True, 1, 0))])
def test_the_loader_is_told_the_device(
    tiny_model: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device, given: tuple[Any, ...]
) -> None:
    kind, path = kinds_of(tiny_model)["head"], tmp_path / "engine.pt2"
    told: list[tuple[Any, ...]] = []
    real = torch._C._aoti.AOTIModelPackageLoader.__init__.__doc__ or ""
    assert "arg2: bool, arg3: typing.SupportsInt" in real, (
        "behind path and name the library takes a switch and two numbers"
    )
    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", lambda *given: told.append(given))
    monkeypatch.setattr(aotinductor, "read_description", lambda *_: describe(kind, device))
    assert AotInductorBackend(None, device).open(kind, path, []) == []
    assert told == [(str(path), aotinductor.MODEL, *given)]


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("built_for", ["cpu", "sm_80"])
def test_packages_of_another_device(
    tiny_model: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built_for: str
) -> None:
    kind = kinds_of(tiny_model)["head"]
    monkeypatch.setattr(aotinductor, "read_description", lambda *_: describe(kind) | {"device": built_for})
    with pytest.raises(EngineMismatch, match=f"head: package .* was built for device '{built_for}', this is 'sm_90'"):
        AotInductorBackend(None, GPU).open(kind, tmp_path / "engine.pt2", [])


class Exhausted:
    """A package on a GPU that is full."""

    def boxed_run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def test_a_full_gpu_is_told(tiny_model: ModelDir) -> None:
    head = kinds_of(tiny_model)["head"]
    engine = AotInductorEngine(head, Exhausted(), {}, None)  # type: ignore[arg-type]
    with pytest.raises(OutOfMemory, match="head: AOTInductor ran out of memory; use a smaller size"):
        engine.run(**head.examples()[0])


@COMPILES
@pytest.mark.slow
def test_max_autotune_on_a_cpu(tiny_model: ModelDir, tmp_path: Path) -> None:
    kind, path = kinds_of(tiny_model)["patch"], tmp_path / "engine.pt2"
    weights = layer_weights(tiny_model, kind, 0)
    write_package(kind, path, max_autotune=True)
    (engine,) = AotInductorBackend(1, max_autotune=True).open(kind, path, [weights])
    verdict = verify(kind, engine, weights)
    assert 0 <= verdict.error <= verdict.bound


@pytest.mark.gpu
@COMPILES
@pytest.mark.parametrize("name", ["connector", "embed", "dual_block", "single_block", "head"])
def test_on_a_gpu(tiny_model: ModelDir, tmp_path: Path, name: str) -> None:
    recipe = load_recipe("aotinductor-cuda")
    kind: Kind = kinds_of(tiny_model)[name].at(recipe.precision_of(name))
    path, weights = tmp_path / "engine.pt2", layer_weights(tiny_model, kind, 0)
    write_package(kind, path, recipe.torch_device)
    (engine,) = AotInductorBackend(None, recipe.torch_device).open(kind, path, [weights])
    verdict = verify(kind, engine, weights)
    assert 0 <= verdict.error <= verdict.bound


@pytest.mark.gpu
@COMPILES
def test_a_package_can_be_recorded(tiny_model: ModelDir, tmp_path: Path) -> None:
    recipe = load_recipe("aotinductor-cuda")
    kind = kinds_of(tiny_model)["single_block"].at("bfloat16")
    path = tmp_path / "engine.pt2"
    write_package(kind, path, recipe.torch_device)
    weights = [layer_weights(tiny_model, kind, 0)]
    (engine,) = AotInductorBackend(None, recipe.torch_device).open(kind, path, weights)
    given = engine.fit(**kind.examples()[0])
    expected = engine.run(**given)[0].clone()
    kept: Mapping[str, Any] = {"out": torch.empty_like(expected)}

    from vino_rt.backends.cuda_graph import Recorder

    replay = Recorder(recipe.torch_device)(lambda: kept["out"].copy_(engine.run(**given)[0]) and None)
    kept["out"].zero_()
    replay()
    torch.cuda.synchronize()
    assert torch.equal(kept["out"], expected)


class Folders:
    """Workshops in a temporary directory of the test's own."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        monkeypatch.setattr("tempfile.tempdir", str(path))

    def left(self) -> set[str]:
        return {path.name for path in self.path.iterdir()}


def test_what_a_killed_build_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = Folders(tmp_path, monkeypatch)
    for name in ("vino-rt-compile-dead", "vino-rt-compile-young", "other"):
        (tmp_path / name / "deep").mkdir(parents=True)
    living = exporter._workshop.__wrapped__()
    monkeypatch.setattr(exporter, "YOUNG", -1.0)
    made = exporter._workshop.__wrapped__()
    names = {Path(made.name).name, Path(living.name).name}
    assert folders.left() == {"other", *names}, "one that is held stays"
