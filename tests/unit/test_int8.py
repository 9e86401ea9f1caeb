"""int8 matmuls: what is quantised and how far off it is, what a file takes, and mistakes that this must not hide."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from vino_export import int8_graph
from vino_export.int8 import Int8Linear, quantised_weights
from vino_export.trace import write_onnx
from vino_export.verify import verify
from vino_rt.backends.base import Engine, Kind
from vino_rt.backends.onnxruntime import (
    INT8_SUFFIX,
    SCALE_SUFFIX,
    UINT8_SUFFIX,
    OnnxRuntimeBackend,
    multiplies_int8,
    quantise,
    weight_suffix,
)
from vino_rt.backends.recipe import load_recipe
from vino_rt.engines import checked_kinds, layer_weights
from vino_rt.errors import EngineError
from vino_rt.model_dir import ModelDir

BLOCKS = ("dual_block", "single_block")
OUTSIDE = ("NormModulate", "QkNormRope", "BoundaryAttention")


@pytest.fixture(scope="module")
def kinds(tiny_model: ModelDir) -> dict[str, Kind]:
    return checked_kinds(tiny_model, load_recipe("cpu-int8"))


@pytest.fixture(scope="module")
def files(kinds: Mapping[str, Kind], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("int8")
    for name in BLOCKS:
        write_onnx(kinds[name], directory / f"{name}.onnx")
    return {name: directory / f"{name}.onnx" for name in BLOCKS}


def opened(model: ModelDir, kind: Kind, path: Path) -> tuple[Engine, dict[str, Tensor]]:
    weights = layer_weights(model, kind, 0)
    return OnnxRuntimeBackend(1).open(kind, path, [weights])[0], weights


def test_the_recipe_rounds_the_blocks_and_nothing_else(kinds: Mapping[str, Kind]) -> None:
    assert {name for name, kind in kinds.items() if quantised_weights(kind)} == set(BLOCKS)
    assert all(kind.precision == ("int8" if name in BLOCKS else "float32") for name, kind in kinds.items())
    assert all(spec.dtype != "int8" for kind in kinds.values() for spec in (*kind.spec.inputs, *kind.spec.outputs))


def test_weights_are_rounded_to_the_nearest_step_of_their_channel() -> None:
    weight = torch.tensor([[1.27, -0.635, 0.004, 0.006], [0.0, 0.0, 0.0, 0.0], [-254.0, 2.0, 3.1, 0.9]])
    values, scale = quantise(weight)
    assert values.dtype == torch.int8
    assert values.is_contiguous()
    assert values.T.tolist() == [[127, -64, 0, 1], [0, 0, 0, 0], [-127, 1, 2, 0]]
    assert scale.tolist() == pytest.approx([0.01, 1.0, 2.0])


@pytest.mark.parametrize("spread", [(-1.0, 1.0), (0.5, 3.0), (-3.0, -0.5), (0.0, 0.0)])
def test_activations_lose_half_a_step_at_most(spread: tuple[float, float]) -> None:
    linear = nn.Linear(7, 7)
    linear.weight.data, linear.bias.data = torch.eye(7), torch.zeros(7)
    x = torch.empty(33, 7).uniform_(*spread, generator=torch.Generator().manual_seed(0))
    step = (max(spread[1], 0.0) - min(spread[0], 0.0)) / 255
    off = (Int8Linear(linear)(x) - x).abs().max()
    # Zero lies on a step, so what is left of the rounding of the range shifts an end by another half.
    assert off <= step + 1e-6


@pytest.mark.parametrize("name", BLOCKS)
def test_a_file_takes_every_product_as_int8(kinds: Mapping[str, Kind], files: Mapping[str, Path], name: str) -> None:
    model, rounded = onnx.load(files[name]), quantised_weights(kinds[name])
    onnx.checker.check_model(model)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    element = onnx.TensorProto.INT8 if weight_suffix() == INT8_SUFFIX else onnx.TensorProto.UINT8
    assert all(types[w + weight_suffix()] == element and types[w + SCALE_SUFFIX] == 1 for w in rounded)
    assert not set(rounded) & set(types)
    found = [node.op_type for node in model.graph.node]
    assert "Gemm" not in found
    apart = int(name == "single_block")
    assert found.count("Sum") == apart, "rows of two tensors are not joined for the last product of a single block"
    assert found.count("MatMulIntegerToFloat") == len(rounded) + apart
    assert found.count("DynamicQuantizeLinear") < len(rounded), "projections of the same rows are rounded once"
    assert {node.op_type for node in model.graph.node if node.domain == "vino"} == set(OUTSIDE)


@pytest.mark.parametrize("name", BLOCKS)
def test_an_engine_holds_a_quarter_and_computes_within_the_bound(
    tiny_model: ModelDir, kinds: Mapping[str, Kind], files: Mapping[str, Path], name: str
) -> None:
    engine, weights = opened(tiny_model, kinds[name], files[name])
    held = sum(weight.nbytes for weight in engine.bound.weights.values())  # type: ignore[attr-defined]
    assert held < sum(w.nbytes for w in weights.values()) / 2, "biases and scales weigh much in so small a model"
    verdict = verify(kinds[name], engine, weights)
    assert 1e-4 < verdict.error <= verdict.bound < 1


def product(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    """The last one, which has the bias."""
    found: list[onnx.NodeProto] = [node for node in graph.node if f"{name}.weight{SCALE_SUFFIX}" in node.input]
    return found[-1]


def swapped_scales(graph: onnx.GraphProto) -> None:
    query, key = product(graph, "attn.to_q"), product(graph, "attn.to_k")
    query.input[3], key.input[3] = key.input[3], query.input[3]


def without_zero_point(graph: onnx.GraphProto) -> None:
    product(graph, "attn.to_v").input[4] = ""


def without_a_bias(graph: onnx.GraphProto) -> None:
    product(graph, "proj_out").input[6] = ""


def without_turn(graph: onnx.GraphProto) -> None:
    turned = next(node for node in graph.node if node.op_type == "QkNormRope")
    turned.input[2], turned.input[3] = turned.input[3], turned.input[2]


@pytest.mark.parametrize("mistake", [swapped_scales, without_zero_point, without_a_bias, without_turn])
def test_mistakes_are_refused(
    tiny_model: ModelDir,
    kinds: Mapping[str, Kind],
    files: Mapping[str, Path],
    tmp_path: Path,
    mistake: Callable[[onnx.GraphProto], None],
) -> None:
    model, kind = onnx.load(files["single_block"]), kinds["single_block"]
    mistake(model.graph)
    onnx.save(model, tmp_path / "wrong.onnx")
    engine, weights = opened(tiny_model, kind, tmp_path / "wrong.onnx")
    with pytest.raises(EngineError, match=r"single_block: output 'joint_out' .*(off by|quantis).* not stored"):
        verify(kind, engine, weights)


def test_a_kind_without_matmuls_is_refused(kinds: Mapping[str, Kind]) -> None:
    with pytest.raises(EngineError, match=r"patch: it has no Linear to compute in int8; .* float32"):
        quantised_weights(kinds["patch"].at("int8"))
    with pytest.raises(EngineError, match=r"vlm_layer: int8 needs a bias, \['self_attn.q_proj'.* float32"):
        quantised_weights(kinds["vlm_layer"].at("int8"))


def test_a_matmul_that_is_not_found_is_a_mistake(kinds: Mapping[str, Kind], files: Mapping[str, Path]) -> None:
    graph = onnx.load(files["single_block"]).graph
    with pytest.raises(AssertionError, match="no matmul with"):
        int8_graph.quantise_matmuls(graph, quantised_weights(kinds["single_block"]))


def test_a_file_that_takes_other_weights_is_refused(
    tiny_model: ModelDir, kinds: Mapping[str, Kind], files: Mapping[str, Path]
) -> None:
    weights = layer_weights(tiny_model, kinds["single_block"], 0)
    fewer = {name: tensor for name, tensor in weights.items() if name != "proj_mlp.weight"}
    missing = sorted(f"proj_mlp.weight{suffix}" for suffix in (weight_suffix(), SCALE_SUFFIX))
    with pytest.raises(EngineError, match=re.escape(f"needs {missing}")):
        OnnxRuntimeBackend(1).open(kinds["single_block"], files["single_block"], [fewer])


@pytest.mark.parametrize(
    ("flags", "exact"),
    [
        ({"avx2": True, "avx512_vnni": False, "avx_vnni": False}, False),
        ({"avx2": True, "avx512_vnni": True, "avx_vnni": False}, True),
        ({"avx2": True, "avx_vnni": True}, True),
        ({"architecture": "aarch64"}, True),
    ],
)
def test_weights_are_uint8_where_sums_of_int8_overflow(
    monkeypatch: pytest.MonkeyPatch, flags: Mapping[str, bool | str], exact: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert multiplies_int8() is exact
    assert weight_suffix() == (INT8_SUFFIX if exact else UINT8_SUFFIX)
    assert OnnxRuntimeBackend().target() == (() if exact else ("uint8 weights",))


def built_for(vnni: bool, kind: Kind, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the file that a build on a processor with or without VNNI writes; afterwards it is that processor."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx_vnni": vnni})
    write_onnx(kind, path)


@pytest.mark.parametrize("name", BLOCKS)
def test_uint8_weights_compute_within_the_same_bound(
    tiny_model: ModelDir, kinds: Mapping[str, Kind], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    built_for(False, kinds[name], path := tmp_path / "engine.onnx", monkeypatch)
    engine, weights = opened(tiny_model, kinds[name], path)
    verdict = verify(kinds[name], engine, weights)
    assert 1e-4 < verdict.error <= verdict.bound < 1


@pytest.mark.skipif(not multiplies_int8(), reason="int8 weights are multiplied exactly with VNNI only")
def test_both_kinds_of_weights_give_the_same_bits(
    tiny_model: ModelDir, kinds: Mapping[str, Kind], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, made = kinds["dual_block"], []
    for vnni in (False, True):
        built_for(vnni, kind, path := tmp_path / f"{vnni}.onnx", monkeypatch)
        engine, _ = opened(tiny_model, kind, path)
        made.append(engine.run(**kind.examples()[0]))
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


def test_a_file_for_vnni_is_refused_without_it(
    tiny_model: ModelDir, kinds: Mapping[str, Kind], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built_for(True, kinds["single_block"], path := tmp_path / "engine.onnx", monkeypatch)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    with pytest.raises(EngineError, match=r"single_block: .*\.onnx was built for a processor with VNNI; build it"):
        opened(tiny_model, kinds["single_block"], path)
