"""ONNX Runtime on a GPU as far as it goes without one: its bindings on the CPU provider, and what it refuses for real.

The engine under test is the GPU's; the stream is a stand-in, the session and its bindings are ONNX Runtime's own. The
last tests need a GPU and onnxruntime-gpu.
"""

import importlib.metadata
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from packaging.requirements import Requirement

from tests.unit.host_provider import HOST, Claiming, HostStream, OnHost
from vino_export.trace import write_onnx
from vino_export.verify import verify
from vino_rt.backends.base import Kind
from vino_rt.backends.onnxruntime import REQUIREMENT, OnnxRuntimeBackend
from vino_rt.backends.onnxruntime_cuda import BoundEngine, OnnxRuntimeCudaBackend, check_placement
from vino_rt.backends.onnxruntime_tensorrt import OPTIONS, RANGES, OnnxRuntimeTensorRtBackend
from vino_rt.backends.recipe import load_recipe, make_backend
from vino_rt.backends.store import Manifest, Store, file_hash
from vino_rt.build import build
from vino_rt.engines import engine_key, kinds_of, layer_weights
from vino_rt.errors import EngineError, EngineMismatch, OutOfMemory
from vino_rt.model_dir import ModelDir

GPU = torch.device("cuda", 0)
WITH_PROVIDER = pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="onnxruntime without its CUDA provider"
)


Find = Callable[[str], tuple[Kind, Path]]


@pytest.fixture(scope="module")
def artefact(tiny_model: ModelDir, tmp_path_factory: pytest.TempPathFactory) -> Find:
    """A kind of the tiny model and its file, written when first asked for."""
    folder = tmp_path_factory.mktemp("files")

    @cache
    def find(name: str) -> tuple[Kind, Path]:
        kind, path = kinds_of(tiny_model)[name], folder / f"{name}.onnx"
        write_onnx(kind, path)
        return kind, path

    return find


@pytest.mark.parametrize("name", ["connector", "embed", "single_block", "head"])
def test_the_same_bytes_as_without_bindings(tiny_model: ModelDir, artefact: Find, name: str) -> None:
    kind, path = artefact(name)
    backend, weights = OnHost(), [layer_weights(tiny_model, kind, layer) for layer in range(kind.layers)]
    for engine, plain in zip(
        backend.open(kind, path, weights), OnnxRuntimeBackend(1).open(kind, path, weights), strict=True
    ):
        for example in kind.examples():
            kept = engine.run(**example)
            expected = plain.run(**example)
            assert all(map(torch.equal, kept, expected))
            # What was handed out is not written again.
            engine.run(**kind.examples()[-1])
            assert all(map(torch.equal, kept, expected))
    assert backend.host.log == ["begin", "end"] * (2 * len(kind.examples()) * kind.layers)


def test_layers_share_a_session_and_weights_stay_where_they_are(tiny_model: ModelDir, artefact: Find) -> None:
    kind, path = artefact("single_block")
    weights = [layer_weights(tiny_model, kind, layer) for layer in range(kind.layers)]
    one, two = (engine for engine in OnHost().open(kind, path, weights) if isinstance(engine, BoundEngine))
    assert one.bound._session is two.bound._session
    for engine, layer in zip((one, two), weights, strict=True):
        assert {w.data_ptr() for w in engine.bound.weights.values()} == {w.data_ptr() for w in layer.values()}
    changed = weights[0] | {"extra": torch.zeros(1)}
    with pytest.raises(EngineError, match=r"single_block: the engine takes no weights named \['extra'\]"):
        OnHost().open(kind, path, [changed])


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (RuntimeError("CUDA failure 2: out of memory ; GPU=0"), OutOfMemory, "use a smaller size"),
        (RuntimeError("CUBLAS failure 14"), EngineError, r'failed: CUBLAS failure 14; .* \[kinds\] head = "eager"'),
    ],
)
def test_failures_while_running(
    tiny_model: ModelDir,
    artefact: Find,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kind: type[Exception],
    message: str,
) -> None:
    head, path = artefact("head")
    (engine,) = OnHost().open(head, path, [layer_weights(tiny_model, head, 0)])

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", fail)
    with pytest.raises(kind, match=f"head: .*{message}"):
        engine.run(**head.examples()[0])


