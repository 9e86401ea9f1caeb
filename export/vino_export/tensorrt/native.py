"""Our operators in TensorRT's own layers: function bodies for the parser, which are put in the place of the nodes.

TensorRT's attention knows segments from version 11 on (`packed`); before, it takes a mask of rows by rows (`masked`),
which is for short sequences. Neither is allowed to fall apart into plain products: a build fails where there is no
fused kernel for a type or size.
"""

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper

from vino_export.functions import DOMAIN, OPSET, constant, norm_modulate_nodes
from vino_rt.models.vino.layers import NORM_EPS

TENSORRT = "trt"
"""Domain of the parser's own operators, which it knows by their names alone."""
PACKED_SINCE = 11
"""Major version of the first family whose attention takes segments."""
Nodes = list[onnx.NodeProto]


def native_bodies(major: int) -> list[onnx.FunctionProto]:
    """Bodies of the transformer's operators of our domain, for TensorRT of a major version.

    The vision-language model's two, causal attention and attention of frames, have none.
    """
    attention = _packed_attention() if major >= PACKED_SINCE else _masked_attention()
    return [_norm_modulate(), _qk_norm_rope(), attention]


def _norm_modulate() -> onnx.FunctionProto:
    return _function("NormModulate", ["x", "shift", "scale"], norm_modulate_nodes())


def _qk_norm_rope() -> onnx.FunctionProto:
    """Heads in front of rows, as the layer wants them; turned in float32, whose type the table has."""
    node = helper.make_node
    nodes = [
        node("RMSNormalization", ["x", "weight"], ["normed"], axis=-1, epsilon=NORM_EPS),
        node("Cast", ["normed"], ["wide"], to=TensorProto.FLOAT),
        *_heads_first("wide", "heads"),
        constant("first", [0]),
        node("Unsqueeze", ["cos", "first"], ["batch_cos"]),
        node("Unsqueeze", ["sin", "first"], ["batch_sin"]),
        node("RotaryEmbedding", ["heads", "batch_cos", "batch_sin"], ["turned"], interleaved=1),
        *_rows_first("turned", "wide_out"),
        node("CastLike", ["wide_out", "x"], ["out"]),
    ]
    return _function("QkNormRope", ["x", "weight", "cos", "sin"], nodes)


def _packed_attention() -> onnx.FunctionProto:
    """Segments as data, the padding behind the last of them: one shape serves every division of its rows."""
    lengths = ["offsets", "first", "before_last", "axis"]
    inputs = ["q", "k", "v", "", "", "", "lengths", "lengths"]
    attention = helper.make_node(
        "TRT_Attention", inputs, ["mixed"], domain=TENSORRT, query_form="packed_nhd", kv_form="packed_nhd",
        TRT_decomposable=0,
    )  # fmt: skip
    nodes = [
        constant("first", [0]),
        constant("before_last", [-1]),
        constant("axis", [0]),
        helper.make_node("Slice", lengths, ["lengths"]),
        attention,
        *_without_padding("mixed"),
    ]
    return _function("BoundaryAttention", ["q", "k", "v", "offsets"], nodes)


def _masked_attention() -> onnx.FunctionProto:
    """A row's segment is the number of cuts before it; rows of one segment see each other, the padding itself."""
    node = helper.make_node
    nodes = [
        constant("second", [1]),
        constant("before_last", [-1]),
        constant("axis", [0]),
        constant("two_front", [0, 1]),
        node("Slice", ["offsets", "second", "before_last", "axis"], ["cuts"]),
        node("Cast", ["cuts"], ["wide_cuts"], to=TensorProto.INT64),
        *_row_numbers(),
        node("Unsqueeze", ["rows", "second"], ["row_column"]),
        node("GreaterOrEqual", ["row_column", "wide_cuts"], ["passed"]),
        node("Cast", ["passed"], ["counted"], to=TensorProto.INT32),
        node("ReduceSum", ["counted", "second"], ["segment"], keepdims=0),
        node("Unsqueeze", ["segment", "second"], ["own"]),
        node("Unsqueeze", ["segment", "axis"], ["other"]),
        node("Equal", ["own", "other"], ["seen"]),
        node("Unsqueeze", ["seen", "two_front"], ["mask"]),
        *(part for name in "qkv" for part in _heads_first(name, f"{name}_heads")),
        node("Attention", ["q_heads", "k_heads", "v_heads", "mask"], ["mixed_heads"]),
        *_rows_first("mixed_heads", "mixed"),
        *_without_padding("mixed", rows_known=True),
    ]
    return _function("BoundaryAttention", ["q", "k", "v", "offsets"], nodes)


def _heads_first(name: str, out: str) -> Nodes:
    """[L, H, C] -> [1, H, L, C]."""
    node = helper.make_node
    turned = f"{out}_turned"
    return [
        node("Transpose", [name], [turned], perm=[1, 0, 2]),
        constant(f"{out}_axis", [0]),
        node("Unsqueeze", [turned, f"{out}_axis"], [out]),
    ]


def _rows_first(name: str, out: str) -> Nodes:
    """[1, H, L, C] -> [L, H, C]."""
    node = helper.make_node
    return [
        constant(f"{out}_axis", [0]),
        node("Squeeze", [name, f"{out}_axis"], [f"{out}_turned"]),
        node("Transpose", [f"{out}_turned"], [out], perm=[1, 0, 2]),
    ]


def _row_numbers() -> Nodes:
    """`rows`: int64 [L], the number of each row of q."""
    node = helper.make_node
    return [
        node("Shape", ["q"], ["row_count"], start=0, end=1),
        constant("no_axis", [0]),
        node("Squeeze", ["row_count", "no_axis"], ["limit"]),
        constant("zero", 0),
        constant("step", 1),
        node("Range", ["zero", "limit", "step"], ["rows"]),
    ]


def _without_padding(name: str, *, rows_known: bool = False) -> Nodes:
    """`out`: the rows of `name` below the last cut but one, zeros behind it, where attention writes anything."""
    node = helper.make_node
    return [
        *([] if rows_known else _row_numbers()),
        constant("padding_cut", -2),
        node("Gather", ["offsets", "padding_cut"], ["padding"], axis=0),
        node("Cast", ["padding"], ["wide_padding"], to=TensorProto.INT64),
        node("Less", ["rows", "wide_padding"], ["kept_rows"]),
        constant("two_last", [1, 2]),
        node("Unsqueeze", ["kept_rows", "two_last"], ["kept"]),
        node("Constant", [], ["nothing"], value_float=0.0),
        node("CastLike", ["nothing", "q"], ["typed_nothing"]),
        node("Where", ["kept", name, "typed_nothing"], ["out"]),
    ]


def _function(name: str, inputs: Sequence[str], nodes: Sequence[onnx.NodeProto]) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(TENSORRT, 1)]
    return helper.make_function(DOMAIN, name, inputs, ["out"], nodes, imports)
