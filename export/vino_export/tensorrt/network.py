"""Convert the canonical ONNX file of a kind into one that TensorRT's parser accepts.

Variant `native`: our operators become TensorRT's layers. Variant `plugin`: they stay nodes that name our kernels; the
parser fails if the plugin is not registered. Weights are inputs of the network, shared by the layers of a kind and by
all profiles. Only if a layer requires constants, as convolutions do, are they initializers, whose values the caller
passes by address, so that they are never serialised.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper, inliner

from vino_export.functions import DOMAIN, OPSET
from vino_export.tensorrt.native import TENSORRT, Attending, native_bodies
from vino_export.trace import write_onnx
from vino_kernels.plugins.declare import NAMESPACE, PLUGINS
from vino_rt.backends.base import Kind
from vino_rt.backends.recipe import VARIANTS
from vino_rt.errors import EngineError

ELSEWHERE = "weights"
"""External location that the file states for its initializers; nothing is read from it."""
ROWS = {"offsets": "J", "text_offsets": "T"}
"""Inputs that hold segment offsets -> the dynamic size of the sequence that they partition."""


def network(kind: Kind, variant: str, attention: str) -> onnx.ModelProto:
    """The ONNX model of a kind for TensorRT, without the values of weights.

    attention: the form of attention in the variant `native` (`native.attentions`). Inputs that nothing reads are
    dropped. Weights are initializers if the kind has convolutions, else inputs after those of the spec. Raises
    EngineError for an unknown variant, or a graph that the variant cannot express.
    """
    if variant not in VARIANTS:
        raise EngineError(f"{kind.name}: no variant {variant!r} of a TensorRT network; legal are {', '.join(VARIANTS)}")
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(kind, Path(folder) / "engine.onnx")
        model = onnx.load(str(Path(folder) / "engine.onnx"))
    _check_operators(kind, model)
    weights = _weights(kind)
    _without_unread(model.graph)
    _split_joined(model)
    model = _native(kind, model, attention) if variant == "native" else _plugged(model)
    if any(node.op_type == "Conv" for node in model.graph.node):
        _move_inside(model.graph, weights)
    return model


def attends(kind: Kind) -> str | None:
    """Name of the dynamic size of the sequence that a kind's attention runs over; None for a kind without attention."""
    return next((ROWS[spec.name] for spec in kind.spec.inputs if spec.name in ROWS), None)


def tensors(model: onnx.ModelProto) -> dict[str, tuple[int, tuple[int | None, ...]]]:
    """Element type and sizes of every value of a graph, None for a dynamic size.

    Outputs of our operators and TensorRT's are assumed to have the type and shape of the first input.
    """
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    del plain.functions[:]
    for node in plain.graph.node:
        if node.domain in (DOMAIN, TENSORRT):
            node.CopyFrom(helper.make_node("Identity", node.input[:1], node.output[:1]))
    plain = onnx.shape_inference.infer_shapes(plain, check_type=True, strict_mode=True, data_prop=True)
    values = (*plain.graph.input, *plain.graph.output, *plain.graph.value_info)
    found = {value.name: value.type.tensor_type for value in values}
    named = {
        name: (kind.elem_type, tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim))
        for name, kind in found.items()
    }
    return named | {tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in plain.graph.initializer}


def _weights(kind: Kind) -> Mapping[str, torch.Tensor]:
    with torch.device("meta"):
        return kind.build().state_dict()


def _check_operators(kind: Kind, model: onnx.ModelProto) -> None:
    unknown = sorted({node.op_type for node in model.graph.node if node.domain == DOMAIN} - set(PLUGINS))
    if unknown:
        raise EngineError(
            f"{kind.name}: TensorRT has no network for {', '.join(unknown)}; let the recipe run this kind elsewhere: "
            f'[kinds] {kind.name} = "eager"'
        )


def _without_unread(graph: onnx.GraphProto) -> None:
    """Drop inputs that nothing in the graph reads."""
    read = {name for node in graph.node for name in node.input}
    kept = [value for value in graph.input if value.name in read]
    del graph.input[:]
    graph.input.extend(kept)


