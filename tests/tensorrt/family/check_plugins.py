"""Our plugins through NVIDIA's own layer of quick plugins, on concrete shapes, and their assembly for every GPU.

What runs is NVIDIA's: validation, types, shapes, combinations, tactics, launches, kernels. Replaced is only what the
library would give: the registry, and expressions of sizes, which are numbers here.
"""

import importlib
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tensorrt as trt
import triton

from tests.tensorrt.small import small_kinds
from vino_export.tensorrt.native import PACKED
from vino_export.tensorrt.network import network
from vino_export.tensorrt.plugins import compile_plugins, declare_plugins
from vino_kernels.ahead.compiler import PARAMETER
from vino_kernels.grid import grid
from vino_kernels.plugins import ptx
from vino_kernels.plugins.declare import NAMESPACE, PLUGINS, Tensor, attention_tactics, launch_names
from vino_kernels.plugins.ptx import SMALL_SHARED, assemble, without_scratch
from vino_rt.errors import EngineError

ARCH = 90
NEWER = 100
"""From this architecture on Triton brings another assembler."""
HEADS, ROWS = 3, 37
WIDE, SMALL = 128, 64
"""Channels of a head: of the released model and of the bundled one."""
DRIVER = {80: "8.0", 90: "8.0", 100: "8.6", 103: "8.8", 110: "9.0", 120: "8.7"}
"""Architectures and the version of PTX that any driver for them compiles."""
TRT = {"bfloat16": trt.bfloat16, "float32": trt.float32, "int32": trt.int32}


class Registry:
    """In the place of the library's registry of plugins."""

    def __init__(self) -> None:
        self.creators: dict[tuple[str, str, str], Any] = {}

    def register_creator(self, creator: Any, plugin_namespace: str = "") -> bool:
        self.creators[creator.name, creator.plugin_version, plugin_namespace] = creator
        return True

    def get_creator(self, type: str, version: str, plugin_namespace: str = "") -> Any:
        return self.creators.get((type, version, plugin_namespace))


class Size(trt.IDimensionExpr):  # type: ignore[misc]
    """A size as a number; the bindings give it no constructor."""

    value: int

    @classmethod
    def of(cls, value: int) -> "Size":
        made = cls.__new__(cls)
        made.value = int(value)
        return made

    def is_constant(self) -> bool:
        return False

    def is_size_tensor(self) -> bool:
        return False


class Arithmetic:
    """In the place of the library's builder of expressions."""

    def constant(self, value: int) -> Size:
        return Size.of(value)

    def operation(self, op: Any, first: Size, second: Size) -> Size:
        a, b, kinds = first.value, second.value, trt.DimensionOperation
        results = {
            kinds.SUM: a + b, kinds.SUB: a - b, kinds.PROD: a * b, kinds.MAX: max(a, b), kinds.MIN: min(a, b),
            kinds.FLOOR_DIV: a // max(b, 1), kinds.CEIL_DIV: -(-a // max(b, 1)),
        }  # fmt: skip
        return Size.of(results[op])


class Numbers(dict[int, Any]):
    """Where the layer puts a launch's numbers."""

    nbSymExprs = 0


@pytest.fixture(scope="module", autouse=True)
def registry() -> Registry:
    """The plugins declared for one architecture."""
    registry = Registry()
    trt.get_plugin_registry = lambda: registry
    declare_plugins(ARCH)
    return registry


