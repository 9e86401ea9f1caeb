"""An exported kind in two halves, before and behind its attention, and the kernel that runs between them.

ONNX Runtime has no attention with int8 products, and takes operators from outside only against headers that it does not
install. So the file of a kind at precision int8-attention is the first half; the second one and the compiled kernel are
texts in its metadata, so that an engine stays one file with one hash.
"""

import base64
import functools

import onnx
from onnx import helper

from vino_export.package import require_compiler
from vino_rt.backends.onnxruntime_halves import KERNEL, SECOND
from vino_rt.errors import EngineError
from vino_rt.kernels import compile_int8_attention

ATTENTION, OFFSETS = "BoundaryAttention", "offsets"
"""The operator that is cut out, and the input of the model that it must take besides q, k and v."""


def cut(where: str, model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The model without its attention, in two; `value_info` must hold the types of all values.

    The first gives q, k and v and then every value that the second needs of it. The second takes what attention gave,
    then those values, then what else it reads of the model's inputs, in their order. Raises EngineError, which names
    the kind `where`, unless there is exactly one attention and it is over the image and text rows.
    """
    graph = model.graph
    node = _attention(where, graph)
    maker = {name: made for made in graph.node for name in made.output}
    before: set[str] = set()
    left = list(node.input[:3])
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
    given = [*node.input[:3], *(name for name in crossing if name not in node.input[:3])]
    types = {value.name: value for value in (*graph.value_info, *graph.input)}
    outputs = [types[name] for name in given]
    inputs = [types[name] for name in (node.output[0], *crossing)]
    return _half(model, constants, first, [], outputs), _half(model, constants, second, inputs, list(graph.output))


def _attention(where: str, graph: onnx.GraphProto) -> onnx.NodeProto:
    found: list[onnx.NodeProto] = [node for node in graph.node if node.op_type == ATTENTION]
    segments = [node.input[3] for node in found]
    if segments != [OFFSETS]:
        raise EngineError(
            f"{where}: precision 'int8-attention' needs exactly one attention, over '{OFFSETS}', and this has "
            f"{len(found)}, over {segments}; give it to blocks of the transformer, and 'int8' or 'float32' to others"
        )
    return found[0]


def _read(nodes: list[onnx.NodeProto]) -> set[str]:
    return {name for node in nodes for name in node.input}


def _half(
    model: onnx.ModelProto,
    constants: list[onnx.NodeProto],
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """Some nodes of a model as one: with the constants, inputs and functions that they need."""
    read = _read(nodes)
    own = [node for node in constants if node.output[0] in read]
    taken = [*inputs, *(value for value in model.graph.input if value.name in read)]
    graph = helper.make_graph([*own, *nodes], model.graph.name, taken, outputs)
    used = {node.op_type for node in nodes}
    functions = [function for function in model.functions if function.name in used]
    return helper.make_model(graph, functions=functions, opset_imports=model.opset_import, ir_version=model.ir_version)


def carried(second: onnx.ModelProto) -> dict[str, str]:
    """What the file of the first half carries, by the names it has there."""
    parts = {SECOND: second.SerializeToString(), KERNEL: _kernel()}
    return {name: base64.b64encode(part).decode() for name, part in parts.items()}


@functools.cache
def _kernel() -> bytes:
    """The same for every kind; a moment of compiling."""
    return compile_int8_attention(require_compiler("precision 'int8-attention'"))
