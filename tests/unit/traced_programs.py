"""Programs exported for a GPU, on tensors without storage; for a process whose kernels are Triton's own.

Not collected with the other tests: those of the kernels leave the interpreter's in their place. `test_aotinductor_cuda`
runs this file in a process of its own.
"""

from typing import Any

import pytest
import torch
from torch._functorch.aot_autograd import aot_export_module
from torch._higher_order_ops.triton_kernel_wrap import triton_kernel_wrapper_functional

from vino_export.package import program_for
from vino_rt.engines import kinds_of
from vino_rt.model_dir import ModelDir

GPU = torch.device("cuda", 0)
KERNELS = {"boundary_attention", "gated_residual", "norm_modulate", "qk_norm_rope"}


def called(program: torch.export.ExportedProgram, namespace: str) -> set[str]:
    """Operators of a namespace in a program."""
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    found = [t for t in targets if isinstance(t, torch._ops.OpOverload) and t.namespace == namespace]
    return {str(target).split(".")[1] for target in found}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("single_block", KERNELS),
        ("dual_block", KERNELS),
        ("embed", {"boundary_attention"}),
        ("head", {"norm_modulate"}),
    ],
)
def test_the_program_for_a_gpu_holds_our_kernels(tiny_model: ModelDir, name: str, expected: set[str]) -> None:
    kind = kinds_of(tiny_model)[name].at("bfloat16")
    program = program_for(kind, GPU)
    assert called(program, "vino_kernels") == expected
    assert called(program, "vino") == set()
    tensors = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]
    assert {tensor.device for tensor in tensors} == {GPU}
    weights = tensors[len(kind.spec.inputs) :]
    assert {tensor.dtype for tensor in weights} == {torch.bfloat16}


def test_kernels_are_launched_for_every_length(tiny_model: ModelDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    program = program_for(kinds_of(tiny_model)["single_block"].at("bfloat16"), GPU)
    given = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]
    mode = given[0].fake_mode
    before = len(mode.shape_env.guards)
    opened: Any
    with mode, torch.no_grad():
        opened, _ = aot_export_module(program.graph_module, given, trace_joint=False)
    launches = [node for node in opened.graph.nodes if node.target is triton_kernel_wrapper_functional]
    assert len(launches) == len(KERNELS)
    assert all(isinstance(node.kwargs["grid"][0][0], torch.fx.Node) for node in launches), "grids follow the rows"
    added = [str(guard.expr) for guard in mode.shape_env.guards[before:]]
    assert [guard for guard in added if not guard.startswith("Eq(s")] == [], "nothing is decided by a length"
