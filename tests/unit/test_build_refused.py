"""What a build refuses before it starts, what it says when memory runs out, and the command that errors name."""

import errno
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vino_export import package, trace
from vino_kernels import int8_attention
from vino_rt.advice import build_advice, build_command
from vino_rt.backends.aotinductor import AotInductorBackend
from vino_rt.backends.base import Kind
from vino_rt.backends.recipe import load_recipe
from vino_rt.backends.store import Store, default_store
from vino_rt.build import build, missing_kinds
from vino_rt.engines import kinds_of
from vino_rt.errors import EngineError, OutOfMemory
from vino_rt.model_dir import ModelDir, bundled_model


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds that are exported, of which there should be none."""
    calls: list[str] = []

    def note(kind: Kind, _: Path) -> None:
        calls.append(kind.name)
        raise AssertionError(f"{kind.name} was exported")

    monkeypatch.setattr(trace, "write_onnx", note)
    return calls


def test_a_recipe_that_cannot_run_here_is_refused_before_anything_is_built(
    tiny_model: ModelDir, store: Store, exported: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for attempt in (missing_kinds, build):
        with pytest.raises(EngineError, match="recipe 'cuda' runs on an NVIDIA GPU"):
            attempt(tiny_model, load_recipe("cuda"), store)
    # The last kind alone: what it needs is asked for first.
    recipe = replace(load_recipe("cpu"), kinds={"vae_decode": "aotinductor"})
    monkeypatch.setattr(
        AotInductorBackend, "version", lambda _: (_ for _ in ()).throw(EngineError("no compiled packages here"))
    )
    for attempt in (missing_kinds, build):
        with pytest.raises(EngineError, match="no compiled packages here"):
            attempt(tiny_model, recipe, store)
    assert exported == []
    assert not store.path.exists()


def test_a_processor_without_the_instructions_of_int8_attention_is_refused_first(
    tiny_model: ModelDir, store: Store, exported: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_attention, "missing_instructions", lambda: ("avx512_vnni",))
    for attempt in (missing_kinds, build):
        with pytest.raises(EngineError, match=r"needs avx512_vnni of the processor; use recipe 'cpu-int8'"):
            attempt(tiny_model, load_recipe("cpu-int8-avx512"), store)
    assert exported == []


def test_a_missing_compiler_is_named_before_anything_is_built(
    tiny_model: ModelDir, store: Store, exported: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> str:
        raise EngineError("needs a C++ compiler")

    monkeypatch.setattr(package, "require_compiler", none)
    monkeypatch.setattr(int8_attention, "missing_instructions", tuple)
    cpu = load_recipe("cpu")
    packages = replace(cpu, kinds={"vae_decode": "aotinductor"})
    halves = replace(cpu, precisions={"single_block": "int8-attention"})
    for recipe in (packages, halves):
        with pytest.raises(EngineError, match=r"needs a C\+\+ compiler"):
            build(tiny_model, recipe, store)
    assert exported == []
    assert not store.path.exists()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 79626240 bytes"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        OutOfMemory("patch: ONNX Runtime ran out of memory (Failed to allocate); use a smaller size or fewer frames"),
        MemoryError(),
    ],
)
def test_a_build_that_runs_out_of_memory_says_so(
    tiny_model: ModelDir, store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(trace, "write_onnx", fail)
    with pytest.raises(OutOfMemory, match=r"^vlm_vision_block: memory ran out while its engine was built.* GiB; stop"):
        build(tiny_model, load_recipe("cpu"), store)
    assert list(store.path.iterdir()) == []


def test_the_command_that_builds_names_what_is_not_the_default(tiny_model: ModelDir, tmp_path: Path) -> None:
    mini, cpu, own = ModelDir.open(bundled_model()), load_recipe("cpu"), Store(tmp_path / "my store")
    assert build_command(mini, cpu, default_store()) == "vino-rt build"
    assert build_command(mini, load_recipe("cpu-int8"), default_store()) == "vino-rt build --recipe cpu-int8"
    file = tmp_path / "cpu.toml"
    file.write_text('like = "cpu"\n')
    assert shlex.split(build_command(tiny_model, load_recipe(file), own)) == [
        "vino-rt", "build", "--model", str(tiny_model.path), "--recipe", str(file), "--store", str(own.path),
    ]  # fmt: skip
    assert "Runtime.open(..., build=True)" in build_advice(mini, cpu, own)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("C++ compile error: cc1plus: out of memory allocating 65536 bytes"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_a_compiler_that_runs_out_of_memory_says_so(
    tiny_model: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(package, "require_compiler", lambda _: "c++")
    monkeypatch.setattr(package, "program_for", fail)
    with pytest.raises(OutOfMemory, match=r"head: memory ran out while AOTInductor compiled it \(.*allocat"):
        package.write_package(kinds_of(tiny_model)["head"], tmp_path / "engine.pt2")


def test_the_real_form_of_norm_and_rotation_keeps_float64() -> None:
    x, weight = torch.randn(3, 2, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    cos, sin = (torch.randn(3, 4, dtype=torch.float64) for _ in range(2))
    pairs = torch.view_as_complex((torch.nn.functional.rms_norm(x, (8,), weight, 1e-6)).reshape(3, 2, 4, 2))
    expected = torch.view_as_real(pairs * torch.complex(cos, sin)[:, None]).flatten(-2)
    found = package.plain_qk_norm_rope(x, weight, cos, sin)
    assert found.dtype is torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
