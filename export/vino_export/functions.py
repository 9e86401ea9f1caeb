"""The operators of our ONNX domain `vino`: schemas, how exported nodes become them, and bodies any runtime can run.

A node of the domain is where a kernel of ours may stand; its function body, of standard and com.microsoft operators, is
what ONNX Runtime runs. The bodies follow `vino_rt.models.vino.ops`.
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
IMPORTS = {"": OPSET, DOMAIN: 1, MICROSOFT: 1}


def register_schemas() -> None:
    """Make the domain's operators known to the exporter; a second call changes nothing."""
    floats = ("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(double)"], "")
    inputs = {
        "NormModulate": (("x", "T"), ("shift", "T"), ("scale", "T")),
        "QkNormRope": (("x", "T"), ("weight", "T"), ("cos", "tensor(float)"), ("sin", "tensor(float)")),
        "BoundaryAttention": (("q", "T"), ("k", "T"), ("v", "T"), ("offsets", "tensor(int32)")),
    }
    parameter = onnx.defs.OpSchema.FormalParameter
    for name, formals in inputs.items():
        if onnx.defs.has(name, DOMAIN):
            continue
        heads = onnx.defs.OpSchema.Attribute("num_heads", onnx.defs.OpSchema.AttrType.INT, "", required=False)
        schema = onnx.defs.OpSchema(
            name,
            DOMAIN,
            1,
            inputs=[parameter(n, t) for n, t in formals],
            outputs=[parameter("out", "T")],
            type_constraints=[floats],
            attributes=[heads],
        )
        onnx.defs.register_schema(schema)


def translations() -> Mapping[Callable[..., Any], Callable[..., Any]]:
    """Exporter table: our torch operators -> nodes of the domain."""
    from onnxscript import values

    register_schemas()
    opset = values.Opset(DOMAIN, 1)

    def norm(x: Any, shift: Any, scale: Any) -> Any:
        return opset.NormModulate(x, shift, scale)

    def rope(x: Any, weight: Any, cos: Any, sin: Any) -> Any:
        return opset.QkNormRope(x, weight, cos, sin, num_heads=int(x.shape[1]))

    def attention(q: Any, k: Any, v: Any, offsets: Any) -> Any:
        return opset.BoundaryAttention(q, k, v, offsets, num_heads=int(q.shape[1]))

    return {
        torch.ops.vino.norm_modulate.default: norm,
        torch.ops.vino.qk_norm_rope.default: rope,
        torch.ops.vino.boundary_attention.default: attention,
    }


def bodies() -> list[onnx.FunctionProto]:
    """Function bodies of every operator of the domain."""
    return [_norm_modulate(), _qk_norm_rope(), _boundary_attention()]


def norm_modulate_nodes() -> list[onnx.NodeProto]:
    """Of x, shift and scale to out, in operators that TensorRT has, too.

    The affine part of the norm does the modulation, so that the rows are written once instead of three times.
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
    node = helper.make_node
    nodes = [
        constant("first", [0]),
        node("RMSNormalization", ["x", "weight"], ["normed"], axis=-1, epsilon=NORM_EPS),
        node("Flatten", ["normed"], ["rows"], axis=1),
        node("Unsqueeze", ["rows", "first"], ["batch"]),
        node("Unsqueeze", ["cos", "first"], ["batch_cos"]),
        node("Unsqueeze", ["sin", "first"], ["batch_sin"]),
        _with_heads(node("RotaryEmbedding", ["batch", "batch_cos", "batch_sin"], ["turned"], interleaved=1)),
        node("Shape", ["x"], ["shape"]),
        node("Reshape", ["turned", "shape"], ["out"]),
    ]
    return _function("QkNormRope", ["x", "weight", "cos", "sin"], nodes)


def _boundary_attention() -> onnx.FunctionProto:
    """Attention segment by segment, so that nothing of size L x L is built; as many segments as a plan has branches.

    The packed three-dimensional form without a mask is the one ONNX Runtime runs in linear memory.
    """
    node = helper.make_node
    nodes = [constant("first", [0]), constant("rows_axis", [1])]
    nodes.append(node("Cast", ["offsets"], ["bounds"], to=onnx.TensorProto.INT64))
    nodes += [node("Flatten", [t], [f"{t}_rows"], axis=1) for t in "qkv"]
    nodes += [node("Unsqueeze", [f"{t}_rows", "first"], [f"{t}_batch"]) for t in "qkv"]
    for i in range(MAX_BRANCHES + 2):
        nodes += [constant(f"i{i}", [i]), node("Gather", ["bounds", f"i{i}"], [f"bound{i}"], axis=0)]
    for i in range(MAX_BRANCHES):
        bounds = [f"bound{i}", f"bound{i + 1}", "rows_axis"]
        nodes += [node("Slice", [f"{t}_batch", *bounds], [f"{t}{i}"]) for t in "qkv"]
        nodes.append(_with_heads(node("MultiHeadAttention", [f"q{i}", f"k{i}", f"v{i}"], [f"o{i}"], domain=MICROSOFT)))
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
    return _function("BoundaryAttention", ["q", "k", "v", "offsets"], nodes)


def _function(name: str, inputs: Sequence[str], nodes: Sequence[onnx.NodeProto]) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_function(DOMAIN, name, inputs, ["out"], nodes, imports, attributes=["num_heads"])


def constant(name: str, values: Sequence[int] | int) -> onnx.NodeProto:
    """A node that gives whole numbers, int64 [n], or a single one, int64 []."""
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(values, np.int64)))


def _with_heads(node: onnx.NodeProto) -> onnx.NodeProto:
    """Hand the function's own `num_heads` on to a node inside it."""
    node.attribute.append(helper.make_attribute_ref("num_heads", onnx.AttributeProto.INT))
    return node
