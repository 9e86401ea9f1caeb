"""int8 products in the ONNX files of a CPU: what is rewritten, and the same arithmetic in PyTorch to verify it against.

The products with Linear weights of the transformer's blocks, nine tenths of all products outside attention, take int8
weights, one scale for each output channel, symmetric, and uint8 activations, one scale and zero point for all rows of a
call, found while it runs. Sums are exact integers. Everything else stays float32: attention, norms, rotations, gates,
the stream that blocks add to, and the smaller engines.

Weights stay arguments: ONNX Runtime multiplies these as fast as constants (bench/LOG.md).
"""

from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import Tensor, nn

from vino_export.functions import MICROSOFT
from vino_export.trace import write_onnx
from vino_rt.backends.base import Kind
from vino_rt.backends.onnxruntime import INT8, SCALE, quantise

KINDS = frozenset({"dual_block", "single_block"})
"""Engine kinds whose products are int8."""
LEVELS = 255
"""Steps between the least and the largest value of a uint8 activation."""


def quantised_weights(kind: Kind) -> tuple[str, ...]:
    """Names of the weights [O, I] of a kind that become int8; none for a kind that stays float32."""
    if kind.name not in KINDS:
        return ()
    with torch.device("meta"):
        modules = dict(kind.build().named_modules())
    return tuple(f"{name}.weight" for name, module in modules.items() if isinstance(module, nn.Linear))


def write_int8(kind: Kind, path: Path) -> None:
    """Write a kind's ONNX file with its `quantised_weights` as int8 arguments, or unchanged where there are none.

    In place of a weight `W`, float32 [O, I], the file takes `W.int8`, int8 [I, O], and `W.scale`, float32 [O].
    """
    write_onnx(kind, path)
    names = quantised_weights(kind)
    if not names:
        return
    model = onnx.load(str(path))
    _rewrite(model.graph, names)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _rewrite(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    nodes: list[onnx.NodeProto] = []
    seen: set[str] = set()
    found = []
    for node in graph.node:
        if node.op_type != "Gemm" or node.input[1] not in names:
            nodes.append(node)
            continue
        x, weight, bias = node.input
        if x not in seen:
            # Projections of the same rows share one quantisation.
            seen.add(x)
            nodes.append(helper.make_node("DynamicQuantizeLinear", [x], [f"{x}.uint8", f"{x}.step", f"{x}.zero"]))
        taken = [f"{x}.uint8", weight + INT8, f"{x}.step", weight + SCALE, f"{x}.zero", "", bias]
        nodes.append(helper.make_node("MatMulIntegerToFloat", taken, list(node.output), domain=MICROSOFT))
        found.append(weight)
    assert sorted(found) == sorted(names), f"products of {sorted(set(names) ^ set(found))} were not found"
    del graph.node[:]
    graph.node.extend(nodes)
    inputs = []
    for value in graph.input:
        if value.name not in names:
            inputs.append(value)
            continue
        rows, columns = (dim.dim_value for dim in value.type.tensor_type.shape.dim)
        inputs.append(helper.make_tensor_value_info(value.name + INT8, TensorProto.INT8, [columns, rows]))
        inputs.append(helper.make_tensor_value_info(value.name + SCALE, TensorProto.FLOAT, [rows]))
    del graph.input[:]
    graph.input.extend(inputs)


class Int8Linear(nn.Module):
    """A Linear that rounds weights and activations as the engine does, and multiplies in the type it is given."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        values, scale = quantise(linear.weight.detach())
        self.weight = nn.Parameter((values.float() * scale).T.contiguous(), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """[L, I] -> [L, O]."""
        low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
        step = (high - low) / LEVELS or 1.0
        zero = round(-low / step)
        rounded = ((x / step).round() + zero).clamp(0, LEVELS) - zero
        return F.linear(rounded * step, self.weight, self.bias)


def with_int8_products(module: nn.Module, names: Sequence[str]) -> nn.Module:
    """Put an `Int8Linear` in the place of each Linear whose weight is named, and return the module."""
    for name in names:
        path = name.removesuffix(".weight")
        module.set_submodule(path, Int8Linear(module.get_submodule(path)))  # type: ignore[arg-type]
    return module
