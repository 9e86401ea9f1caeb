"""The canonical ONNX file of a kind as TensorRT's parser takes it: no sequences, no functions, weights as they are due.

`native`: our operators become TensorRT's layers. `plugin`: they stay nodes that name our kernels, and nothing else can
stand in for them: the parser fails where a plugin is not registered. Weights are inputs of the network, shared by the
layers of a kind and by all its profiles; where a layer wants constants, which a convolution does, they are initializers
whose values the caller hands over by address, so that no file and no message holds them.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper, inliner, numpy_helper

from vino_export.functions import DOMAIN, OPSET
from vino_export.tensorrt.native import TENSORRT, native_bodies
from vino_export.trace import write_onnx
from vino_kernels.plugins.declare import NAMESPACE, PLUGINS
from vino_rt.backends.base import Kind
from vino_rt.backends.recipe import VARIANTS
from vino_rt.errors import EngineError

ELEMENTS = {torch.float32: TensorProto.FLOAT, torch.bfloat16: TensorProto.BFLOAT16, torch.float16: TensorProto.FLOAT16}
ELSEWHERE = "weights"
"""Where the file says that its initializers lie; nothing is read from there."""


def network(kind: Kind, variant: str, major: int) -> onnx.ModelProto:
    """The file of a kind for TensorRT of a major version, without the values of any weights.

    Inputs that nothing reads are left out.
    Weights are its initializers if it has convolutions, else its inputs, behind those of the spec.
    Raises EngineError for an unknown variant, or a graph that no variant can express.
    """
    if variant not in VARIANTS:
        raise EngineError(f"{kind.name}: no variant {variant!r} of a TensorRT network; legal are {', '.join(VARIANTS)}")
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(kind, Path(folder) / "engine.onnx")
        model = onnx.load(str(Path(folder) / "engine.onnx"))
    weights = _weights(kind)
    for value in model.graph.input:
        if value.name in weights:
            value.type.tensor_type.elem_type = ELEMENTS[weights[value.name].dtype]
    _without_sequences(kind.name, model.graph)
    _without_unread(model.graph)
    model = _native(model, major) if variant == "native" else _plugged(model)
    if any(node.op_type == "Conv" for node in model.graph.node):
        _move_inside(model.graph, weights)
    return model


def _weights(kind: Kind) -> Mapping[str, torch.Tensor]:
    with torch.device("meta"):
        return kind.build().state_dict()


def _without_sequences(where: str, graph: onnx.GraphProto) -> None:
    """Cut tensors with Split: the exporter cuts them into a sequence, a type that TensorRT does not have."""
    constants = {node.output[0]: node for node in graph.node if node.op_type == "Constant"}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "SplitToSequence":
            pieces = {_whole(where, constants, user.input[1]): user.output[0] for user in _users(graph, node)}
            size = _whole(where, constants, node.input[1])
            if sorted(pieces) != list(range(len(pieces))):
                raise EngineError(f"{where}: takes pieces {sorted(pieces)} of {node.input[0]}, must take all in order")
            outputs, sizes = [pieces[i] for i in range(len(pieces))], f"{node.output[0]}_sizes"
            nodes.append(helper.make_node("Constant", [], [sizes], value_ints=[size] * len(pieces)))
            axis = helper.get_node_attr_value(node, "axis")
            nodes.append(helper.make_node("Split", [node.input[0], sizes], outputs, axis=axis))
        elif node.op_type != "SequenceAt":
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _without_unread(graph: onnx.GraphProto) -> None:
    """Inputs that only another backend reads would be bound for nothing."""
    read = {name for node in graph.node for name in node.input}
    kept = [value for value in graph.input if value.name in read]
    del graph.input[:]
    graph.input.extend(kept)


def _users(graph: onnx.GraphProto, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    return (user for user in graph.node if user.op_type == "SequenceAt" and user.input[0] == node.output[0])


def _whole(where: str, constants: Mapping[str, onnx.NodeProto], name: str) -> int:
    if name not in constants:
        raise EngineError(f"{where}: {name} decides how a tensor is cut and is not known when the engine is built")
    return int(numpy_helper.to_array(helper.get_node_attr_value(constants[name], "value")))


def _native(model: onnx.ModelProto, major: int) -> onnx.ModelProto:
    del model.functions[:]
    model.functions.extend(native_bodies(major))
    for node in model.graph.node:
        if node.domain == DOMAIN:
            del node.attribute[:]
    _set_imports(model, {"": OPSET, DOMAIN: 1, TENSORRT: 1})
    model = inliner.inline_local_functions(model)
    _set_imports(model, {"": OPSET, TENSORRT: 1})
    return model


def _plugged(model: onnx.ModelProto) -> onnx.ModelProto:
    """Nodes as the parser looks for a plugin: by name, version and namespace, compiled ahead of time."""
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
    """Inputs that are weights become initializers without values."""
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
