"""The canonical ONNX file of a kind as TensorRT's parser takes it: no functions, weights as they are due.

`native`: our operators become TensorRT's layers. `plugin`: they stay nodes that name our kernels, and nothing else can
stand in for them: the parser fails where a plugin is not registered. Weights are inputs of the network, shared by the
layers of a kind and by all its profiles; where a layer wants constants, which a convolution does, they are initializers
whose values the caller hands over by address, so that no file and no message holds them.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper, inliner

from vino_export.functions import DOMAIN, OPSET
from vino_export.tensorrt.native import TENSORRT, native_bodies
from vino_export.trace import write_onnx
from vino_kernels.plugins.declare import NAMESPACE, PLUGINS
from vino_rt.backends.base import Kind
from vino_rt.backends.recipe import VARIANTS
from vino_rt.errors import EngineError

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
    _without_unread(model.graph)
    model = _native(model, major) if variant == "native" else _plugged(model)
    if any(node.op_type == "Conv" for node in model.graph.node):
        _move_inside(model.graph, weights)
    return model


def _weights(kind: Kind) -> Mapping[str, torch.Tensor]:
    with torch.device("meta"):
        return kind.build().state_dict()


def _without_unread(graph: onnx.GraphProto) -> None:
    """Inputs that only another backend reads would be bound for nothing."""
    read = {name for node in graph.node for name in node.input}
    kept = [value for value in graph.input if value.name in read]
    del graph.input[:]
    graph.input.extend(kept)


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
