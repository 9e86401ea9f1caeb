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
from vino_export.tensorrt.native import LENGTHS_AT, MASKED, PACKED, PACKED_FIRST, TENSORRT, attentions
from vino_export.tensorrt.network import network, tensors
from vino_export.tensorrt.provider import without_own_attributes
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
FORMS = (MASKED, PACKED, PACKED_FIRST)
VARIANTS = {**{form: ("native", form) for form in FORMS}, "plugin": ("plugin", PACKED)}
ALIKE = frozenset({
    "Add", "Sub", "Mul", "Div", "Max", "Pow", "Concat", "Where", "MatMul", "Gemm", "Conv", "GroupNormalization",
    "LayerNormalization", "RMSNormalization", "RotaryEmbedding", "Attention", "TRT_Attention", "Equal", "Less",
    "GreaterOrEqual", "Range",
})  # fmt: skip
"""Operators whose inputs must be of one type, apart from those in `NUMBERS`."""
NUMBERS: Mapping[str, Mapping[int, str]] = {
    "Gather": {1: "INT32 INT64"}, "Reshape": {1: "INT64"}, "Unsqueeze": {1: "INT64"}, "Squeeze": {1: "INT64"},
    "Slice": dict.fromkeys(range(1, 5), "INT32 INT64"), "Split": {1: "INT64"}, "ReduceSum": {1: "INT64"},
    "ReduceMean": {1: "INT64"}, "Expand": {1: "INT64"}, "Pad": {1: "INT64", 3: "INT64"}, "Resize": {3: "INT64"},
    "ConstantOfShape": {0: "INT64"}, "Where": {0: "BOOL"}, "Attention": {3: "BOOL"},
    "TRT_Attention": dict.fromkeys(range(4, 8), "INT32"),
}  # fmt: skip
"""Inputs that are positions, sizes or conditions, and their types: the parser's table is about the others."""
TOLD = {"Shape": "INT64", "Equal": "BOOL", "Less": "BOOL", "GreaterOrEqual": "BOOL"}
"""Operators whose output is of another type than their inputs, and that type."""


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


def wrong_types(node: onnx.NodeProto, types: Mapping[str, int], taken: str) -> list[str]:
    """What a strongly typed network would refuse of a node, by the parser's table for its operator."""
    numbers = NUMBERS.get(node.op_type, {})
    found = {at: TYPES.get(types[name], str(types[name])) for at, name in enumerate(node.input) if name}
    wrong = [
        f"{kind} as input {at} of {node.op_type}" for at, kind in found.items() if kind not in numbers.get(at, kind)
    ]
    data = {kind for at, kind in found.items() if at not in numbers}
    results = {TYPES.get(types[name], str(types[name])) for name in node.output if name}
    if node.op_type in TOLD:
        wrong += [f"{node.op_type} gives {kind}" for kind in results - {TOLD[node.op_type]}]
        results = set()
    wrong += [f"{node.op_type} of {kind}" for kind in (data | results) - set(taken.split())]
    if node.op_type in ALIKE and len(data) > 1:
        wrong.append(f"{node.op_type} of mixed types {sorted(data)}")
    return wrong


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", KINDS)
def test_operators_and_types_are_the_parser_s(exported: Mapping[str, Kind], name: str, variant: str) -> None:
    form, attention = VARIANTS[variant]
    model = network(exported[name], form, attention)
    types, wrong = {value: kind for value, (kind, _) in tensors(model).items()}, []
    assert not model.functions
    assert TABLE["opsets"][0] <= OPSET <= TABLE["opsets"][1]
    for node in model.graph.node:
        if form == "plugin" and node.domain == DOMAIN:
            continue
        taken = TABLE["operators"].get(node.op_type)
        if taken is None or (attention == MASKED and node.op_type in TABLE["since_11"]):
            wrong.append(f"{node.op_type} is no operator of the parser")
            continue
        wrong += wrong_types(node, types, taken)
    assert not wrong