def test_a_library_without_the_provider_is_refused(tiny_model: ModelDir, artefact: Find) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has it")
    kind, path = artefact("head")
    for backend in (OnnxRuntimeCudaBackend(GPU), OnnxRuntimeTensorRtBackend(GPU)):
        names = ", ".join(backend.providers)
        with pytest.raises(
            EngineError, match=rf"{backend.name}' on a GPU needs ONNX Runtime with {names}.*{HOST}.*-gpu"
        ):
            backend.version()
        with pytest.raises(EngineError, match="pip install onnxruntime-gpu"):
            backend.open(kind, path, [])


def test_work_left_to_the_cpu_is_refused(artefact: Find) -> None:
    kind, path = artefact("single_block")
    session: Any = OnHost().session(kind, path)
    with pytest.raises(EngineError, match=r"single_block: ONNX Runtime has CUDAExecutionProvider and cannot load it"):
        check_placement(kind, session, OnnxRuntimeCudaBackend.providers)
    claiming: Any = Claiming(session, OnnxRuntimeCudaBackend.providers)
    message = (
        r"would compute ConstantOfShape, .*Gemm, LayerNormalization, MultiHeadAttention, RMSNormalization.* on the "
    )
    with pytest.raises(EngineError, match=message) as caught:
        check_placement(kind, claiming, OnnxRuntimeCudaBackend.providers)
    assert "Reshape" not in str(caught.value), "sizes may be computed on the host"


def test_what_the_providers_are_told(tiny_model: ModelDir, tmp_path: Path) -> None:
    kind = kinds_of(tiny_model)["head"].at("bfloat16")
    cuda: Any = HostStream()
    backend = OnnxRuntimeCudaBackend(GPU, cuda=cuda)
    told = backend.options("CUDAExecutionProvider", kind, tmp_path / "engine.onnx")
    assert told == {"device_id": "0", "user_compute_stream": "4711", "use_tf32": "0"}


