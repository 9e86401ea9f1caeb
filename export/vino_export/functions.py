"""The operators of our ONNX domain `vino`: schemas, translation of exported nodes, and function bodies.

A backend may run such a node with a kernel of ours; ONNX Runtime runs the function body, which consists of standard and
com.microsoft operators. The bodies compute what `vino_rt.models.vino.ops` and `vlm_ops` define.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from vino_rt.models.vino.layers import NORM_EPS
from vino_rt.plan import MAX_BRANCHES

DOMAIN = "vino"
OPSET = 23
MICROSOFT = "com.microsoft"
HEADS = ("num_heads", "kv_num_heads")
"""Attributes: number of heads of the queries and, if different, of keys and values."""
JOINT = "JointAttention"
"""An operator without a body; an exported graph that contains it is cut in two there (`vino_export.halves`)."""
IMPORTS = {"": OPSET, DOMAIN: 1, MICROSOFT: 1}


def register_schemas() -> None:
    """Register the domain's operators with ONNX; idempotent."""
    floats = ("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(double)"], "")
    inputs = {
        "NormModulate": (("x", "T"), ("shift", "T"), ("scale", "T")),
        "QkNormRope": (("x", "T"), ("weight", "T"), ("cos", "tensor(float)"), ("sin", "tensor(float)")),
        "BoundaryAttention": (("q", "T"), ("k", "T"), ("v", "T"), ("offsets", "tensor(int32)")),
        "CausalAttention": (("q", "T"), ("k", "T"), ("v", "T"), ("offsets", "tensor(int32)")),
        "FrameAttention": (("q", "T"), ("k", "T"), ("v", "T")),
    }
    parameter = onnx.defs.OpSchema.FormalParameter
    for name, formals in inputs.items():
        if onnx.defs.has(name, DOMAIN):
            continue
        kind = onnx.defs.OpSchema.AttrType.INT
        heads = [onnx.defs.OpSchema.Attribute(attribute, kind, "", required=False) for attribute in HEADS]
        schema = onnx.defs.OpSchema(
            name,
            DOMAIN,
            1,
            inputs=[parameter(n, t) for n, t in formals],
            outputs=[parameter("out", "T")],
            type_constraints=[floats],
            attributes=heads,
        )
        onnx.defs.register_schema(schema)
    if not onnx.defs.has(JOINT, DOMAIN):
        option = onnx.defs.OpSchema.FormalParameterOption.Variadic
        given = parameter("tensors", "I", param_option=option, is_homogeneous=False, min_arity=8)
        indices = ("I", [*floats[1], "tensor(int32)", "tensor(int64)"], "")
        schema = onnx.defs.OpSchema(
            JOINT, DOMAIN, 1, inputs=[given], outputs=[parameter("out", "T")], type_constraints=[floats, indices]
        )
        onnx.defs.register_schema(schema)


def translations() -> Mapping[Callable[..., Any], Callable[..., Any]]:
    """Translation table for the exporter: our torch operators to nodes of the domain."""
    from onnxscript import values

    register_schemas()
    opset = values.Opset(DOMAIN, 1)

    def norm(x: Any, shift: Any, scale: Any) -> Any:
        return opset.NormModulate(x, shift, scale)

    def rope(x: Any, weight: Any, cos: Any, sin: Any) -> Any:
        return opset.QkNormRope(x, weight, cos, sin, num_heads=int(x.shape[1]))

    def attention(q: Any, k: Any, v: Any, offsets: Any) -> Any:
        return opset.BoundaryAttention(q, k, v, offsets, num_heads=int(q.shape[1]))

    def causal(q: Any, k: Any, v: Any, offsets: Any) -> Any:
        return opset.CausalAttention(q, k, v, offsets, num_heads=int(q.shape[1]), kv_num_heads=int(k.shape[1]))

    def joint(streams: Sequence[Any], cos: Any, sin: Any, offsets: Any, orders: Any) -> Any:
        return opset.JointAttention(*streams, cos, sin, offsets, *([] if orders is None else [orders]))

    def frames(q: Any, k: Any, v: Any) -> Any:
        return opset.FrameAttention(q, k, v, num_heads=int(q.shape[2]))

    return {
        torch.ops.vino.causal_attention.default: causal,
        torch.ops.vino.frame_attention.default: frames,
        torch.ops.vino.joint_attention.default: joint,
        torch.ops.vino.norm_modulate.default: norm,
        torch.ops.vino.qk_norm_rope.default: rope,
        torch.ops.vino.boundary_attention.default: attention,
    }