@pytest.mark.parametrize(
    ("operator", "kinds", "told"),
    [
        ("GreaterOrEqual", ("INT64", "INT32"), "mixed types"),
        ("Add", ("INT32", "INT64"), "mixed types"),
        ("Gemm", ("INT64", "INT64"), "Gemm of INT64"),
        ("Unsqueeze", ("BF16", "INT32"), "INT32 as input 1"),
        ("Where", ("INT64", "BF16", "BF16"), "INT64 as input 0"),
    ],
)
def test_whole_numbers_are_checked_too(operator: str, kinds: tuple[str, ...], told: str) -> None:
    numbers = {name: kind for kind, name in TYPES.items()}
    names = [f"x{i}" for i in range(len(kinds))]
    types = dict(zip(names, (numbers[kind] for kind in kinds), strict=True)) | {"y": numbers["BF16"]}
    node = helper.make_node(operator, names, ["y"])
    assert any(told in wrong for wrong in wrong_types(node, types, TABLE["operators"][operator]))


@pytest.mark.parametrize("name", OURS)
def test_plugins_are_asked_for_and_nothing_can_stand_in(exported: Mapping[str, Kind], name: str) -> None:
    """The parser looks for a plugin where `plugin_namespace` stands, then for its own operator, then for a function."""
    model = network(exported[name], "plugin", PACKED)
    ours = [node for node in model.graph.node if node.domain == DOMAIN]
    assert ours
    for node in ours:
        attributes: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        assert attributes == {"plugin_namespace": b"vino", "plugin_version": b"1", "aot": 1}
        assert node.op_type not in TABLE["operators"]
        plugin = PLUGINS[node.op_type]
        assert (len(node.input), len(node.output)) == (len(plugin.inputs), plugin.outputs)


def packed_attention(form: str) -> onnx.FunctionProto:
    """What NVIDIA documents of TRT_Attention in its packed form: no scale but 1, and rows of no segment are NaN.

    The lengths must be of all rows, and those of the keys another tensor than those of the queries.
    """
    node = helper.make_node

    def numbers(name: str, values: list[int]) -> onnx.NodeProto:
        return node("Constant", [], [name], value_ints=values)

    between = ["mask", "past_key", "past_value"][: LENGTHS_AT[form] - 3]
    inputs = ["q", "k", "v", *between, "lengths", "key_lengths"]
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
        node("Attention", ["q4", "k4", "v4", "seen_mask"], ["o4"], scale=1.0), node("Squeeze", ["o4", "zero"], ["o3"]),
        node("Transpose", ["o3"], ["o"], perm=[1, 0, 2]), node("ReduceMax", ["ends"], ["last"], keepdims=0),
        node("Less", ["rows", "last"], ["inside"]), node("Unsqueeze", ["inside", "back"], ["inside3"]),
        node("Constant", [], ["nan"], value_float=float("nan")), node("Where", ["inside3", "o", "nan"], ["out"]),
    ]  # fmt: skip
    attributes = ["query_form", "kv_form", "TRT_decomposable", "scale"]
    return helper.make_function(
        TENSORRT, "TRT_Attention", inputs, ["out"], nodes, [helper.make_opsetid("", OPSET)], attributes
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", OURS)
def test_native_layers_compute_the_same(tmp_path: Path, name: str, form: str) -> None:
    """ONNX Runtime computes the network; TensorRT's own operator is written out for it as it is documented."""
    kind = small_kinds()[name]
    model = network(kind, "native", form)
    if form == MASKED:
        without_own_attributes(model)
    else:
        model.functions.append(packed_attention(form))
    onnx.save(model, str(tmp_path / "engine.onnx"))
    weights = first_weights(kind)
    (engine,) = OnnxRuntimeBackend(1).open(kind, tmp_path / "engine.onnx", [weights])
    verdict = verify(kind, engine, weights)
    assert 0 <= verdict.error <= verdict.bound < 1e-3


def attention_of(model: onnx.ModelProto) -> tuple[onnx.NodeProto, dict[str, onnx.NodeProto]]:
    """The attention of a network and, by name, what made each value."""
    (node,) = [node for node in model.graph.node if node.op_type in ("Attention", "TRT_Attention")]
    return node, {output: node for node in model.graph.node for output in node.output}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "factor"), [("single_block", 8**-0.25), ("embed", 8**-0.5)])
