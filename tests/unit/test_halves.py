"""Engines in two halves with our int8 attention between them: the cut, what a file carries, a whole request."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import Tensor

from tests.unit.models import RUNS_INT8_ATTENTION, SIZE, Built
from vino_export import package, trace
from vino_export.halves import cut
from vino_export.trace import write_onnx
from vino_export.verify import verify
from vino_kernels.int8_attention import Library, Stream, int8_joint_attention
from vino_rt.backends import onnxruntime_halves
from vino_rt.backends.base import Engine, Kind
from vino_rt.backends.onnxruntime import OnnxRuntimeBackend
from vino_rt.backends.onnxruntime_halves import ATTENDS, KERNEL, SECOND
from vino_rt.backends.recipe import load_recipe
from vino_rt.build import build
from vino_rt.engines import checked_kinds, layer_weights
from vino_rt.errors import EngineError, OutOfMemory, VinoError
from vino_rt.model_dir import ModelDir
from vino_rt.request import Request
from vino_rt.runtime import Runtime

RECIPE, BLOCKS = "cpu-int8-avx512", ("dual_block", "single_block")


@pytest.fixture(scope="module")
def kinds(tiny_model: ModelDir) -> dict[str, Kind]:
    return checked_kinds(tiny_model, load_recipe(RECIPE))


@pytest.fixture(scope="module")
def file(kinds: Mapping[str, Kind], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("halves") / "engine.onnx"
    write_onnx(kinds["single_block"], path)
    return path


def opened(model: ModelDir, kind: Kind, path: Path) -> Engine:
    return OnnxRuntimeBackend(1).open(kind, path, [layer_weights(model, kind, 0)])[0]


@pytest.mark.parametrize("name", BLOCKS)
def test_the_cut_leaves_every_node_in_one_half(kinds: Mapping[str, Kind], tmp_path: Path, name: str) -> None:
    whole = trace.export_graph(kinds[name], tmp_path / "whole.onnx")
    (attention,) = (node for node in whole.graph.node if node.op_type == "JointAttention")
    *halves, attends = cut(name, whole)
    first, second = (half.graph for half in halves)
    made = [[node.output[0] for node in half.node if node.op_type != "Constant"] for half in (first, second)]
    assert not set(made[0]) & set(made[1])
    expected = {n.output[0] for n in whole.graph.node if n.op_type != "Constant"} - {attention.output[0]}
    assert {*made[0], *made[1]} == expected
    assert attends == list(attention.input)
    streams, orders = (2, ["orders"]) if name == "dual_block" else (1, [])
    assert attends[5 * streams :] == ["cos", "sin", "offsets", *orders]
    outputs, inputs = [value.name for value in first.output], {value.name for value in whole.graph.input}
    assert outputs[: 3 * streams] == [name for name in attends if name not in inputs]
    assert [value.name for value in second.input][:1] == list(attention.output)
    assert list(second.output) == list(whole.graph.output)
    read = {name for node in whole.graph.node if node.output[0] != attention.output[0] for name in node.input}
    takes = {value.name for half in (first, second) for value in half.input}
    assert inputs & read <= takes


@pytest.mark.parametrize("name", ["head", "embed"])
def test_kinds_without_joint_attention_are_refused(tiny_model: ModelDir, tmp_path: Path, name: str) -> None:
    kind = checked_kinds(tiny_model, load_recipe("cpu"))[name].at("int8-attention")
    with pytest.raises(EngineError, match=rf"{name}: .* this has 0; .* 'int8' or 'float32' to others"):
        write_onnx(kind, tmp_path / "engine.onnx")


@RUNS_INT8_ATTENTION
def test_weights_lie_in_the_half_that_multiplies_with_them(file: Path) -> None:
    first = onnx.load(file)
    carried = {entry.key: entry.value for entry in first.metadata_props}
    assert set(carried) == {SECOND, KERNEL, ATTENDS}
    inputs = {value.name for value in first.graph.input}
    assert {f"attn.to_{x}.weight.int8" for x in "qkv"} <= inputs
    assert not {"proj_mlp.weight.int8", "proj_out.weight.int8"} & inputs
    assert {node.op_type for node in first.graph.node if node.domain == "vino"} == {"NormModulate"}
    assert json.loads(carried[ATTENDS])[3:5] == ["attn.norm_q.weight", "attn.norm_k.weight"]


@RUNS_INT8_ATTENTION
@pytest.mark.parametrize("mistake", ["keys and values", "offsets", "rotation"])
def test_mistakes_are_refused(
    tiny_model: ModelDir, kinds: Mapping[str, Kind], file: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    kind = kinds["single_block"]

    def wrong(flat: Sequence[Tensor], cos: Tensor, sin: Tensor, offsets: Tensor) -> Tensor:
        q, k, v, *weights = flat
        if mistake == "offsets":
            offsets = torch.tensor([0, len(q), len(q)])
        if mistake == "rotation":
            sin = -sin
        if mistake == "keys and values":
            k, v = v, k
        return int8_joint_attention([Stream(q, k, v, *weights)], cos, sin, offsets, None)

    monkeypatch.setattr(onnxruntime_halves, "load_int8_attention", lambda *_: wrong)
    engine = opened(tiny_model, kind, file)
    with pytest.raises(EngineError, match=r"single_block: output 'joint_out' .*(off by|quantis).* not stored"):
        verify(kind, engine, layer_weights(tiny_model, kind, 0))


@RUNS_INT8_ATTENTION
def test_a_file_that_carries_nothing_is_refused(
    tiny_model: ModelDir, kinds: Mapping[str, Kind], file: Path, tmp_path: Path
) -> None:
    kept = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    cases = [
        ({}, "vino.second_half"),
        ({SECOND: "!", KERNEL: ""}, "base64"),
        ({**kept, ATTENDS: "["}, "Expecting value"),
        ({**kept, KERNEL: "bm90aGluZw=="}, "cannot be loaded"),
    ]
    for broken, said in cases:
        model = onnx.load(file)
        helper.set_model_props(model, broken)
        onnx.save(model, tmp_path / "broken.onnx")
        with pytest.raises(EngineError, match=f"single_block: .*{said}.*build it again"):
            opened(tiny_model, kinds["single_block"], tmp_path / "broken.onnx")


@RUNS_INT8_ATTENTION
@pytest.mark.parametrize(
    ("raised", "expected", "said"),
    [
        (ValueError("takes head sizes"), EngineError, "single_block: takes head sizes; use recipe 'cpu-int8'"),
        (MemoryError("no memory"), OutOfMemory, "single_block: no memory; use a smaller size"),
    ],
)
def test_what_the_kernel_refuses_is_told_in_its_words(
    tiny_model: ModelDir,
    kinds: Mapping[str, Kind],
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    expected: type[VinoError],
    said: str,
) -> None:
    def attend(*_: object) -> None:
        raise raised

    kind = kinds["single_block"]
    engine = opened(tiny_model, kind, file)
    monkeypatch.setattr(Library, "attend", attend)
    with pytest.raises(expected, match=said):
        verify(kind, engine, layer_weights(tiny_model, kind, 0))


@RUNS_INT8_ATTENTION
def test_a_processor_without_the_instructions_is_refused(
    tiny_model: ModelDir, kinds: Mapping[str, Kind], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"avx2": True, "avx_vnni": True, "fma3": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    with pytest.raises(EngineError, match=r"single_block: .* avx512_f.* avx512_vnni of the processor; .* 'cpu-int8'"):
        opened(tiny_model, kinds["single_block"], file)


def test_a_build_without_a_compiler_says_what_to_install(
    kinds: Mapping[str, Kind], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import cpp_builder, exc

    def none() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(EngineError, match=r"precision 'int8-attention' needs a C\+\+ compiler; install g\+\+"):
        package.require_compiler("precision 'int8-attention'")


@RUNS_INT8_ATTENTION
def test_a_request_comes_out_near_the_exact_one(tiny_model: ModelDir, built: Built) -> None:
    build(tiny_model, load_recipe(RECIPE), built.store)
    frames = []
    for recipe in ("cpu", RECIPE):
        with Runtime.open(tiny_model.path, recipe=recipe, store=built.store.path, threads=2) as runtime:
            request = Request(prompt="a red square", size=SIZE, frames=1, steps=4, seed=3)
            frames.append(runtime.generate(request).frames.astype(np.float32))
    assert 0 < float(np.abs(frames[0] - frames[1]).mean()) < 2.0