def inputs_of(plugin: str, channels: int = WIDE) -> list[Tensor]:
    bf16, heads, width = "bfloat16", (ROWS, HEADS, channels), HEADS * channels
    table = Tensor("float32", (ROWS, channels // 2))
    return {
        "NormModulate": [Tensor(bf16, (ROWS, width)), Tensor(bf16, (width,)), Tensor(bf16, (width,))],
        "QkNormRope": [Tensor(bf16, heads), Tensor(bf16, (channels,)), table, table],
        "BoundaryAttention": [*(Tensor(bf16, heads) for _ in range(3)), Tensor("int32", (5,))],
    }[plugin]


def described(shape: tuple[int, ...], dtype: Any, *, rows_open: bool) -> Any:
    """A tensor as the builder describes it: rows are not known to a kernel that is compiled."""
    plain, whole = trt.PluginTensorDesc(), trt.DynamicPluginTensorDesc()
    shown = (-1, *shape[1:]) if rows_open else shape
    plain.dims, plain.type, plain.format = trt.Dims(shown), dtype, trt.TensorFormat.LINEAR
    whole.desc = plain
    whole.min = whole.opt = whole.max = trt.Dims(shape)
    return whole


def launched(plugin: str, tactic: int) -> dict[str, Any]:
    """Build a plugin as TensorRT does, and what it would launch."""
    layer = importlib.import_module("tensorrt_bindings.plugin._lib")
    definition, tensors = layer.QDP_REGISTRY[f"{NAMESPACE}::{plugin}"], inputs_of(plugin)
    made = layer._TemplateAOTPlugin(plugin, NAMESPACE, definition.num_outputs)
    attributes, tuned = definition.aot_impl_attr_names, definition.autotune_attr_names or []
    made.init(definition.register_func, {}, attributes, definition.aot_impl_func, tuned, definition.autotune_func)
    shapes = [tuple(int(size or 0) for size in x.shape) for x in tensors]
    made.get_output_data_types([TRT[x.dtype] for x in tensors], [len(shape) for shape in shapes])
    made.get_output_shapes([[Size.of(size) for size in shape] for shape in shapes], [], Arithmetic())
    outputs = [(tuple(e._expr.value for e in d.shape_expr), d.dtype) for d in made.output_descs]
    given = [(shape, TRT[x.dtype]) for shape, x in zip(shapes, tensors, strict=True)]
    both = [described(shape, dtype, rows_open=shape[0] == ROWS) for shape, dtype in (*given, *outputs)]
    count = len(given)
    combinations = made.get_supported_format_combinations(both, count)
    made.configure_plugin(both[:count], both[count:])
    tactics = sorted(made.get_valid_tactics())
    made.set_tactic(tactic)
    captured: list[Any] = []
    compile_kernel = made.aot_impl_function

    def noted(*arguments: Any) -> Any:
        captured.append(compile_kernel(*arguments))
        return captured[0]

    made.aot_impl_function = noted
    numbers, launch = Numbers(), type("Launch", (), {})()
    made.get_launch_params([], both, count, launch, numbers, Arithmetic())
    symbol, kernel = made.get_kernel([d.desc for d in both[:count]], [d.desc for d in both[count:]])
    params, extra = captured[0][2:]
    value = {n: getattr(params, n)._expr.value for n in ("grid_x", "grid_y", "grid_z", "block_x", "shared_mem")}
    return {
        "symbol": symbol, "ptx": kernel.decode(), "outputs": outputs, "tactics": tactics, "numbers": numbers.nbSymExprs,
        "extra": [e._expr.value for e in extra], "types": [c.type for c in combinations], **value,
    }  # fmt: skip


CASES = [(name, tactic) for name, plugin in PLUGINS.items() for tactic in plugin.tactics]


@pytest.mark.parametrize(("plugin", "tactic"), CASES)
def test_tensorrt_s_own_layer_takes_it(plugin: str, tactic: int) -> None:
    made, tensors = launched(plugin, tactic), inputs_of(plugin)
    rows = tensors[0].shape
    expected = [(rows, trt.bfloat16), ((ROWS, HEADS), trt.float32)][: PLUGINS[plugin].outputs]
    assert made["outputs"] == expected
    assert made["tactics"] == [tactic for tactic in PLUGINS[plugin].tactics if tactic]
    assert made["types"] == [TRT[x.dtype] for x in tensors] + [dtype for _, dtype in expected]
    variant = PLUGINS[plugin].variant(ARCH, tactic, *tensors)
    assert (made["grid_x"], made["grid_y"], made["grid_z"]) == (*grid(variant.grid, launch_names(variant, ROWS)), 1, 1)[
        :3
    ]
    assert made["shared_mem"] <= SMALL_SHARED
    assert made["extra"] == ([] if plugin == "QkNormRope" else [ROWS])
    assert made["numbers"] == len(made["extra"])
    passed = ["u64"] * len(tensors) + ["u32"] * len(made["extra"]) + ["u64"] * len(expected)
    assert PARAMETER.findall(made["ptx"]) == passed, "not what TensorRT passes: inputs, numbers, outputs"
    (threads,) = re.findall(r"\.reqntid (\d+)", made["ptx"])
    assert int(threads) == made["block_x"]
    assert ".reqnctapercluster" not in made["ptx"]


@pytest.mark.parametrize(("channels", "arch"), [*((WIDE, arch) for arch in DRIVER), (SMALL, 80), (SMALL, 120)])
@pytest.mark.parametrize(("plugin", "tactic"), CASES)
def test_it_assembles(plugin: str, tactic: int, channels: int, arch: int, tmp_path: Path) -> None:
    """Without the parameters that were taken away, for each architecture, in the memory that any launch may have."""
    made = assemble(PLUGINS[plugin].variant(arch, tactic, *inputs_of(plugin, channels)))
    assert made.shared <= SMALL_SHARED
    assert re.findall(r"^\.version (\S+)", made.ptx, re.MULTILINE) == [DRIVER[arch]]
    (tmp_path / "kernel.ptx").write_text(made.ptx)
    nvidia = triton.knobs.nvidia
    assembler = (nvidia.ptxas_blackwell if arch >= NEWER else nvidia.ptxas).path
    suffix = "a" if arch >= ARCH else ""
    command = [assembler, f"--gpu-name=sm_{arch}{suffix}", str(tmp_path / "kernel.ptx"), "-o", str(tmp_path / "cubin")]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "cubin").stat().st_size > 0


@pytest.mark.parametrize("arch", DRIVER)
@pytest.mark.parametrize("channels", [WIDE, SMALL])
def test_tactics_are_kernels_of_their_own(channels: int, arch: int) -> None:
    given = inputs_of("BoundaryAttention", channels)
    tactics = attention_tactics(arch, given[0])
    assert tactics == (1, 2)
    tiles = [PLUGINS["BoundaryAttention"].variant(arch, tactic, *given).constants["OWN"] for tactic in tactics]
    assert len(set(tiles)) == len(tactics)


def test_types_with_one_tile_have_one_tactic() -> None:
    q = Tensor("float32", (ROWS, HEADS, WIDE))
    assert attention_tactics(ARCH, q) == (1,)
    assert (
        assemble(PLUGINS["BoundaryAttention"].variant(ARCH, 1, q, q, q, Tensor("int32", (5,)))).shared <= SMALL_SHARED
    )


def test_a_kernel_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    variant = PLUGINS["NormModulate"].variant(ARCH, 0, *inputs_of("NormModulate"))
    first = assemble(variant)

    def again(*given: Any, **named: Any) -> None:
        raise AssertionError("compiled a second time")

    monkeypatch.setattr(ptx, "triton_kernel", again)
    assert assemble(PLUGINS["NormModulate"].variant(ARCH, 0, *inputs_of("NormModulate"))) is first
    with pytest.raises(AssertionError, match="a second time"):
        assemble(PLUGINS["NormModulate"].variant(ARCH, 0, *inputs_of("NormModulate", 48)))


def test_an_architecture_that_is_not_known() -> None:
    with pytest.raises(ValueError, match=r"no plugins for sm_75; there are for sm_80, .*sm_121"):
        assemble(PLUGINS["NormModulate"].variant(75, 0, *inputs_of("NormModulate")))


@pytest.mark.parametrize("name", ["single_block", "dual_block", "embed", "head"])
def test_kernels_of_a_network_are_made_before_tensorrt_asks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it would ask for is found made, whatever it does not say of the sizes."""
    model = network(small_kinds("bfloat16")[name], "plugin", PACKED)
    compile_plugins(model, ARCH)
    before = len(ptx.MADE)
    compile_plugins(model, ARCH)
    assert len(ptx.MADE) == before
    monkeypatch.setattr(ptx, "SMALL_SHARED", -1)
    monkeypatch.setattr(ptx, "MADE", {})
    with pytest.raises(EngineError, match=r"cannot become a plugin for sm_90 .*bytes of shared memory.*\"native\""):
        compile_plugins(model, ARCH)


def test_sizes_that_are_not_known_in_time() -> None:
    with pytest.raises(ValueError, match=r"NormModulate: .*axis 1 must be known"):
        PLUGINS["NormModulate"].variant(ARCH, 0, Tensor("bfloat16", (ROWS, None)), *inputs_of("NormModulate")[1:])
    rows, weight, cos, _ = inputs_of("QkNormRope")
    with pytest.raises(ValueError, match="x and weight must be alike, the rest float32"):
        PLUGINS["QkNormRope"].variant(ARCH, 0, rows, weight, cos, Tensor("bfloat16", cos.shape))


def test_scratch_memory_is_refused() -> None:
    parameters = ",\n".join(f"\t.param .u64 kernel_param_{i}" for i in range(3))
    entry = f".visible .entry kernel(\n{parameters}\n)"
    assert "kernel_param_1" not in without_scratch(f"{entry}{{ ld.param kernel_param_0; }}", "kernel", 1)
    with pytest.raises(ValueError, match="reads scratch memory"):
        without_scratch(f"{entry}{{ ld.param kernel_param_2; }}", "kernel", 1)
    with pytest.raises(ValueError, match="has 3 parameters, declared 2"):
        without_scratch(entry, "kernel", 2)


def test_a_process_declares_for_one_architecture() -> None:
    declare_plugins(ARCH)
    with pytest.raises(EngineError, match="for sm_90; build for sm_80 in another process"):
        declare_plugins(80)
