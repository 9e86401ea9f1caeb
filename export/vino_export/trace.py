"""Export a kind to one ONNX file whose weights are inputs; no weights are ever allocated."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from vino_export.functions import IMPORTS, OPSET, bodies, translations
from vino_export.int8 import quantised_weights
from vino_export.int8_graph import quantise_matmuls
from vino_export.notes import without_library_notes
from vino_export.program import export_program
from vino_rt.backends.base import INT8_ATTENTION, Kind
from vino_rt.errors import EngineError
from vino_rt.models.vino.ops import JOINT_NODES, PLAIN, operations

ELEMENTS = {torch.float32: TensorProto.FLOAT, torch.bfloat16: TensorProto.BFLOAT16}
"""ONNX element types of weights by PyTorch dtype."""


def write_onnx(kind: Kind, path: Path) -> None:
    """Export a kind to an ONNX file at `path`.

    Its inputs are those of the spec, in order, then one per weight under its parameter name. At precision int8 the
    weight of a Linear becomes two inputs (`vino_export.int8_graph`). At precision int8-attention the graph is the half
    before attention, and the metadata holds the half after it and the kernel between them (`vino_export.halves`).
    Raises EngineError if that kernel cannot be compiled or the kind has no joint attention.
    """
    model = export_graph(kind, path)
    if kind.precision == INT8_ATTENTION:
        from vino_export.halves import carried, cut

        first, second, attends = cut(kind.name, model)
        for half in (first, second):
            _finish(half, kind)
        onnx.helper.set_model_props(first, carried(second, attends))
        model = first
    else:
        _finish(model, kind)
    onnx.save(model, str(path))


def _finish(model: onnx.ModelProto, kind: Kind) -> None:
    """Quantise weights as the precision asks, drop the types of intermediate values, and check the model."""
    given = {name for node in model.graph.node for name in node.input}
    if names := [name for name in quantised_weights(kind) if name in given]:
        quantise_matmuls(model.graph, names)
    del model.graph.value_info[:]
    onnx.checker.check_model(model)


def export_graph(kind: Kind, path: Path) -> onnx.ModelProto:
    """Export a kind to an ONNX model, uncut and in floating point, with the type of every value.

    Inputs come in the spec's order, then the weights by parameter name. `path` is a scratch file: the exporter writes
    through the file system.
    """
    with without_library_notes(), operations(JOINT_NODES if kind.precision == INT8_ATTENTION else PLAIN):
        program = torch.onnx.export(
            export_program(kind),
            opset_version=OPSET,
            custom_translation_table=dict(translations()),
            optimize=False,
            input_names=[spec.name for spec in kind.spec.inputs],
            output_names=[spec.name for spec in kind.spec.outputs],
            verbose=False,
        )
    assert program is not None
    program.save(str(path), include_initializers=False)
    model = onnx.load(str(path), load_external_data=False)
    _strip_metadata(model)
    _without_sequences(kind.name, model.graph)
    with torch.device("meta"):
        weights = kind.build().state_dict()
    used = {name for node in model.graph.node for name in node.input}
    for name, tensor in weights.items():
        assert name in used, f"{kind.name}: parameter {name} is not used by the exported graph"
        model.graph.input.append(helper.make_tensor_value_info(name, ELEMENTS[tensor.dtype], list(tensor.shape)))
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in IMPORTS.items())
    model.functions.extend(bodies())
    return model


def _without_sequences(where: str, graph: onnx.GraphProto) -> None:
    """Replace SplitToSequence by Split: sequences do not support bfloat16, and TensorRT does not have them."""
    constants = {node.output[0]: node for node in graph.node if node.op_type == "Constant"}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "SplitToSequence":
            users = [user for user in graph.node if user.op_type == "SequenceAt" and user.input[0] == node.output[0]]
            pieces = {int(_known(where, constants, user.input[1])): user.output[0] for user in users}
            if sorted(pieces) != list(range(len(pieces))):
                raise EngineError(f"{where}: takes pieces {sorted(pieces)} of {node.input[0]}, must take all in order")
            size, told = _known(where, constants, node.input[1]), f"{node.output[0]}_sizes"
            sizes = size.tolist() if size.ndim else [int(size)] * len(pieces)
            nodes.append(helper.make_node("Constant", [], [told], value_ints=sizes))
            axis = helper.get_node_attr_value(node, "axis")
            nodes.append(
                helper.make_node("Split", [node.input[0], told], [pieces[i] for i in range(len(pieces))], axis=axis)
            )
        elif node.op_type != "SequenceAt":
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _known(where: str, constants: Mapping[str, onnx.NodeProto], name: str) -> "np.ndarray[Any, Any]":
    if name not in constants:
        raise EngineError(f"{where}: {name} decides how a tensor is cut and is not known when the engine is built")
    return numpy_helper.to_array(helper.get_node_attr_value(constants[name], "value"))


def _strip_metadata(model: onnx.ModelProto) -> None:
    """Drop stack traces, which are most of the file and contain paths of the building machine."""
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]
