"""Cut an exported kind into two halves, before and after its joint attention, with our int8 kernel between them.

ONNX Runtime has no attention with int8 matmuls, and custom operators need C headers that its package does not install.
So the ONNX file of a kind at precision int8-attention contains the first half; the second half, the compiled kernel and
the names of the kernel's inputs are strings in its metadata. That way an engine remains one file with one hash.
"""

import base64
import functools
import json
from collections.abc import Sequence

import onnx
from onnx import helper

from vino_export.functions import JOINT
from vino_export.package import require_compiler
from vino_rt.backends.onnxruntime_halves import ATTENDS, KERNEL, SECOND
from vino_rt.errors import EngineError
from vino_rt.kernels import compile_int8_attention


def cut(where: str, model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto, list[str]]:
    """Cut a model at its joint attention; return both halves and the names of the attention's inputs.

    The first half outputs the attention's inputs that it computes, then every other value that the second half needs.
    The second half takes the attention's output, then those values, then the inputs of the model that it reads, in
    their order. The attention's inputs are outputs of the first half or inputs of the model. The model's `value_info`
    must be complete. where: name of the kind, for messages. Raises EngineError unless there is exactly one joint
    attention.
    """
    graph = model.graph
    nodes = [node for node in graph.node if node.op_type == JOINT]
    if len(nodes) != 1:
        raise EngineError(
            f"{where}: precision 'int8-attention' needs one attention over image and text, this has {len(nodes)}; give "
            "it to blocks of the transformer, and 'int8' or 'float32' to others"
        )
    node = nodes[0]
    maker = {name: made for made in graph.node for name in made.output}
    read = [name for name in node.input if name in maker]
    before: set[str] = set()
    left = list(read)
    while left:
        made = maker.get(left.pop())
        if made is not None and made.output[0] not in before:
            before.add(made.output[0])
            left += made.input
    constants = [made for made in graph.node if made.op_type == "Constant"]
    rest = [made for made in graph.node if made not in constants and made.output[0] != node.output[0]]
    first = [made for made in rest if made.output[0] in before]
    second = [made for made in rest if made.output[0] not in before]
    crossing = [name for made in first for name in made.output if name in _read(second)]
    given = list(dict.fromkeys((*read, *crossing)))
    types = {value.name: value for value in (*graph.value_info, *graph.input)}
    outputs = [types[name] for name in given]
    inputs = [types[name] for name in (node.output[0], *crossing)]
    halves = _half(model, constants, first, [], outputs), _half(model, constants, second, inputs, list(graph.output))
    return *halves, list(node.input)


def _read(nodes: list[onnx.NodeProto]) -> set[str]:
    return {name for node in nodes for name in node.input}


def _half(
    model: onnx.ModelProto,
    constants: list[onnx.NodeProto],
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """Make a model from some of the nodes, with the constants, inputs and functions that they need."""
    read = _read(nodes)
    own = [node for node in constants if node.output[0] in read]
    taken = [*inputs, *(value for value in model.graph.input if value.name in read)]
    made = {name for node in nodes for name in node.output}
    known = [value for value in model.graph.value_info if value.name in made]
    graph = helper.make_graph([*own, *nodes], model.graph.name, taken, outputs, value_info=known)
    used = {node.op_type for node in nodes}
    functions = [function for function in model.functions if function.name in used]
    return helper.make_model(graph, functions=functions, opset_imports=model.opset_import, ir_version=model.ir_version)


def carried(second: onnx.ModelProto, attends: Sequence[str]) -> dict[str, str]:
    """Metadata for the first half's file; attends: the names that `cut` returned."""
    parts = {SECOND: second.SerializeToString(), KERNEL: _kernel()}
    encoded = {name: base64.b64encode(part).decode() for name, part in parts.items()}
    return {**encoded, ATTENDS: json.dumps(attends)}


@functools.cache
def _kernel() -> bytes:
    """The compiled kernel's shared library; the same for every kind."""
    return compile_int8_attention(require_compiler("precision 'int8-attention'"))
