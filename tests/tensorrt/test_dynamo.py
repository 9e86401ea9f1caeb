"""The way through torch-tensorrt: the program it is given, what it is told, and what is said where it is missing.

The stand-in takes the keywords of release 2.14; nothing here runs torch-tensorrt.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tensorrt.engines import make_plan, rows
from tests.tensorrt.small import AREA, BUCKET, TARGET, UNIT, first_weights, small_kinds
from vino_export.tensorrt import dynamo
from vino_export.tensorrt.dynamo import plain_program, write_dynamo_plan
from vino_export.tensorrt.write import PlanOptions
from vino_export.verify import verify
from vino_rt.backends.base import Engine, Kind
from vino_rt.backends.tensorrt.description import read_description
from vino_rt.backends.tensorrt.dynamo import OneRowEngine, TorchTensorRtBackend, load_builder
from vino_rt.errors import EngineError


class Builder:
    """Takes what `convert_exported_program_to_serialized_trt_engine` takes of what we give."""

    __version__ = "2.14.0"

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}
        self.dynamo = SimpleNamespace(convert_exported_program_to_serialized_trt_engine=self.convert)
        self.refuses = False

    def Input(self, *, dtype: torch.dtype, name: str, shape: Any = None, profiles: Any = None) -> Any:
        assert (shape is None) != (profiles is None)
        return SimpleNamespace(dtype=dtype, name=name, shape=shape, profiles=profiles)

    def convert(
        self, exported_program: Any, *, arg_inputs: Any, arg_input_binding_names: Any, output_binding_names: Any,
        require_full_compilation: bool, max_aux_streams: int, disable_tf32: bool, **caches: Any,
    ) -> bytes:  # fmt: skip
        if self.refuses:
            raise RuntimeError("no converter for aten.strange")
        assert require_full_compilation
        assert disable_tf32
        assert max_aux_streams == 0
        self.told = {
            "program": exported_program, "inputs": arg_inputs, "names": arg_input_binding_names,
            "outputs": output_binding_names, "caches": caches,
        }  # fmt: skip
        return b"plan"


class Program(Engine):
    """Runs an exported program with weights as arguments."""

    def __init__(self, kind: Kind, weights: dict[str, Tensor]) -> None:
        super().__init__(kind.spec)
        self.module, self.weights = plain_program(kind).module(), list(weights.values())

    def _run(self, inputs: Any) -> tuple[Tensor, ...]:
        outputs = self.module(list(inputs.values()), self.weights)
        return outputs if isinstance(outputs, tuple) else (outputs,)


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    standin = Builder()
    monkeypatch.setattr(dynamo, "load_builder", lambda: standin)
    monkeypatch.setattr(dynamo, "load", lambda: SimpleNamespace(__version__="11.1.0.106"))
    return standin


def options(**changes: Any) -> PlanOptions:
    return PlanOptions(buckets=(BUCKET,), unit=UNIT, area=AREA, target=TARGET, **changes)


@pytest.mark.parametrize("name", ["dual_block", "embed"])
def test_the_program_is_of_plain_operators_and_computes_the_same(name: str) -> None:
    kind = small_kinds()[name]
    weights = first_weights(kind)
    program = Program(kind, weights)
    targets = {str(node.target) for node in plain_program(kind).graph.nodes if node.op == "call_function"}
    assert targets
    assert not [target for target in targets if "vino" in target]
    verdict = verify(kind, program, weights)
    assert 0 <= verdict.error <= verdict.bound < 1e-3


def test_what_the_builder_is_told(builder: Builder, tmp_path: Path) -> None:
    kind = small_kinds("bfloat16")["head"]
    weights = first_weights(kind)
    write_dynamo_plan(kind, tmp_path / "engine.plan", weights, options(timing_cache=tmp_path / "cache"))
    assert (tmp_path / "engine.plan").read_bytes() == b"plan"
    assert builder.told["names"] == ([spec.name for spec in kind.spec.inputs], list(weights))
    assert builder.told["outputs"] == "velocity"
    (joint, modulation, index), fixed = builder.told["inputs"]
    assert joint.profiles[0] == dict.fromkeys(("min_shape", "opt_shape", "max_shape"), (93, 16))
    assert [sorted(profile) for profile in joint.profiles] == [["max_shape", "min_shape", "opt_shape"]] * 2
    assert (modulation.shape, index.dtype) == ((2, 16), torch.int64)
    assert [(x.name, x.shape, x.dtype) for x in fixed] == [
        (n, tuple(w.shape), torch.bfloat16) for n, w in weights.items()
    ]
    caches = builder.told["caches"]
    assert (caches["cache_built_engines"], caches["immutable_weights"]) == (True, False)
    said = read_description(tmp_path / "engine.plan")
    assert (said.variant, said.tensorrt, said.weights) == ("torch-tensorrt 2.14.0", "11.1.0.106", None)


@pytest.mark.parametrize(("name", "row"), [("patch", "patches"), ("connector", "boundary_states")])
def test_no_profile_is_of_no_rows(builder: Builder, tmp_path: Path, name: str, row: str) -> None:
    kind = small_kinds()[name]
    write_dynamo_plan(kind, tmp_path / "engine.plan", first_weights(kind), options())
    (given,) = (value for value in builder.told["inputs"][0] if value.name == row)
    assert min(profile["min_shape"][0] for profile in given.profiles) == 1
    dim = str(next(spec.dims[0] for spec in kind.spec.inputs if spec.name == row))
    said = [profile[dim] for profile in read_description(tmp_path / "engine.plan").profiles]
    names = ("min_shape", "opt_shape", "max_shape")
    assert [tuple(span) for span in said] == [tuple(p[n][0] for n in names) for p in given.profiles]


def test_a_plan_is_given_a_row_in_place_of_none() -> None:
    plan, engine, device = make_plan(least=1)
    taken = OneRowEngine(plan, {}, graphs=False, plain_allowed=False)
    (nothing,) = taken.run(x=rows(0, device))
    assert nothing.shape == (0, 4)
    (given,) = engine.contexts[0].shapes.values()
    assert given == (1, 4)
    some = rows(3, device)
    assert torch.equal(taken.run(x=some)[0], 2 * some)


def test_without_a_directory_it_keeps_no_cache(builder: Builder, tmp_path: Path) -> None:
    kind = small_kinds()["head"]
    write_dynamo_plan(kind, tmp_path / "engine.plan", first_weights(kind), options())
    assert builder.told["caches"]["cache_built_engines"] is False
    assert "engine_cache_dir" not in builder.told["caches"]


def test_what_it_refuses(builder: Builder, tmp_path: Path) -> None:
    builder.refuses = True
    kind = small_kinds()["head"]
    with pytest.raises(EngineError, match=r"head: torch-tensorrt cannot build it: no converter for aten.strange"):
        write_dynamo_plan(kind, tmp_path / "engine.plan", first_weights(kind), options())
    assert not list(tmp_path.iterdir())


def test_a_missing_or_old_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(EngineError, match=r"needs its library.*pip install 'torch-tensorrt>=2.14,<2.16'"):
        load_builder()
    monkeypatch.setitem(sys.modules, "torch_tensorrt", SimpleNamespace(__version__="2.13.0"))
    with pytest.raises(EngineError, match=r"torch-tensorrt 2.13.0 is too old"):
        load_builder()
    assert (TorchTensorRtBackend.name, TorchTensorRtBackend.engine) == ("torch-tensorrt", OneRowEngine)
