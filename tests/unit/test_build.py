"""Building: what is told, what is kept, what is made again, and stores that belong to something else."""

import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.unit.models import Built
from vino_export import trace
from vino_export.tensorrt import write
from vino_export.tensorrt.progress import BuildStep
from vino_rt import engines
from vino_rt.backends.base import Kind
from vino_rt.backends.recipe import load_recipe
from vino_rt.backends.store import Store, file_hash
from vino_rt.backends.tensorrt import description
from vino_rt.build import WRITERS, BuildProgress, Job, build, missing_kinds
from vino_rt.engines import kinds_of, open_engines
from vino_rt.errors import EngineError, EngineMismatch, EngineMissing
from vino_rt.model_dir import ModelDir, bundled_model
from vino_rt.runtime import Runtime

ARTEFACT = WRITERS["onnxruntime"].file
KINDS = (
    "vlm_vision_block", "vlm_layer", "connector", "patch", "text", "embed", "dual_block", "single_block", "head",
    "vae_encode", "vae_decode",
)  # fmt: skip
BUILT, FOUND = ("export", "verify", "done"), ("found", "done")


class Stop(Exception):
    """What a caller of ours raises to interrupt a build."""


def expected(kinds: Iterable[str], found: Iterable[str] = ()) -> list[BuildProgress]:
    told, found, kinds = [], set(found), list(kinds)
    for number, kind in enumerate(kinds):
        for stage in FOUND if kind in found else BUILT:
            told.append(BuildProgress(kind, stage, number + (stage == "done"), len(kinds), kind in found))
    return told