class Sessions:
    """In the place of `InferenceSession`: takes what the real one takes, and notes it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[Mapping[str, Any]] = []
        monkeypatch.setattr(onnxruntime, "InferenceSession", self)

    def __call__(self, path: str, options: Any, *, providers: Any, enable_fallback: int) -> Any:
        # Raises as the real options would, for a name that they do not have.
        recorded = options.get_session_config_entry("session.record_ep_graph_assignment_info")
        self.asked.append({"providers": providers, "enable_fallback": enable_fallback, "recorded": recorded})
        raise RuntimeError("there is no GPU")


def test_a_session_is_made_with_the_providers_alone(
    tiny_model: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, sessions = kinds_of(tiny_model)["head"], Sessions(monkeypatch)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", HOST])
    cuda: Any = HostStream()
    backend = OnnxRuntimeCudaBackend(GPU, cuda=cuda)
    with pytest.raises(EngineError, match=r"head: ONNX Runtime cannot open .*: there is no GPU; delete .* and build"):
        backend.open(kind, tmp_path / "engine.onnx", [])
    (asked,) = sessions.asked
    assert [name for name, _ in asked["providers"]] == ["CUDAExecutionProvider"]
    assert (asked["enable_fallback"], asked["recorded"]) == (0, "1")


def test_sizes_that_no_plan_was_built_for_are_refused(tiny_model: ModelDir, artefact: Find, tmp_path: Path) -> None:
    kind, written = artefact("head")
    small, *_, large = sorted(kind.examples(), key=lambda example: sum(x.numel() for x in example.values()))
    ranges = ",".join(
        f"{spec.name}:{'x'.join(map(str, small[spec.name].shape))}"
        for spec in kind.spec.inputs
        if any(isinstance(dim, str) for dim in spec.dims)
    )
    path = tmp_path / "engine.onnx"
    path.with_name(RANGES).write_text(json.dumps(dict.fromkeys(OPTIONS, ranges)))
    host: Any = HostStream()
    backend = OnnxRuntimeTensorRtBackend(GPU, cuda=host)
    session = OnHost().session(kind, written)
    engine = backend.engine(kind, path, session, layer_weights(tiny_model, kind, 0))
    engine.run(**small)
    assert host.log == ["begin", "end"]
    with pytest.raises(EngineError, match=r"head: tensor '.*' has shape \(.*the plans were built for .*\[\[bucket\]\]"):
        engine.run(**large)
    assert host.log == ["begin", "end"], "the provider never saw it"
    for broken in ("x:1xa", "x:1"):
        path.with_name(RANGES).write_text(json.dumps(dict.fromkeys(OPTIONS, ranges) | {OPTIONS[0]: broken}))
        with pytest.raises(EngineError, match=r"head: .*ranges.json cannot be read .*build it again"):
            backend.engine(kind, path, session, {})


@pytest.mark.parametrize("version", ["1.30.9", "2.0.0", "0.9"])
def test_unsupported_versions_of_the_library_are_named(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", version)
    with pytest.raises(EngineError, match=rf"needs ONNX Runtime 1.31 or newer.* is {version}.*pip install"):
        OnnxRuntimeBackend().version()


def test_the_library_s_versions_are_those_of_the_package() -> None:
    (own,) = (r for r in map(Requirement, importlib.metadata.requires("vino-rt") or []) if r.name == "onnxruntime")
    assert own.specifier == Requirement(REQUIREMENT).specifier


@pytest.mark.parametrize("name", ["embed", "single_block"])
def test_files_in_bfloat16_are_well_typed(tiny_model: ModelDir, tmp_path: Path, name: str) -> None:
    kind, path = kinds_of(tiny_model)[name].at("bfloat16"), tmp_path / "engine.onnx"
    write_onnx(kind, path)
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    # Types pass; the CPU provider has no products in bfloat16, which the other has.
    with pytest.raises(Exception, match=r"NOT_IMPLEMENTED.*implementation for") as caught:
        onnxruntime.InferenceSession(str(path), providers=[HOST])
    assert "Type Error" not in str(caught.value)


def test_the_recipe_s_key_names_provider_and_driver(
    tiny_model: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("vino_rt.engines.driver_version", lambda: "580.65.06")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", HOST])
    recipe, kind = load_recipe("onnxruntime-cuda"), kinds_of(tiny_model)["head"]
    key = engine_key(tiny_model, recipe, kind, make_backend("onnxruntime", None, GPU))
    assert (key.flags, key.driver, key.capability) == (("CUDAExecutionProvider",), "580.65.06", "sm_90")
    store = Store(tmp_path / "store")

    def make(directory: Path) -> Manifest:
        (directory / "engine.onnx").write_bytes(b"")
        return Manifest(
            key=replace(key, driver="570.1", flags=("TensorrtExecutionProvider",)), inputs=(), outputs=(),
            artefact="engine.onnx", bytes=0, sha256=file_hash(directory / "engine.onnx"), error=0.0, bound=0.0,
            verified_on="", build_seconds=0.0,
        )  # fmt: skip

    store.put(make)
    with pytest.raises(EngineMismatch, match=r"driver is '570.1', needed '580.65.06'; flags is .*needed \('CUDAE"):
        store.find(key)


@pytest.mark.gpu
@WITH_PROVIDER
@pytest.mark.parametrize("name", ["connector", "embed", "dual_block", "single_block", "head"])
def test_on_a_gpu(tiny_model: ModelDir, tmp_path: Path, name: str) -> None:
    recipe = load_recipe("onnxruntime-cuda")
    kind = kinds_of(tiny_model)[name].at(recipe.precision_of(name))
    path, weights = tmp_path / "engine.onnx", layer_weights(tiny_model, kind, 0)
    write_onnx(kind, path)
    (engine,) = OnnxRuntimeCudaBackend(recipe.torch_device).open(kind, path, [weights])
    verdict = verify(kind, engine, weights)
    assert 0 <= verdict.error <= verdict.bound


@pytest.mark.gpu
@WITH_PROVIDER
def test_the_recipe_builds_on_a_gpu(tiny_model: ModelDir, tmp_path: Path) -> None:
    manifests = build(tiny_model, load_recipe("onnxruntime-cuda"), Store(tmp_path / "store"))
    assert all(manifest.key.flags == ("CUDAExecutionProvider",) for manifest in manifests)
    assert {"dual_block", "single_block"} <= {manifest.key.kind for manifest in manifests}
