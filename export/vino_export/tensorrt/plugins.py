"""Our kernels as TensorRT quick plugins, compiled ahead of time into the plan: running it needs no Python or Triton.

The declarations follow the requirements of NVIDIA's bindings: annotated descriptions, a `tactic` for every kernel, no
attributes (plans do not keep them), and only int32 numbers as kernel arguments. NVIDIA calls the module experimental.
"""

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import TensorProto

from vino_export.functions import DOMAIN
from vino_export.tensorrt.network import tensors
from vino_kernels.grid import evaluate, grid
from vino_kernels.plugins.declare import NAMESPACE, PLUGINS, Tensor, attention_tactics, launch_names
from vino_kernels.plugins.ptx import assemble
from vino_rt.backends.tensorrt.library import dtype_of
from vino_rt.errors import EngineError

TYPE_NAMES = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16", "int32": "INT32"}
"""Names of element types in a plugin's type combinations."""
ELEMENTS: Mapping[int, str] = {
    TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT32: "int32",
}  # fmt: skip
"""Names of element types by ONNX's numbers."""
DECLARED: list[int] = []
"""Architecture for which this process has declared the plugins; TensorRT keeps declarations until it exits."""


def declare_plugins(arch: int) -> None:
    """Declare all plugins to TensorRT in this process, for GPUs of one architecture, such as 90.

    Idempotent; raises EngineError for a second architecture.
    """
    if arch in DECLARED:
        return
    if DECLARED:
        raise EngineError(f"plugins of this process are for sm_{DECLARED[0]}; build for sm_{arch} in another process")
    DECLARED.append(arch)
    _declare_norm_modulate(arch)
    _declare_qk_norm_rope(arch)
    _declare_boundary_attention(arch)


def compile_plugins(model: onnx.ModelProto, arch: int) -> None:
    """Compile every kernel that a network of the variant `plugin` needs, before TensorRT asks for it.

    Raises EngineError if one cannot be compiled; within TensorRT the reason would be lost.
    """
    known = tensors(model)
    for node in model.graph.node:
        if node.domain != DOMAIN:
            continue
        plugin = PLUGINS[node.op_type]
        try:
            given = [Tensor(ELEMENTS[kind], sizes) for kind, sizes in (known[name] for name in node.input)]
            for tactic in _tactics(node.op_type, arch, given[0]):
                assemble(plugin.variant(arch, tactic, *given))
        except (ValueError, KeyError) as error:
            raise EngineError(
                f"{node.op_type}: our kernel cannot become a plugin for sm_{arch} ({error}); build with variant = "
                '"native"'
            ) from error


def _tactics(plugin: str, arch: int, first: Tensor) -> tuple[int, ...]:
    """The tactics of a plugin for its first input."""
    return attention_tactics(arch, first) if plugin == "BoundaryAttention" else PLUGINS[plugin].tactics


def _declare_norm_modulate(arch: int) -> None:
    import tensorrt.plugin as quick

    name = f"{NAMESPACE}::NormModulate"
    made = tuple[str, str, quick.KernelLaunchParams, quick.SymIntExprs]

    @quick.register(name)  # type: ignore[untyped-decorator]
    def describe(x: quick.TensorDesc, shift: quick.TensorDesc, scale: quick.TensorDesc) -> quick.TensorDesc:
        return x.like()

    @quick.aot_impl(name)  # type: ignore[untyped-decorator]
    def kernel(x, shift, scale, outputs, tactic) -> made:  # type: ignore[no-untyped-def]
        return _compiled("NormModulate", arch, tactic, x, shift, scale)


def _declare_qk_norm_rope(arch: int) -> None:
    import tensorrt.plugin as quick

    name = f"{NAMESPACE}::QkNormRope"
    made = tuple[str, str, quick.KernelLaunchParams, quick.SymIntExprs]

    @quick.register(name)  # type: ignore[untyped-decorator]
    def describe(
        x: quick.TensorDesc, weight: quick.TensorDesc, cos: quick.TensorDesc, sin: quick.TensorDesc
    ) -> quick.TensorDesc:
        return x.like()

    @quick.aot_impl(name)  # type: ignore[untyped-decorator]
    def kernel(x, weight, cos, sin, outputs, tactic) -> made:  # type: ignore[no-untyped-def]
        return _compiled("QkNormRope", arch, tactic, x, weight, cos, sin)


def _declare_boundary_attention(arch: int) -> None:
    import tensorrt as library
    import tensorrt.plugin as quick

    name = f"{NAMESPACE}::BoundaryAttention"
    made = tuple[str, str, quick.KernelLaunchParams, quick.SymIntExprs]

    @quick.register(name)  # type: ignore[untyped-decorator]
    def describe(
        q: quick.TensorDesc, k: quick.TensorDesc, v: quick.TensorDesc, offsets: quick.TensorDesc
    ) -> tuple[quick.TensorDesc, quick.TensorDesc]:
        return q.like(), quick.from_shape_expr((q.shape_expr[0], q.shape_expr[1]), library.float32)

    @quick.autotune(name)  # type: ignore[untyped-decorator]
    def combine(q, k, v, offsets, outputs) -> list[quick.AutoTuneCombination]:  # type: ignore[no-untyped-def]
        types = ", ".join(TYPE_NAMES[_tensor(x).dtype] for x in (q, k, v, offsets, *outputs))
        return [quick.AutoTuneCombination(types, "LINEAR", list(_tactics("BoundaryAttention", arch, _tensor(q))))]

    @quick.aot_impl(name)  # type: ignore[untyped-decorator]
    def kernel(q, k, v, offsets, outputs, tactic) -> made:  # type: ignore[no-untyped-def]
        return _compiled("BoundaryAttention", arch, tactic, q, k, v, offsets)


def _tensor(description: Any) -> Tensor:
    """Convert TensorRT's description of a tensor; a size of -1, not known yet, becomes None."""
    dtype = str(dtype_of(description.dtype)).removeprefix("torch.")
    return Tensor(dtype, tuple(None if size < 0 else int(size) for size in description.shape))


def _compiled(plugin: str, arch: int, tactic: int, *inputs: Any) -> tuple[str, str, Any, Any]:
    """What TensorRT needs of a kernel: symbol name, PTX, launch parameters, and extra int32 arguments."""
    import tensorrt.plugin as quick

    variant = PLUGINS[plugin].variant(arch, tactic, *map(_tensor, inputs))
    made = assemble(variant)
    names = launch_names(variant, inputs[0].shape_expr[0])
    launch = quick.KernelLaunchParams(block_x=made.threads, shared_mem=made.shared)
    launch.grid_x, launch.grid_y, launch.grid_z = (*grid(variant.grid, names), 1, 1)[:3]
    numbers = [argument.name for argument in variant.arguments if not argument.is_tensor]
    extra = quick.SymIntExprs(len(numbers))
    for position, name in enumerate(numbers):
        extra[position] = quick.SymInt32(evaluate(name, names))
    return made.symbol, made.ptx, launch, extra
