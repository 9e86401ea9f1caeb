"""Building AOTInductor packages: what the exporter changes in a program, and what it says where it cannot compile."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.exc import CppCompileError

from vino_export import package as exporter
from vino_export.package import write_package
from vino_rt.backends import aotinductor
from vino_rt.backends.aotinductor import linear, processor
from vino_rt.backends.eager import EagerBackend
from vino_rt.backends.recipe import load_recipe
from vino_rt.backends.store import Store
from vino_rt.build import build
from vino_rt.engines import kinds_of, layer_weights
from vino_rt.errors import EngineError
from vino_rt.model_dir import ModelDir


def test_no_compiler_at_build_time(tiny_model: ModelDir, tmp_path: Path) -> None:
    # The library's settings do not survive pytest's own patching: it deletes what it did not find set.
    without = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    message = r"needs a C\+\+ compiler; install g\+\+.*CXX.*runs without one"
    recipe = load_recipe("aotinductor")
    with without, pytest.raises(EngineError, match=message):
        build(tiny_model, recipe, Store(tmp_path / "store"))
    assert not (tmp_path / "store").exists(), "it is refused before anything is built"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (CppCompileError(["g++"], "x" * 9999 + "cc1plus: killed"), "cannot compile it: .*cc1plus: killed"),
        (OSError(28, "No space left on device"), "cannot compile in .*No space left on device; make room there"),
    ],
)
def test_a_compiler_that_fails(
    tiny_model: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    with pytest.raises(EngineError, match=f"(?s)^patch: .*{message}"):
        write_package(kinds_of(tiny_model)["patch"], tmp_path / "engine.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("gelu", [True, False])
def test_linear_is_linear(monkeypatch: pytest.MonkeyPatch, rows: int, onednn: bool, gelu: bool) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    x, weight, bias = torch.randn(3, rows).t(), torch.randn(7, 3), torch.randn(7)
    out, plain = linear(x, weight, bias, gelu), x @ weight.t() + bias
    assert out.shape == (rows, 7)
    assert torch.allclose(out, torch.nn.functional.gelu(plain, approximate="tanh") if gelu else plain, atol=1e-6)


@pytest.mark.parametrize("gelu", [True, False])
def test_bfloat16_does_without_onednn_where_the_processor_lacks_it(monkeypatch: pytest.MonkeyPatch, gelu: bool) -> None:
    def refuse(*_: object) -> Tensor:
        raise RuntimeError("could not create a primitive descriptor")

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", refuse)
    x, weight, bias = (torch.randn(*shape).bfloat16() for shape in ((5, 3), (7, 3), (7,)))
    plain = torch.nn.functional.linear(x, weight, bias)
    wanted = torch.nn.functional.gelu(plain, approximate="tanh") if gelu else plain
    assert torch.equal(linear(x, weight, bias, gelu), wanted)
    with pytest.raises(RuntimeError, match="primitive descriptor"):
        linear(x.float(), weight.float(), bias.float(), gelu)


class TwoUses(torch.nn.Module):
    """One product of which only GELU is used, one that is used as it is too, one under the exact form."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        alone, shared, exact = (torch.ops.vino.linear(x, weight, bias, False) for _ in range(3))
        tanh = [torch.nn.functional.gelu(product, approximate="tanh") for product in (alone, shared)]
        total: Tensor = tanh[0] + tanh[1] + shared + torch.nn.functional.gelu(exact)
        return total


def test_gelu_is_folded_only_where_nothing_else_reads_the_product() -> None:
    inputs = torch.randn(3, 5), torch.randn(5, 5), torch.randn(5)
    program = torch.export.export(TwoUses(), inputs)
    exporter._fold_gelu(program.graph_module)
    products = program.graph.find_nodes(op="call_function", target=torch.ops.vino.linear.default)
    assert sorted(node.args[3] for node in products) == [False, False, True]
    assert len(program.graph.find_nodes(op="call_function", target=torch.ops.aten.gelu.default)) == 2
    assert torch.allclose(program.module()(*inputs), TwoUses()(*inputs), atol=1e-6)


def test_the_processor_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = []
    for text in ("flags : avx avx2\n", "flags : avx2 avx\n", "flags : avx\n", "Features : asimd\n", ""):
        (tmp_path / "cpuinfo").write_text(f"model name : x\n{text}")
        monkeypatch.setattr(aotinductor, "CPUINFO", tmp_path / "cpuinfo")
        found.append(processor.__wrapped__())
    assert found[0] == found[1]
    assert len(set(found)) == 4
    assert torch.backends.cpu.get_cpu_capability() in found[0]


def test_eager_takes_what_a_package_takes(tiny_model: ModelDir) -> None:
    kind = kinds_of(tiny_model)["single_block"]
    described = aotinductor.describe(kind)["weights"]
    weights = layer_weights(tiny_model, kind, 0)
    assert {name: list(tensor.shape) for name, tensor in weights.items()} == described
    assert len(EagerBackend().open(kind, None, [weights])) == 1
