"""AOTInductor packages: run without a compiler, hold no weights, and say why where they cannot be built or opened."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.models import COMPILES, Built
from vino_export import package as exporter
from vino_rt.backends import aotinductor
from vino_rt.backends.aotinductor import AotInductorBackend, AotInductorEngine, processor
from vino_rt.backends.base import Kind
from vino_rt.build import WRITERS, BuildProgress, build, missing_kinds
from vino_rt.engines import engine_key, kinds_of, layer_weights, open_engines
from vino_rt.errors import EngineError, EngineMismatch, OutOfMemory
from vino_rt.model_dir import ModelDir

ROOT = Path(__file__).parents[2]
PACKAGES = ("connector", "patch", "text", "embed", "dual_block", "single_block", "head")
VLM, VAE = ("vlm_vision_block", "vlm_layer"), ("vae_encode", "vae_decode")
"""What the recipe leaves to ONNX Runtime, before and behind the packages."""
RUN = """
import sys
from pathlib import Path
from vino_rt.backends.recipe import load_recipe
from vino_rt.backends.store import Store
from vino_rt.engines import kinds_of, open_engines
from vino_rt.model_dir import ModelDir

model = ModelDir.open(Path(sys.argv[1]))
engines = open_engines(model, load_recipe("aotinductor"), Store(Path(sys.argv[2])), 1)
for name, kind in kinds_of(model).items():
    for example in kind.examples():
        for engine in engines[name]:
            assert all(output.isfinite().all() for output in engine.run(**example)), name
print("ran", len(engines))
"""


@dataclass(frozen=True)
class Package:
    """A built package with what is needed to open it."""

    kind: Kind
    path: Path
    weights: list[dict[str, Tensor]]


@pytest.fixture
def blocks(tiny_model: ModelDir, compiled: Built) -> Package:
    """The single blocks of the tiny model: two layers, one package."""
    kind = kinds_of(tiny_model)["single_block"]
    _, path = compiled.store.find(engine_key(tiny_model, compiled.recipe, kind, AotInductorBackend()))
    return Package(kind, path, [layer_weights(tiny_model, kind, layer) for layer in range(kind.layers)])


@COMPILES
@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process runs all tests")
def test_one_worker_runs_all_tests_that_compile(request: pytest.FixtureRequest) -> None:
    """Versions of pytest and pytest-xdist that do not go together ignore groups, and every worker compiles."""
    assert request.node.nodeid.endswith("@compiles")


@COMPILES
def test_a_build_tells_everything_and_uses_what_is_there(compiled: Built) -> None:
    told = [progress.stage for progress in compiled.progress]
    found = ["found", "done"]
    assert told == found * len(VLM) + ["export", "verify", "done"] * len(PACKAGES) + found * len(VAE)
    assert [manifest.key.kind for manifest in compiled.manifests] == [*VLM, *PACKAGES, *VAE]
    for manifest in compiled.manifests[len(VLM) : -len(VAE)]:
        assert manifest.key.backend == "aotinductor"
        assert manifest.key.flags == (processor(),)
        assert manifest.artefact == WRITERS["aotinductor"].file
        assert 0 <= manifest.error <= manifest.bound < 1e-3


@COMPILES
def test_a_second_build_compiles_nothing(
    compiled: Built, tiny_model: ModelDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "write_package", None)
    told: list[BuildProgress] = []
    assert tuple(build(tiny_model, compiled.recipe, compiled.store, on_progress=told.append)) == compiled.manifests
    assert all(progress.reused for progress in told)


@COMPILES
def test_runs_without_a_compiler(compiled: Built, tiny_model: ModelDir, tmp_path: Path) -> None:
    empty, scratch = tmp_path / "bin", tmp_path / "scratch"
    empty.mkdir()
    scratch.mkdir()
    environment = {"PATH": str(empty), "CXX": str(empty / "none"), "TMPDIR": str(scratch), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tiny_model.path), str(compiled.store.path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.split()) == (0, ["ran", "12"]), done.stderr
    # Libraries that are imported leave empty directories there.
    left = [path.name for path in scratch.rglob("*") if path.is_file() or path.name.startswith("aotinductor_")]
    assert [name for name in left if name != ".ses"] == [], "what was unpacked or compiled stayed behind"


@COMPILES
def test_layers_share_the_package_and_their_weights_are_not_copied(blocks: Package) -> None:
    engines = AotInductorBackend(1).open(blocks.kind, blocks.path, blocks.weights)
    one, two = (engine for engine in engines if isinstance(engine, AotInductorEngine))
    assert one._package is two._package
    for engine, weights in zip((one, two), blocks.weights, strict=True):
        assert {w.data_ptr() for w in engine._weights} == {w.data_ptr() for w in weights.values()}
    size = sum(tensor.nbytes for layer in blocks.weights for tensor in layer.values())
    with zipfile.ZipFile(blocks.path) as archive:
        names = archive.namelist()
    assert size > 0
    assert not [name for name in names if "weights" in name or "constants" in name]


@COMPILES
def test_weights_in_another_order_are_the_same_weights(blocks: Package) -> None:
    turned = [dict(reversed(layer.items())) for layer in blocks.weights]
    example, backend = blocks.kind.examples()[0], AotInductorBackend(1)
    plain, other = (backend.open(blocks.kind, blocks.path, weights) for weights in (blocks.weights, turned))
    for one, two in zip(plain, other, strict=True):
        assert torch.equal(one.run(**example)[0], two.run(**example)[0])


@COMPILES
def test_any_number_of_threads_gives_the_same_bytes(blocks: Package) -> None:
    outputs = []
    for threads in (None, 1, 2, 3):
        engine = AotInductorBackend(threads).open(blocks.kind, blocks.path, blocks.weights)[0]
        outputs.append(engine.run(**blocks.kind.examples()[0])[0])
        assert torch.get_num_threads() == 1, "the caller's number came back"
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


@COMPILES
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attn.to_q.bias": None}, r"takes no weights named \[\] and needs \['attn.to_q.bias'\]"),
        ({"attn.other": torch.zeros(3)}, r"takes no weights named \['attn.other'\] and needs \[\]"),
        ({"attn.to_q.bias": torch.zeros(3)}, r"'attn.to_q.bias' is torch.float32 \(3,\), the engine takes"),
        ({"attn.norm_q.weight": torch.zeros(16).double()}, r"'attn.norm_q.weight' is torch.float64"),
    ],
)
def test_weights_that_do_not_fit(blocks: Package, change: dict[str, Tensor | None], message: str) -> None:
    weights = {name: tensor for name, tensor in (blocks.weights[0] | change).items() if tensor is not None}
    with pytest.raises(EngineError, match=rf"single_block.*{message}.*vino-rt build"):
        AotInductorBackend(1).open(blocks.kind, blocks.path, [weights])


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """A copy of a package whose entries went through `change`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def said(**changes: Any) -> Callable[[str, bytes], bytes]:
    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("_metadata.json"):
            return content
        entry = json.loads(content)
        entry[aotinductor.DESCRIPTION] = json.dumps(json.loads(entry[aotinductor.DESCRIPTION]) | changes)
        return json.dumps(entry).encode()

    return change