def test_scores_are_scaled_in_float32_before_they_are_rounded(
    exported: Mapping[str, Kind], name: str, factor: float, form: str
) -> None:
    """The parser's own scale is rounded to the type of the queries, or there is none: it must have nothing to do."""
    model = network(exported[name], "native", form)
    node, made = attention_of(model)
    scale = [attribute.f for attribute in node.attribute if attribute.name == "scale"]
    assert scale == ([] if form == PACKED else [1.0])
    types = {value: kind for value, (kind, _) in tensors(model).items()}
    for value in node.input[: 1 if name == "embed" else 2]:
        rounded = made[value]
        while rounded.op_type in ("Transpose", "Unsqueeze"):
            rounded = made[rounded.input[0]]
        assert rounded.op_type == "CastLike"
        product = made[rounded.input[0]]
        assert product.op_type == "Mul"
        assert types[product.output[0]] == TensorProto.FLOAT
        (factor_node,) = [made[x] for x in product.input if x in made and made[x].op_type == "Constant"]
        assert helper.get_node_attr_value(factor_node, "value_float") == pytest.approx(factor)


@pytest.mark.parametrize("form", [PACKED, PACKED_FIRST])
def test_lengths_are_two_tensors_of_all_rows(exported: Mapping[str, Kind], form: str) -> None:
    node, made = attention_of(network(exported["single_block"], "native", form))
    lengths = node.input[LENGTHS_AT[form] :]
    assert len(node.input) == LENGTHS_AT[form] + 2
    assert len(set(lengths)) == 2
    assert not any(node.input[3 : LENGTHS_AT[form]])
    for name in lengths:
        slice_node = made[name]
        start, end = (helper.get_node_attr_value(made[x], "value") for x in slice_node.input[1:3])
        assert (slice_node.op_type, slice_node.input[0]) == ("Slice", "offsets")
        assert onnx.numpy_helper.to_array(start).tolist() == [0]
        assert onnx.numpy_helper.to_array(end).item() > 2**20


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("precision", "split"), [("bfloat16", 0), ("float32", 1)])
def test_only_float32_may_fall_apart_into_products(precision: str, split: int, form: str) -> None:
    """It has no fused kernel; in 16 bits the scores of long sequences would fill the memory."""
    node, _ = attention_of(network(small_kinds(precision)["embed"], "native", form))
    said = {attribute.name: attribute.i for attribute in node.attribute}
    assert said.get("TRT_decomposable", 0) == split


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_is_joined_for_a_product(exported: Mapping[str, Kind], variant: str) -> None:
    """Attention and MLP of a single block side by side have more elements than a tensor may, in the longest clips."""
    kind = exported["single_block"]
    model = network(kind, *VARIANTS[variant])
    width, hidden = (dict(kind.shapes())[name][0] for name in ("attn.to_q.weight", "proj_mlp.weight"))
    known = tensors(model)
    widest = max(sizes[-1] for _, sizes in known.values() if len(sizes) > 1 and sizes[0] is None and sizes[-1])
    assert widest == hidden < width + hidden
    products = [node for node in model.graph.node if node.op_type == "Gemm" and "proj_out.weight" in node.input[1]]
    assert [node.input[2] for node in products] == ["proj_out.bias", products[0].output[0]]


def test_versions_and_their_attention() -> None:
    assert attentions((10, 16)) == attentions((11, 0)) == (MASKED,)
    assert attentions((11, 1)) == attentions((11, 4)) == (PACKED, PACKED_FIRST)


def test_weights_of_a_convolution_are_constants_without_values() -> None:
    kind = picture_kind()
    model = network(kind, "native", PACKED)
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
        network(picture_kind(), "fast", PACKED)


@pytest.mark.parametrize("variant", ["native", "plugin"])
def test_an_operator_without_a_network(monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    def with_causal_attention(kind: Kind, path: Path) -> None:
        write_onnx(kind, path)
        model = onnx.load(str(path))
        model.graph.node.append(helper.make_node("CausalAttention", ["q"], ["mixed"], domain=DOMAIN))
        onnx.save(model, str(path))

    monkeypatch.setattr(networks, "write_onnx", with_causal_attention)
    with pytest.raises(EngineError, match=r'picture: TensorRT has no network for CausalAttention.* picture = "eager"'):
        network(picture_kind(), variant, PACKED)