def bodies() -> list[onnx.FunctionProto]:
    """Function bodies of every operator of the domain."""
    return [_norm_modulate(), _qk_norm_rope(), _boundary_attention(), _causal_attention(), _frame_attention()]


def norm_modulate_nodes() -> list[onnx.NodeProto]:
    """Nodes from x, shift and scale to out, in operators that TensorRT has as well.

    The modulation is the affine part of the norm, so the rows are written once instead of three times.
    """
    node = helper.make_node
    return [
        node("Constant", [], ["one"], value_float=1.0),
        node("CastLike", ["one", "scale"], ["typed_one"]),
        node("Add", ["scale", "typed_one"], ["weight"]),
        node("LayerNormalization", ["x", "weight", "shift"], ["out"], axis=-1, epsilon=NORM_EPS),
    ]


def _norm_modulate() -> onnx.FunctionProto:
    return _function("NormModulate", ["x", "shift", "scale"], norm_modulate_nodes())


def _qk_norm_rope() -> onnx.FunctionProto:
    """Rotation in float32, the type of the tables; if x is float32, ONNX Runtime drops the casts."""
    node = helper.make_node
    nodes = [
        constant("first", [0]),
        node("RMSNormalization", ["x", "weight"], ["normed"], axis=-1, epsilon=NORM_EPS),
        node("Cast", ["normed"], ["wide"], to=onnx.TensorProto.FLOAT),
        node("Flatten", ["wide"], ["rows"], axis=1),
        node("Unsqueeze", ["rows", "first"], ["batch"]),
        node("Unsqueeze", ["cos", "first"], ["batch_cos"]),
        node("Unsqueeze", ["sin", "first"], ["batch_sin"]),
        _with_heads(node("RotaryEmbedding", ["batch", "batch_cos", "batch_sin"], ["turned"], interleaved=1)),
        node("CastLike", ["turned", "x"], ["typed"]),
        node("Shape", ["x"], ["shape"]),
        # Reshape last: ONNX Runtime does not drop a redundant cast that produces a graph output.
        node("Reshape", ["typed", "shape"], ["out"]),
    ]
    return _function("QkNormRope", ["x", "weight", "cos", "sin"], nodes)


def _boundary_attention() -> onnx.FunctionProto:
    """Attention segment by segment, so that nothing of size L x L is built.

    The packed three-dimensional form without a mask is the one ONNX Runtime runs in linear memory.
    """

    def attend(i: int) -> list[onnx.NodeProto]:
        mixed = helper.make_node("MultiHeadAttention", [f"{t}{i}" for t in "qkv"], [f"o{i}"], domain=MICROSOFT)
        return [*_rows(i, f"bound{i}", f"bound{i + 1}"), _with_heads(mixed)]

    return _by_segment("BoundaryAttention", attend)


def _causal_attention() -> onnx.FunctionProto:
    """Causal attention segment by segment, with GroupQueryAttention, which also runs in linear memory.

    The operator takes the index of the last row and the number of rows, and also returns keys and values, which are
    not used. It does not accept empty inputs, so an empty segment gets one row, whose result is cut off.
    """
    node = helper.make_node

    def attend(i: int) -> list[onnx.NodeProto]:
        given = [*(f"{t}{i}" for t in "qkv"), "", "", f"last{i}", f"total{i}"]
        mixed = node("GroupQueryAttention", given, [f"mixed{i}", f"keys{i}", f"values{i}"], domain=MICROSOFT)
        return [
            node("Sub", [f"bound{i + 1}", f"bound{i}"], [f"count{i}"]),
            node("Max", [f"count{i}", "one"], [f"rows{i}"]),
            node("Sub", [f"bound{i + 1}", "one"], [f"before{i}"]),
            node("Min", [f"bound{i}", f"before{i}"], [f"low{i}"]),
            node("Max", [f"low{i}", "first"], [f"from{i}"]),
            node("Add", [f"from{i}", f"rows{i}"], [f"to{i}"]),
            *_rows(i, f"from{i}", f"to{i}"),
            node("Sub", [f"rows{i}", "one"], [f"last64_{i}"]),
            node("Cast", [f"last64_{i}"], [f"last{i}"], to=onnx.TensorProto.INT32),
            node("Cast", [f"rows{i}"], [f"rows32_{i}"], to=onnx.TensorProto.INT32),
            node("Squeeze", [f"rows32_{i}"], [f"total{i}"]),
            _with_heads(mixed, *HEADS),
            node("Sub", [f"rows{i}", f"count{i}"], [f"cut{i}"]),
            node("Slice", [f"mixed{i}", f"cut{i}", f"rows{i}", "rows_axis"], [f"o{i}"]),
        ]

    return _by_segment("CausalAttention", attend, [constant("one", [1])])