REFUSED: Mapping[str, tuple[Callable[[str, bytes], bytes], type[EngineError], str]] = {
    "kind": (said(kind="head"), EngineMismatch, "built for kind 'head', this is 'single_block'"),
    "torch": (said(torch="1.0.0"), EngineMismatch, "built for torch '1.0.0', this is"),
    "processor": (said(processor="z80"), EngineMismatch, "built for processor 'z80', this is"),
    "silent": (lambda name, c: b"{}" if name.endswith(".json") else c, EngineError, "cannot be read"),
    "odd": (lambda name, c: b"[3]" if name.endswith(".json") else c, EngineError, "cannot be read"),
    "code": (lambda name, c: b"no library" if name.endswith(".so") else c, EngineError, "AOTInductor cannot open"),
}


@COMPILES
@pytest.mark.parametrize(("change", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_packages_that_do_not_fit(
    blocks: Package, tmp_path: Path, change: Callable[[str, bytes], bytes], kind: type[EngineError], message: str
) -> None:
    path = rewritten(blocks.path, tmp_path / "engine.pt2", change)
    with pytest.raises(EngineError, match=f"single_block.*{message}(?s:.*)build") as caught:
        AotInductorBackend(1).open(blocks.kind, path, blocks.weights)
    assert type(caught.value) is kind


@COMPILES
@pytest.mark.parametrize("length", [0, 100, 5000])
def test_half_packages(blocks: Package, tmp_path: Path, length: int) -> None:
    path = tmp_path / "engine.pt2"
    path.write_bytes(blocks.path.read_bytes()[:length])
    with pytest.raises(EngineError, match=r"single_block: package .*cannot be read.*build again"):
        AotInductorBackend(1).open(blocks.kind, path, blocks.weights)


def test_no_package(tiny_model: ModelDir, tmp_path: Path) -> None:
    kind = kinds_of(tiny_model)["head"]
    with pytest.raises(EngineError, match="needs a built engine for kind 'head'"):
        AotInductorBackend().open(kind, None, [])
    with pytest.raises(EngineError, match="cannot be read"):
        AotInductorBackend().open(kind, tmp_path / "absent.pt2", [])


@COMPILES
def test_packages_of_another_processor_are_not_found(
    compiled: Built, tiny_model: ModelDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aotinductor, "processor", lambda: "z80 none 00000000")
    with pytest.raises(EngineMismatch, match=r"flags is \('.*'\,\), needed \('z80 none 00000000',\)"):
        open_engines(tiny_model, compiled.recipe, compiled.store, 1)
    assert missing_kinds(tiny_model, compiled.recipe, compiled.store) == list(PACKAGES)


class Failing:
    """A package that fails when it runs."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def boxed_run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        raise self._error


FAILURES = {
    "allocator": (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), OutOfMemory, "smaller size"),
    "bad_alloc": (RuntimeError("std::bad_alloc"), OutOfMemory, "fewer frames"),
    "python": (MemoryError(), OutOfMemory, "smaller size"),
    "else": (RuntimeError("Expected 3 inputs"), EngineError, "AOTInductor failed: Expected 3 inputs"),
}


@pytest.mark.parametrize(("error", "kind", "message"), FAILURES.values(), ids=FAILURES)
def test_failures_while_running(tiny_model: ModelDir, error: Exception, kind: type[Exception], message: str) -> None:
    head = kinds_of(tiny_model)["head"]
    engine = AotInductorEngine(head, Failing(error), {}, 2)  # type: ignore[arg-type]
    with pytest.raises(kind, match=f"head: .*{message}"):
        engine.run(**head.examples()[0])
    assert torch.get_num_threads() == 1
