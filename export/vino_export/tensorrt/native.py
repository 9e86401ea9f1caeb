"""Our operators in TensorRT's own layers: ONNX function bodies for its parser.

TensorRT's attention supports segments since 11.1 (`packed`); before that it needs an L x L mask (`masked`), which is
for short sequences. In 16 bits attention must not be decomposed into plain matrix products, whose scores would fill the
memory: the build fails if there is no fused kernel. In float32 there is no fused kernel, so decomposition is allowed.

The parser scales the scores in the dtype of the queries and, in its newest form, not at all. So the bodies scale in
float32 before values are rounded, and ask the parser for a scale of 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from vino_export.functions import DOMAIN, OPSET, constant, norm_modulate_nodes
from vino_rt.models.vino.layers import NORM_EPS

TENSORRT = "trt"
"""Domain of the parser's own operators; the parser recognises them by name only."""
MASKED, PACKED, PACKED_FIRST = "masked", "packed", "packed as in 11.1"
PACKED_SINCE = (11, 1)
"""First version whose parser supports segments."""
LENGTHS_AT = {PACKED: 4, PACKED_FIRST: 6}
"""Position of the two inputs of segment lengths in `TRT_Attention`; it moved after 11.1."""
Nodes = list[onnx.NodeProto]


def attentions(version: tuple[int, int]) -> tuple[str, ...]:
    """The forms of attention to try with the parser of a version, in order, until it accepts one.

    It is not documented which release moved the inputs of `TRT_Attention`, but each parser refuses the other form: it
    finds a past state that it does not support, or no lengths.
    """
    return (PACKED, PACKED_FIRST) if version >= PACKED_SINCE else (MASKED,)


@dataclass(frozen=True)
class Attending:
    """Facts about the graph that the function bodies depend on."""

    form: str
    """One of `MASKED`, `PACKED` and `PACKED_FIRST`."""
    channels: int
    """Channels of a head."""
    turned: bool
    """Whether queries and keys come from `QkNormRope`, which then scales both; if not, attention scales the queries."""
    decomposable: bool
    """Whether attention may be decomposed into plain matrix products."""


def native_bodies(attending: Attending | None) -> list[onnx.FunctionProto]:
    """Function bodies of the transformer's operators; attending: None for a graph without attention.

    The vision-language model's two operators, causal and frame attention, have no body here.
    """
    if attending is None:
        return [_norm_modulate()]
    attention = _masked_attention if attending.form == MASKED else _packed_attention
    return [_norm_modulate(), _qk_norm_rope(attending.channels), attention(attending)]


def _norm_modulate() -> onnx.FunctionProto:
    return _function("NormModulate", ["x", "shift", "scale"], norm_modulate_nodes())


def _qk_norm_rope(channels: int) -> onnx.FunctionProto:
    """Output with heads before rows, as the attention layer takes it; rotation and scaling in float32."""
    node = helper.make_node
    nodes = [
        node("RMSNormalization", ["x", "weight"], ["normed"], axis=-1, epsilon=NORM_EPS),
        node("Cast", ["normed"], ["wide"], to=TensorProto.FLOAT),
        *_heads_first("wide", "heads"),
        constant("first", [0]),
        node("Unsqueeze", ["cos", "first"], ["batch_cos"]),
        node("Unsqueeze", ["sin", "first"], ["batch_sin"]),
        node("RotaryEmbedding", ["heads", "batch_cos", "batch_sin"], ["turned"], interleaved=1),
        *_rows_first("turned", "unscaled"),
        *_scaled("unscaled", "x", "out", channels**-0.25),
    ]
    return _function("QkNormRope", ["x", "weight", "cos", "sin"], nodes)


def _scaled(wide: str, like: str, out: str, factor: float) -> Nodes:
    """Nodes that multiply the float32 values `wide` by a factor and round them to the type of `like`, giving `out`."""
    node = helper.make_node
    return [
        node("Constant", [], [f"{out}_factor"], value_float=factor),
        node("Mul", [wide, f"{out}_factor"], [f"{out}_wide"]),
        node("CastLike", [f"{out}_wide", like], [out]),
    ]


def _queries(attending: Attending) -> tuple[str, Nodes]:
    """Name of the queries as attention takes them, and the nodes that compute them."""
    if attending.turned:
        return "q", []
    wide = helper.make_node("Cast", ["q"], ["wide_q"], to=TensorProto.FLOAT)
    return "scaled_q", [wide, *_scaled("wide_q", "q", "scaled_q", attending.channels**-0.5)]


def _packed_attention(attending: Attending) -> onnx.FunctionProto:
    """Attention with segments as data, so that one shape serves every partition of its rows.

    The padding is treated as a segment, because the last cumulative length must equal the number of rows; its rows are
    set to zero afterwards. Query and key lengths are two tensors, because TensorRT does not support one for both.
    """
    node = helper.make_node
    queries, before = _queries(attending)
    inputs = [queries, "k", "v", *[""] * (LENGTHS_AT[attending.form] - 3), "query_lengths", "key_lengths"]
    attention = node(
        "TRT_Attention", inputs, ["mixed"], domain=TENSORRT, query_form="packed_nhd", kv_form="packed_nhd",
        TRT_decomposable=int(attending.decomposable),
    )  # fmt: skip
    if attending.form == PACKED_FIRST:
        attention.attribute.append(helper.make_attribute("scale", 1.0))
    nodes = [
        *before,
        constant("first", [0]),
        constant("far", [1 << 30]),
        node("Slice", ["offsets", "first", "far"], ["query_lengths"]),
        node("Slice", ["offsets", "first", "far"], ["key_lengths"]),
        attention,
        *_without_padding("mixed"),
    ]
    return _function("BoundaryAttention", ["q", "k", "v", "offsets"], nodes)


def _masked_attention(attending: Attending) -> onnx.FunctionProto:
    """Attention with an L x L mask: a row's segment is the number of segment starts before it."""
    node = helper.make_node
    queries, before = _queries(attending)
    attention = node("Attention", ["q_heads", "k_heads", "v_heads", "mask"], ["mixed_heads"], scale=1.0)
    if attending.decomposable:
        attention.attribute.append(helper.make_attribute("TRT_decomposable", 1))
    nodes = [
        *before,
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
        *(
            part
            for name, out in ((queries, "q"), ("k", "k"), ("v", "v"))
            for part in _heads_first(name, f"{out}_heads")
        ),
        attention,
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
    """Nodes that set the rows of `name` in the last segment, the padding, to zero, giving `out`."""
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