@pytest.fixture
def exported(built: Built, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let export copy what was exported before; the list says for which kinds."""
    ready = {manifest.key.kind: directory / ARTEFACT for directory, manifest in built.store.manifests()}
    calls: list[str] = []

    def copy(kind: Kind, path: Path) -> None:
        calls.append(kind.name)
        shutil.copy(ready[kind.name], path)

    monkeypatch.setattr(trace, "write_onnx", copy)
    return calls


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def full(built: Built, store: Store) -> Store:
    """A copy of the finished store, to be damaged."""
    shutil.copytree(built.store.path, store.path)
    return store


def test_a_fresh_build_tells_everything_in_order(built: Built) -> None:
    assert list(built.progress) == expected(KINDS)
    assert not any(progress.reused for progress in built.progress)


def test_manifests_say_what_was_measured(built: Built, tiny_model: ModelDir) -> None:
    kinds = kinds_of(tiny_model)
    assert [manifest.key.kind for manifest in built.manifests] == list(KINDS)
    for manifest in built.manifests:
        stored, artefact = built.store.find(manifest.key)
        assert stored == manifest
        assert 0 <= manifest.error <= manifest.bound < 1e-3
        assert (manifest.bytes, manifest.sha256) == (artefact.stat().st_size, file_hash(artefact))
        assert manifest.inputs == tuple(spec.name for spec in kinds[manifest.key.kind].spec.inputs)
        assert manifest.outputs == tuple(spec.name for spec in kinds[manifest.key.kind].spec.outputs)
        assert manifest.verified_on == tiny_model.weights_hash
        assert manifest.key.config_hash == tiny_model.config_hash
        assert manifest.key.torch_version == torch.__version__.split("+")[0]
        assert manifest.build_seconds > 0


def test_a_second_build_reuses_all(built: Built, tiny_model: ModelDir, exported: list[str]) -> None:
    told: list[BuildProgress] = []
    before = {path: path.stat().st_mtime_ns for path in built.store.path.rglob("*")}
    manifests = build(tiny_model, built.recipe, built.store, on_progress=told.append)
    assert tuple(manifests) == built.manifests
    assert told == expected(KINDS, found=KINDS)
    assert [progress.reused for progress in told] == [True, True] * len(KINDS)
    assert exported == []
    assert {path: path.stat().st_mtime_ns for path in built.store.path.rglob("*")} == before


@pytest.mark.parametrize("stage", ["export", "verify"])
def test_an_interrupted_build_goes_on_where_it_stopped(
    built: Built, tiny_model: ModelDir, store: Store, exported: list[str], stage: str
) -> None:
    def interrupt(progress: BuildProgress) -> None:
        if (progress.done, progress.stage) == (2, stage):
            raise Stop

    assert missing_kinds(tiny_model, built.recipe, store) == list(KINDS)
    with pytest.raises(Stop):
        build(tiny_model, built.recipe, store, on_progress=interrupt)
    assert len(list(store.path.iterdir())) == 2, "the interrupted kind left something behind"
    assert missing_kinds(tiny_model, built.recipe, store) == list(KINDS[2:])
    exported.clear()
    told: list[BuildProgress] = []
    manifests = build(tiny_model, built.recipe, store, on_progress=told.append)
    assert exported == list(KINDS[2:])
    assert told == expected(KINDS, found=KINDS[:2])
    assert [manifest.key for manifest in manifests] == [manifest.key for manifest in built.manifests]
    assert missing_kinds(tiny_model, built.recipe, store) == []


DAMAGE: dict[str, Callable[[Path], object]] = {
    "artefact": lambda directory: (directory / ARTEFACT).write_bytes(b"x"),
    "manifest": lambda directory: (directory / "manifest.json").write_text("{"),
    "gone": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_only_the_damaged_engine_is_built_again(
    built: Built, tiny_model: ModelDir, full: Store, exported: list[str], damage: Callable[[Path], object]
) -> None:
    key = built.manifests[KINDS.index("head")].key
    damage(full.path / key.directory)
    with pytest.raises(EngineError, match="head"):
        open_engines(tiny_model, built.recipe, full, 1)
    assert missing_kinds(tiny_model, built.recipe, full) == ["head"]
    told: list[BuildProgress] = []
    build(tiny_model, built.recipe, full, on_progress=told.append)
    assert exported == ["head"]
    assert told == expected(KINDS, found=set(KINDS) - {"head"})
    full.find(key)


def test_an_engine_that_is_wrong_is_not_stored(
    built: Built, tiny_model: ModelDir, store: Store, exported: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = built.store.path / built.manifests[0].key.directory / ARTEFACT
    monkeypatch.setattr(trace, "write_onnx", lambda kind, path: shutil.copy(first, path))
    with pytest.raises(EngineError, match=KINDS[1]):
        build(tiny_model, built.recipe, store)
    assert [manifest.key.kind for _, manifest in store.manifests()] == [KINDS[0]]
    assert len(list(store.path.iterdir())) == 1


def test_the_eager_recipe_builds_nothing(tiny_model: ModelDir, store: Store) -> None:
    recipe = load_recipe("eager")
    told: list[BuildProgress] = []
    assert build(tiny_model, recipe, store, on_progress=told.append) == []
    assert told == []
    assert missing_kinds(tiny_model, recipe, store) == []
    assert not store.path.exists()
    engines = open_engines(tiny_model, recipe, store, None)
    assert {name: len(layers) for name, layers in engines.items() if len(layers) > 1} == {
        "vlm_vision_block": 4,
        "vlm_layer": 4,
        "dual_block": 2,
        "single_block": 2,
    }


def test_a_runtime_never_builds_unless_told(tiny_model: ModelDir, store: Store, exported: list[str]) -> None:
    advice = r"build it with: vino-rt build --model .* --store .*Runtime\.open\(\.\.\., build=True\)"
    with pytest.raises(EngineMissing, match=rf"no engine for kind 'vlm_vision_block'.*{advice}"):
        Runtime.open(tiny_model.path, store=store.path)
    assert exported == []
    assert not store.path.exists()
    told: list[BuildProgress] = []
    with Runtime.open(tiny_model.path, store=str(store.path), build=True, on_build=told.append, threads=1):
        assert exported == list(KINDS)
        assert told == expected(KINDS)


def test_engines_of_another_model(built: Built) -> None:
    with pytest.raises(EngineMismatch, match=r"config_hash is .*needed .*build it with: vino-rt build --"):
        open_engines(ModelDir.open(bundled_model()), built.recipe, built.store, 1)


@pytest.mark.parametrize(("module", "field"), [(engines, "kernels_version"), (torch, "torch_version")])
def test_engines_of_another_version(
    built: Built, tiny_model: ModelDir, monkeypatch: pytest.MonkeyPatch, module: object, field: str
) -> None:
    monkeypatch.setattr(module, "__version__", "9.9+cpu" if module is torch else "9.9")
    with pytest.raises(EngineMismatch, match=rf"{field} is .*needed '9\.9[+']"):
        open_engines(tiny_model, built.recipe, built.store, 1)


def test_engines_of_another_machine(built: Built, tiny_model: ModelDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(EngineMismatch, match=r"capability is .*needed 'riscv64'"):
        open_engines(tiny_model, built.recipe, built.store, 1)


def test_weights_of_another_training_use_the_same_engines(built: Built, tiny_model: ModelDir) -> None:
    files = {name: replace(record, sha256="0" * 64) for name, record in tiny_model.files.items()}
    other = replace(tiny_model, files=files)
    assert other.weights_hash != tiny_model.weights_hash
    assert missing_kinds(other, built.recipe, built.store) == []


def test_what_building_needs_is_named(
    built: Built, tiny_model: ModelDir, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vino_export.trace", None)
    with pytest.raises(EngineError, match=r"building needs .*pip install onnx onnxscript"):
        build(tiny_model, built.recipe, store)
    assert not store.path.exists()


def test_every_layer_and_kind_shares_one_copy_of_the_weights(tiny_model: ModelDir, tmp_path: Path) -> None:
    engines = open_engines(tiny_model, load_recipe("eager"), Store(tmp_path), None)
    modules = {name: [engine._module for engine in layers] for name, layers in engines.items()}  # type: ignore[attr-defined]
    patch, embed = modules["patch"][0].proj.weight, modules["embed"][0].x_embedder.proj.weight
    assert patch.data_ptr() == embed.data_ptr()
    first, second = (module.proj_out.weight for module in modules["single_block"])
    assert first.data_ptr() != second.data_ptr()
    assert not torch.equal(first, second)


def test_the_steps_of_tensorrt_are_told(tiny_model: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = BuildStep("Timing graph nodes", 3, 40)
    monkeypatch.setattr(write, "write_plan", lambda kind, path, weights, options: options.on_step(step))
    monkeypatch.setattr(description, "read_description", lambda path: step)
    recipe, told = load_recipe("tensorrt"), list[str]()
    backend: Any = SimpleNamespace(target=lambda: ("sm_90", "A GPU"))
    kind = kinds_of(tiny_model)["head"]
    job = Job(tiny_model, recipe, Store(tmp_path), kind, backend, told.append)
    assert WRITERS["tensorrt"].load(kind)(job, tmp_path / "engine.plan", {}) == asdict(step)
    assert told == ["Timing graph nodes: 3 of 40"]
