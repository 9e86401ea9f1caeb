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
from vino_export.tensorrt.progress import BuildStep
from vino_export.tensorrt.write import PlanOptions
from vino_export.verify import verify
from vino_rt.backends.base import Engine, Kind
from vino_rt.backends.tensorrt.context import Contexts
from vino_rt.backends.tensorrt.description import read_description
from vino_rt.backends.tensorrt.dynamo import OneRowEngine, TorchTensorRtBackend, load_builder
from vino_rt.bucket import Bucket
from vino_rt.errors import Cancelled, EngineError

SETTINGS = frozenset({
    "require_full_compilation", "disable_tf32", "max_aux_streams", "optimization_level", "attn_bias_is_causal",
    "timing_cache_path", "cache_built_engines", "reuse_cached_engines",
})  # fmt: skip
"""Some of the keywords of `convert_exported_program_to_serialized_trt_engine`, read in release 2.14."""


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
        **settings: Any,
    ) -> bytes:  # fmt: skip
        if self.refuses:
            raise RuntimeError("no converter for aten.strange")
        assert set(settings) <= SETTINGS, "release 2.14 ignores a setting that it does not know"
        assert settings["require_full_compilation"]
        assert settings["disable_tf32"]
        assert settings["max_aux_streams"] == 0
        assert settings["attn_bias_is_causal"] is False, "the library would drop the mask and attend causally"
        assert settings["cache_built_engines"] is settings["reuse_cached_engines"] is False, (
            "they are read by unpickling"
        )
        timings = Path(settings["timing_cache_path"])
        assert timings.parent.is_dir()
        timings.write_bytes(b"timed")
        self.told = {
            "program": exported_program, "inputs": arg_inputs, "names": arg_input_binding_names,
            "outputs": output_binding_names, "timings": timings,
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
    monkeypatch.setattr(dynamo, "make_logger", lambda library: None)
    monkeypatch.setattr(dynamo, "layers_of", lambda library, logger, kind, plan: {"Layers": [kind.name, plan.decode()]})
    return standin


def options(**changes: Any) -> PlanOptions:
    return PlanOptions(**{"buckets": (BUCKET,), "unit": UNIT, "area": AREA, "target": TARGET, **changes})


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
    assert builder.told["timings"] == tmp_path / "cache" / "timing-torch-2.14.0-sm_90-a-GPU.cache"
    said = read_description(tmp_path / "engine.plan")
    assert said.layers == {"Layers": ["head", "plan"]}
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
    taken = OneRowEngine(Contexts(plan), {})
    (nothing,) = taken.run(x=rows(0, device))
    assert nothing.shape == (0, 4)
    (given,) = engine.contexts[0].shapes.values()
    assert given == (1, 4)
    some = rows(3, device)
    assert torch.equal(taken.run(x=some)[0], 2 * some)


def test_without_a_directory_it_remembers_nothing(builder: Builder, tmp_path: Path) -> None:
    kind = small_kinds()["head"]
    write_dynamo_plan(kind, tmp_path / "engine.plan", first_weights(kind), options())
    assert not builder.told["timings"].exists(), "not where other users of the machine read and write"


def test_a_mask_that_is_too_large(builder: Builder, tmp_path: Path) -> None:
    kind = small_kinds("bfloat16")["single_block"]
    long = Bucket(frames=85, height=480, width=848, references=1664, text_tokens=1280)
    with pytest.raises(EngineError, match=r"single_block: .* 75848 x 75848 elements.*recipe tensorrt"):
        write_dynamo_plan(kind, tmp_path / "engine.plan", {}, options(buckets=(long,)))
    assert not builder.told


def test_it_can_be_stopped_before_it_begins(builder: Builder, tmp_path: Path) -> None:
    def stop(step: BuildStep) -> None:
        assert step == BuildStep("torch-tensorrt", 0, 1)
        raise Cancelled("enough")

    kind = small_kinds()["head"]
    with pytest.raises(Cancelled, match="enough"):
        write_dynamo_plan(kind, tmp_path / "engine.plan", first_weights(kind), options(on_step=stop))
    assert not builder.told


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
