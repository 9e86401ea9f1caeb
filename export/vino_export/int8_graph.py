"""Rewrite matmuls of an ONNX graph to int8: weights are quantised beforehand, activations at run time.

In place of a weight `W`, float32 [O, I], the graph takes `W.int8` or `W.uint8`, [I, O], and `W.scale`, float32 [O].
Which of the two depends on the processor, see `vino_rt.backends.onnxruntime.weight_suffix`; both give the same bits.
"""

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper

from vino_export.functions import MICROSOFT
from vino_rt.backends.onnxruntime import INT8_SUFFIX, SCALE_SUFFIX, ZERO_POINT, weight_suffix

ZERO = "vino.weight_zero_point"
"""Name of the one constant that all uint8 weights share."""


def quantise_matmuls(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Rewrite every Gemm whose weight is named, and the graph's inputs, in place.

    If the input of a Gemm is a Concat, its parts are not concatenated: each is quantised with its own scale and
    multiplied by its part of the weight.
    """
    suffix = weight_suffix()
    nodes: list[onnx.NodeProto] = [] if suffix == INT8_SUFFIX else [_zero_point()]
    found: list[str] = []
    quantised: set[str] = set()
    matmuls = {node.input[0]: node for node in graph.node if node.op_type == "Gemm" and node.input[1] in names}
    joined = {node.output[0]: node for node in graph.node if node.op_type == "Concat" and node.output[0] in matmuls}
    for node in graph.node:
        if node.op_type == "Concat" and node.output[0] in joined:
            continue
        if node.op_type != "Gemm" or node.input[1] not in names:
            nodes.append(node)
            continue
        x, weight, _ = node.input
        if x in joined:
            nodes += _by_parts(graph, node, joined[x].input, suffix)
        else:
            nodes += _quantise(x, quantised)
            nodes.append(_matmul(x, weight + suffix, node.input, node.output[0], suffix))
        found.append(weight)
    assert sorted(found) == sorted(names), f"no matmul with {sorted(set(names) ^ set(found))}"
    del graph.node[:]
    graph.node.extend(nodes)
    inputs = [x for given in graph.input for x in (_inputs(given, suffix) if given.name in names else [given])]
    del graph.input[:]
    graph.input.extend(inputs)


def _zero_point() -> onnx.NodeProto:
    value = helper.make_tensor(ZERO, TensorProto.UINT8, [], [ZERO_POINT])
    return helper.make_node("Constant", [], [ZERO], value=value)


def _quantise(x: str, quantised: set[str]) -> list[onnx.NodeProto]:
    """Quantise activations to uint8, once for all matmuls that read them."""
    if x in quantised:
        return []
    quantised.add(x)
    return [helper.make_node("DynamicQuantizeLinear", [x], [f"{x}.uint8", f"{x}.step", f"{x}.zero"])]


def _matmul(x: str, values: str, gemm: Sequence[str], out: str, suffix: str) -> onnx.NodeProto:
    """Multiply quantised activations by `values`, a Gemm's quantised weight or a part of it, and add the bias."""
    _, weight, bias = gemm
    zero = "" if suffix == INT8_SUFFIX else ZERO
    taken = [f"{x}.uint8", values, f"{x}.step", weight + SCALE_SUFFIX, f"{x}.zero", zero, bias]
    return helper.make_node("MatMulIntegerToFloat", taken, [out], domain=MICROSOFT)


def _by_parts(graph: onnx.GraphProto, node: onnx.NodeProto, parts: Sequence[str], suffix: str) -> list[onnx.NodeProto]:
    """One matmul per part of a concatenated input, summed; the last one adds the bias."""
    known = {value.name: value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.input)}
    _, weight, bias = node.input
    sizes, values = f"{weight}.sizes", [f"{weight}{suffix}.{part}" for part in range(len(parts))]
    nodes = [
        helper.make_node("Constant", [], [sizes], value_ints=[known[part][-1].dim_value for part in parts]),
        helper.make_node("Split", [weight + suffix, sizes], values, axis=0),
    ]
    sums = [f"{node.output[0]}.{part}" for part in range(len(parts))]
    for number, (part, own) in enumerate(zip(parts, values, strict=True)):
        last = number == len(parts) - 1
        nodes += _quantise(part, set())
        nodes.append(_matmul(part, own, ("", weight, bias if last else ""), sums[number], suffix))
    nodes.append(helper.make_node("Sum", sums, list(node.output)))
    return nodes


def _inputs(weight: onnx.ValueInfoProto, suffix: str) -> list[onnx.ValueInfoProto]:
    """The graph inputs that replace a weight: its quantised values and their scales."""
    outer, inner = (dim.dim_value for dim in weight.type.tensor_type.shape.dim)
    element = TensorProto.INT8 if suffix == INT8_SUFFIX else TensorProto.UINT8
    return [
        helper.make_tensor_value_info(weight.name + suffix, element, [inner, outer]),
        helper.make_tensor_value_info(weight.name + SCALE_SUFFIX, TensorProto.FLOAT, [outer]),
    ]