def _frame_attention() -> onnx.FunctionProto:
    """Full attention within each frame: frames become the batch of MultiHeadAttention."""
    node = helper.make_node
    nodes = [
        constant("rows_shape", [0, 0, -1]),
        *(node("Reshape", [t, "rows_shape"], [f"{t}_rows"]) for t in "qkv"),
        _with_heads(node("MultiHeadAttention", [f"{t}_rows" for t in "qkv"], ["mixed"], domain=MICROSOFT)),
        node("Shape", ["q"], ["shape"]),
        node("Reshape", ["mixed", "shape"], ["out"]),
    ]
    return _function("FrameAttention", ["q", "k", "v"], nodes)


def _by_segment(
    name: str, attend: Callable[[int], list[onnx.NodeProto]], before: Sequence[onnx.NodeProto] = ()
) -> onnx.FunctionProto:
    """A function of q, k, v and offsets that attends within each of MAX_BRANCHES segments.

    `attend(i)` returns the nodes that compute o<i>, the output of segment i. bound<i>: int64 [1], first row of segment
    i. Output rows of the last segment, the padding, are zero.
    """
    node = helper.make_node
    nodes = [constant("first", [0]), constant("rows_axis", [1]), *before]
    nodes.append(node("Cast", ["offsets"], ["bounds"], to=onnx.TensorProto.INT64))
    nodes += [node("Flatten", [t], [f"{t}_rows"], axis=1) for t in "qkv"]
    nodes += [node("Unsqueeze", [f"{t}_rows", "first"], [f"{t}_batch"]) for t in "qkv"]
    for i in range(MAX_BRANCHES + 2):
        nodes += [constant(f"i{i}", [i]), node("Gather", ["bounds", f"i{i}"], [f"bound{i}"], axis=0)]
    for i in range(MAX_BRANCHES):
        nodes += attend(i)
    last = [f"bound{MAX_BRANCHES}", f"bound{MAX_BRANCHES + 1}", "rows_axis"]
    nodes += [
        node("Slice", ["q_batch", *last], ["padding"]),
        node("Shape", ["padding"], ["padding_shape"]),
        node("ConstantOfShape", ["padding_shape"], ["zeros"]),
        node("CastLike", ["zeros", "q"], ["padding_out"]),
        node("Concat", [*(f"o{i}" for i in range(MAX_BRANCHES)), "padding_out"], ["joined"], axis=1),
        node("Shape", ["q"], ["shape"]),
        node("Reshape", ["joined", "shape"], ["out"]),
    ]
    return _function(name, ["q", "k", "v", "offsets"], nodes)


def _rows(i: int, start: str, end: str) -> list[onnx.NodeProto]:
    """q<i>, k<i> and v<i>: the rows of a segment."""
    return [helper.make_node("Slice", [f"{t}_batch", start, end, "rows_axis"], [f"{t}{i}"]) for t in "qkv"]


def _function(name: str, inputs: Sequence[str], nodes: Sequence[onnx.NodeProto]) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_function(DOMAIN, name, inputs, ["out"], nodes, imports, attributes=HEADS)


def constant(name: str, values: Sequence[int] | int) -> onnx.NodeProto:
    """A constant node: int64 [n] for a sequence, int64 [] for a number."""
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(values, np.int64)))


def _with_heads(node: onnx.NodeProto, *names: str) -> onnx.NodeProto:
    """Pass the enclosing function's head counts on to a node inside it."""
    for name in names or HEADS[:1]:
        node.attribute.append(helper.make_attribute_ref(name, onnx.AttributeProto.INT))
    return node