def _split_joined(model: onnx.ModelProto) -> None:
    """Split each product of a concatenation into one product per part, and add up the results.

    TensorRT does not support tensors of 2**31 elements, which the concatenation in a single block reaches for the
    longest sequences. It also saves writing the parts a second time.
    """
    graph, known = model.graph, tensors(model)
    joined = {node.output[0]: node for node in graph.node if node.op_type == "Concat"}
    products = [node for node in graph.node if node.op_type == "Gemm" and node.input[0] in joined]
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes += _by_parts(node, joined[node.input[0]].input, known) if node in products else [node]
    read = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    del graph.node[:]
    graph.node.extend(node for node in nodes if node.op_type != "Concat" or node.output[0] in read)


def _by_parts(
    product: onnx.NodeProto, parts: Sequence[str], known: Mapping[str, tuple[int, tuple[int | None, ...]]]
) -> list[onnx.NodeProto]:
    """One product per part: the first adds the bias, each later one the sum so far."""
    _, weight, total = product.input
    out = product.output[0]
    sizes = [known[part][1][-1] for part in parts]
    slices = [f"{weight}.{number}" for number in range(len(parts))]
    nodes = [
        helper.make_node("Constant", [], [f"{weight}.sizes"], value_ints=sizes),
        helper.make_node("Split", [weight, f"{weight}.sizes"], slices, axis=1),
    ]
    for number, (part, own) in enumerate(zip(parts, slices, strict=True)):
        result = out if number == len(parts) - 1 else f"{out}.{number}"
        nodes.append(helper.make_node("Gemm", [part, own, total], [result], transB=1))
        total = result
    return nodes


def _native(kind: Kind, model: onnx.ModelProto, attention: str) -> onnx.ModelProto:
    attending = _attending(kind, model, attention)
    del model.functions[:]
    model.functions.extend(native_bodies(attending))
    for node in model.graph.node:
        if node.domain == DOMAIN:
            del node.attribute[:]
    _set_imports(model, {"": OPSET, DOMAIN: 1, TENSORRT: 1})
    model = inliner.inline_local_functions(model)
    _set_imports(model, {"": OPSET, TENSORRT: 1})
    return model


def _attending(kind: Kind, model: onnx.ModelProto, attention: str) -> Attending | None:
    ours = {node.op_type: node for node in model.graph.node if node.domain == DOMAIN}
    if "BoundaryAttention" not in ours:
        return None
    channels = tensors(model)[ours["BoundaryAttention"].input[0]][1][-1]
    if channels is None:
        raise EngineError(f"{kind.name}: the channels of a head are not known when the network is written")
    # TensorRT has no fused attention kernel for float32.
    return Attending(attention, channels, "QkNormRope" in ours, kind.precision == "float32")


def _plugged(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give our nodes the attributes by which the parser finds a plugin: name, version, namespace, ahead-of-time."""
    del model.functions[:]
    for node in model.graph.node:
        if node.domain == DOMAIN:
            del node.attribute[:]
            facts = {"plugin_namespace": NAMESPACE, "plugin_version": "1", "aot": 1}
            node.attribute.extend(helper.make_attribute(name, value) for name, value in facts.items())
            node.output.extend(f"{node.output[0]}_{i}" for i in range(1, PLUGINS[node.op_type].outputs))
    _set_imports(model, {"": OPSET, DOMAIN: 1})
    return model


def _set_imports(model: onnx.ModelProto, imports: Mapping[str, int]) -> None:
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in imports.items())


def _move_inside(graph: onnx.GraphProto, weights: Mapping[str, torch.Tensor]) -> None:
    """Turn inputs that are weights into initializers without values."""
    kept = [value for value in graph.input if value.name not in weights]
    for value in graph.input:
        if value.name in weights:
            empty = TensorProto(name=value.name, data_type=value.type.tensor_type.elem_type)
            empty.dims.extend(weights[value.name].shape)
            empty.data_location = TensorProto.EXTERNAL
            empty.external_data.add(key="location", value=ELSEWHERE)
            graph.initializer.append(empty)
    del graph.input[:]
    graph.input.extend(kept)
