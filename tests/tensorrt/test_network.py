"""Networks for TensorRT: operators and types that its parser has, the same numbers, nothing that could stand in."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.tensorrt.small import first_weights, picture_kind, small_kinds
from vino_export.functions import DOMAIN, OPSET
from vino_export.tensorrt import network as networks
from vino_export.tensorrt.native import TENSORRT
from vino_export.tensorrt.network import network
from vino_export.trace import write_onnx
from vino_export.verify import verify
from vino_kernels.plugins.declare import PLUGINS
from vino_rt.backends.base import Kind
from vino_rt.backends.onnxruntime import OnnxRuntimeBackend
from vino_rt.errors import EngineError

TABLE = json.loads((Path(__file__).parent / "parser_operators.json").read_text())
TYPES: dict[int, str] = {
    TensorProto.FLOAT: "FP32", TensorProto.BFLOAT16: "BF16", TensorProto.FLOAT16: "FP16", TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64", TensorProto.BOOL: "BOOL",
}  # fmt: skip
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("vae_encode", "vae_decode")]
KINDS = (*(name for name in small_kinds() if not name.startswith("vae")), *SLOW)
OURS = ("embed", "dual_block", "single_block", "head")
VARIANTS = {"native 10": ("native", 10), "native 11": ("native", 11), "plugin": ("plugin", 11)}
ALIKE = frozenset({
    "Add", "Sub", "Mul", "Div", "Max", "Pow", "Concat", "Where", "MatMul", "Gemm", "Conv", "GroupNormalization",
    "LayerNormalization", "RMSNormalization", "RotaryEmbedding", "Attention", "TRT_Attention",
})  # fmt: skip
"""Operators whose floating inputs must be of one type."""


@pytest.fixture(scope="module")
def exported() -> Iterator[dict[str, Kind]]:
    """Kinds in the precision of a GPU, whose canonical file is made once for all variants."""
    files: dict[tuple[str, str], bytes] = {}

    def once(kind: Kind, path: Path) -> None:
        key = kind.name, kind.precision
        if key not in files:
            write_onnx(kind, path)
            files[key] = path.read_bytes()
        path.write_bytes(files[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "write_onnx", once)
        # The autoencoder stays in float32 (engines/recipes/cuda.toml).
        yield {n: kind.at("float32" if n.startswith("vae") else "bfloat16") for n, kind in small_kinds().items()}


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value; operators that ONNX infers nothing for give what they take."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    for node in plain.graph.node:
        if node.domain in (DOMAIN, TENSORRT) or node.op_type == "GroupNormalization":
            copied = helper.make_node("Identity", node.input[:1], node.output[:1])
            node.CopyFrom(copied)
    plain = onnx.shape_inference.infer_shapes(plain, strict_mode=True)
    values = (*plain.graph.input, *plain.graph.output, *plain.graph.value_info)
    named = {value.name: value.type.tensor_type.elem_type for value in values}
    return named | {tensor.name: tensor.data_type for tensor in plain.graph.initializer}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", KINDS)
def test_operators_and_types_are_the_parser_s(exported: Mapping[str, Kind], name: str, variant: str) -> None:
    form, major = VARIANTS[variant]
    model = network(exported[name], form, major)
    types, wrong = types_of(model), []
    assert not model.functions
    assert TABLE["opsets"][0] <= OPSET <= TABLE["opsets"][1]
    for node in model.graph.node:
        if form == "plugin" and node.domain == DOMAIN:
            continue
        taken = TABLE["operators"].get(node.op_type)
        if taken is None or (major < 11 and node.op_type in TABLE["since_11"]):
            wrong.append(f"{node.op_type} is no operator of the parser")
            continue
        found = {TYPES.get(types[value], str(types[value])) for value in (*node.input, *node.output) if value}
        wrong += [f"{node.op_type} of {kind}" for kind in found - set(taken.split()) - {"INT64", "INT32", "BOOL"}]
        if node.op_type in ALIKE:
            floats = {TYPES[types[value]] for value in node.input if value} - {"INT64", "INT32", "BOOL"}
            assert len(floats) <= 1, f"{node.op_type} of mixed types {floats}: a strongly typed network refuses it"
    assert not wrong


@pytest.mark.parametrize("name", OURS)
def test_plugins_are_asked_for_and_nothing_can_stand_in(exported: Mapping[str, Kind], name: str) -> None:
    """The parser looks for a plugin where `plugin_namespace` stands, then for its own operator, then for a function."""
    model = network(exported[name], "plugin", 11)
    ours = [node for node in model.graph.node if node.domain == DOMAIN]
    assert ours
    for node in ours:
        attributes: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        assert attributes == {"plugin_namespace": b"vino", "plugin_version": b"1", "aot": 1}
        assert node.op_type not in TABLE["operators"]
        plugin = PLUGINS[node.op_type]
        assert (len(node.input), len(node.output)) == (len(plugin.inputs), plugin.outputs)


def packed_attention() -> onnx.FunctionProto:
    """What NVIDIA documents of TRT_Attention in its packed form; rows behind the last segment are NaN."""
    node = helper.make_node

    def numbers(name: str, values: list[int]) -> onnx.NodeProto:
        return node("Constant", [], [name], value_ints=values)

    inputs = ["q", "k", "v", "mask", "past_key", "past_value", "lengths", "key_lengths"]
    nodes = [
        numbers("zero", [0]), numbers("one", [1]), numbers("far", [1 << 30]), numbers("front", [0, 1]),
        numbers("back", [1, 2]), node("Constant", [], ["start"], value_int=0),
        node("Constant", [], ["step"], value_int=1), node("Shape", ["q"], ["count"], start=0, end=1),
        node("Squeeze", ["count", "zero"], ["limit"]), node("Range", ["start", "limit", "step"], ["rows"]),
        node("Cast", ["lengths"], ["cuts"], to=TensorProto.INT64), node("Slice", ["cuts", "one", "far"], ["ends"]),
        node("Unsqueeze", ["rows", "one"], ["column"]), node("GreaterOrEqual", ["column", "ends"], ["passed"]),
        node("Cast", ["passed"], ["counted"], to=TensorProto.INT64),
        node("ReduceSum", ["counted", "one"], ["own"], keepdims=1), node("Transpose", ["own"], ["other"]),
        node("Equal", ["own", "other"], ["seen"]), node("Unsqueeze", ["seen", "front"], ["seen_mask"]),
        *(node("Transpose", [x], [f"{x}_t"], perm=[1, 0, 2]) for x in "qkv"),
        *(node("Unsqueeze", [f"{x}_t", "zero"], [f"{x}4"]) for x in "qkv"),
        node("Attention", ["q4", "k4", "v4", "seen_mask"], ["o4"]), node("Squeeze", ["o4", "zero"], ["o3"]),
        node("Transpose", ["o3"], ["o"], perm=[1, 0, 2]), node("ReduceMax", ["ends"], ["last"], keepdims=0),
        node("Less", ["rows", "last"], ["inside"]), node("Unsqueeze", ["inside", "back"], ["inside3"]),
        node("Constant", [], ["nan"], value_float=float("nan")), node("Where", ["inside3", "o", "nan"], ["out"]),
    ]  # fmt: skip
    attributes = ["query_form", "kv_form", "TRT_decomposable"]
    return helper.make_function(
        TENSORRT, "TRT_Attention", inputs, ["out"], nodes, [helper.make_opsetid("", OPSET)], attributes
    )


@pytest.mark.parametrize("major", [10, 11])
@pytest.mark.parametrize("name", OURS)
def test_native_layers_compute_the_same(tmp_path: Path, name: str, major: int) -> None:
    """ONNX Runtime computes the network; TensorRT's own operator is written out for it as it is documented."""
    kind = small_kinds()[name]
    model = network(kind, "native", major)
    if major == 11:
        model.functions.append(packed_attention())
    onnx.save(model, str(tmp_path / "engine.onnx"))
    weights = first_weights(kind)
    (engine,) = OnnxRuntimeBackend(1).open(kind, tmp_path / "engine.onnx", [weights])
    verdict = verify(kind, engine, weights)
    assert 0 <= verdict.error <= verdict.bound < 1e-3


def test_weights_of_a_convolution_are_constants_without_values() -> None:
    kind = picture_kind()
    model = network(kind, "native", 11)
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    assert set(held) == {"conv.weight", "conv.bias"}
    assert [value.name for value in model.graph.input] == ["pixels"]
    for name, weight in first_weights(kind).items():
        assert tuple(held[name].dims) == tuple(weight.shape)
        assert held[name].data_location == TensorProto.EXTERNAL
        assert not held[name].raw_data
        assert np.prod(held[name].dims) == weight.numel()


def test_an_unknown_variant() -> None:
    with pytest.raises(EngineError, match=r"no variant 'fast'.*native, plugin"):
        network(picture_kind(), "fast", 11)
