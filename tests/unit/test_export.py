"""The canonical ONNX files: what goes in and out, what must not be in them, and mistakes that verification refuses."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

from tests.unit.models import Built
from vino_export import trace
from vino_export.functions import DOMAIN, IMPORTS, bodies
from vino_export.trace import write_onnx
from vino_export.verify import verify
from vino_rt.backends.base import Engine, Kind
from vino_rt.backends.eager import EagerBackend
from vino_rt.backends.onnxruntime import OnnxRuntimeBackend
from vino_rt.engines import engine_key, kinds_of, layer_weights
from vino_rt.errors import EngineError
from vino_rt.model_dir import ModelDir
from vino_rt.plan import MAX_BRANCHES

ROOT = Path(__file__).parents[2]
OPS = ("NormModulate", "QkNormRope", "BoundaryAttention", "CausalAttention", "FrameAttention")
NODES = {
    "vlm_vision_block": {"FrameAttention": 1},
    "vlm_layer": {"CausalAttention": 1},
    "head": {"NormModulate": 1},
    "dual_block": {"NormModulate": 4, "QkNormRope": 4, "BoundaryAttention": 1},
    "single_block": {"NormModulate": 1, "QkNormRope": 2, "BoundaryAttention": 1},
    "embed": {"BoundaryAttention": 1},
}
KINDS = (
    "vlm_vision_block", "vlm_layer", "connector", "patch", "text", "embed", "dual_block", "single_block", "head",
    "vae_encode", "vae_decode",
)  # fmt: skip
Body = Callable[[], onnx.FunctionProto]


@pytest.fixture(scope="module")
def kinds(tiny_model: ModelDir) -> dict[str, Kind]:
    return kinds_of(tiny_model)


@pytest.fixture(scope="module")
def artefacts(tiny_model: ModelDir, built: Built, kinds: Mapping[str, Kind]) -> dict[str, Path]:
    backend = OnnxRuntimeBackend()
    keys = {name: engine_key(tiny_model, built.recipe, kinds[name], backend) for name in KINDS}
    return {name: built.store.find(key)[1] for name, key in keys.items()}


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("name", KINDS)
def test_tensors(artefacts: Mapping[str, Path], kinds: Mapping[str, Kind], name: str) -> None:
    graph, kind = onnx.load(artefacts[name]).graph, kinds[name]
    with torch.device("meta"):
        weights = kind.build().state_dict()
    assert [value.name for value in graph.input] == [spec.name for spec in kind.spec.inputs] + list(weights)
    assert [value.name for value in graph.output] == [spec.name for spec in kind.spec.outputs]
    by_name = {value.name: value for value in graph.input}
    for spec in kind.spec.inputs:
        element = {"float32": "FLOAT", "int32": "INT32", "int64": "INT64"}[spec.dtype]
        assert by_name[spec.name].type.tensor_type.elem_type == getattr(onnx.TensorProto, element)
        for wanted, found in zip(spec.dims, dims(by_name[spec.name]), strict=True):
            assert isinstance(found, str) if isinstance(wanted, str) else found == wanted, f"{spec.name}: {found}"
    assert all(dims(by_name[key]) == list(tensor.shape) for key, tensor in weights.items())


@pytest.mark.parametrize("name", KINDS)
def test_no_weights_and_no_trace_of_this_machine(artefacts: Mapping[str, Path], name: str) -> None:
    model, content = onnx.load(artefacts[name], load_external_data=False), artefacts[name].read_bytes()
    assert all(len(tensor.SerializeToString()) < 1000 for tensor in model.graph.initializer)
    constants = [a.t for node in model.graph.node for a in node.attribute if a.type == onnx.AttributeProto.TENSOR]
    assert all(len(tensor.SerializeToString()) < 1000 for tensor in constants)
    assert len(content) < 200_000
    assert [path.name for path in artefacts[name].parent.iterdir() if path.suffix != ".json"] == [artefacts[name].name]
    for word in (str(ROOT), sys.prefix, str(Path.home()), "site-packages", "vino_rt", ".py", "stack_trace"):
        assert word.encode() not in content, word


@pytest.mark.parametrize("name", KINDS)
def test_domain_nodes_and_their_bodies(artefacts: Mapping[str, Path], name: str) -> None:
    model = onnx.load(artefacts[name])
    onnx.checker.check_model(model, full_check=False)
    assert {(f.domain, f.name) for f in model.functions} == {(DOMAIN, name) for name in OPS}
    assert {entry.domain: entry.version for entry in model.opset_import} == IMPORTS
    found = [node.op_type for node in model.graph.node if node.domain == DOMAIN]
    assert {op: found.count(op) for op in set(found)} == NODES.get(name, {})
    assert {node.domain for node in model.graph.node} <= {"", DOMAIN}, "another domain cannot be run everywhere"


def test_the_same_file_twice(kinds: Mapping[str, Kind], artefacts: Mapping[str, Path], tmp_path: Path) -> None:
    write_onnx(kinds["single_block"], tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == artefacts["single_block"].read_bytes()


def body_of(name: str) -> onnx.FunctionProto:
    return next(body for body in bodies() if body.name == name)


def without_turn() -> onnx.FunctionProto:
    body = body_of("QkNormRope")
    next(node for node in body.node if node.op_type == "RotaryEmbedding").attribute[0].i = 0
    return body


def without_norm() -> onnx.FunctionProto:
    body = body_of("QkNormRope")
    norm = next(node for node in body.node if node.op_type == "RMSNormalization")
    next(attribute for attribute in norm.attribute if attribute.name == "epsilon").f = 1.0
    return body


def with_one_row_more() -> onnx.FunctionProto:
    body = body_of("BoundaryAttention")
    # The keys of the first branch reach into the second.
    cut = next(node for node in body.node if node.output[0] == "k0")
    cut.input[2] = "bound2"
    return body


def with_values_of_keys() -> onnx.FunctionProto:
    body = body_of("BoundaryAttention")
    next(node for node in body.node if node.op_type == "MultiHeadAttention").input[2] = "k0"
    return body


def with_visible_padding() -> onnx.FunctionProto:
    body = body_of("BoundaryAttention")
    next(node for node in body.node if node.op_type == "Concat").input[MAX_BRANCHES] = "padding"
    return body


MISTAKES = (without_turn, without_norm, with_values_of_keys, with_visible_padding, with_one_row_more)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_an_engine_are_refused(
    tiny_model: ModelDir, kinds: Mapping[str, Kind], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mistake: Body
) -> None:
    wrong = mistake()
    monkeypatch.setattr(trace, "bodies", lambda: [wrong if f.name == wrong.name else f for f in bodies()])
    kind, path = kinds["single_block"], tmp_path / "engine.onnx"
    write_onnx(kind, path)
    weights = layer_weights(tiny_model, kind, 0)
    (engine,) = OnnxRuntimeBackend(1).open(kind, path, [weights])
    with pytest.raises(EngineError, match="single_block"):
        verify(kind, engine, weights)


class Bent(Engine):
    """The reference with its outputs bent."""

    def __init__(self, kind: Kind, engine: Engine, bend: Callable[[list[Tensor]], Any]) -> None:
        super().__init__(kind.spec)
        self._engine, self._bend = engine, bend

    def _run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        outputs = [output.clone() for output in self._engine.run(**inputs)]
        self._bend(outputs)
        return tuple(outputs)


def add(value: float) -> Callable[[list[Tensor]], None]:
    def bend(outputs: list[Tensor]) -> None:
        outputs[-1].view(-1)[3] += value * outputs[-1].abs().max()

    return bend


def bent(kinds: Mapping[str, Kind], model: ModelDir, bend: Callable[[list[Tensor]], Any]) -> tuple[Kind, Engine, Any]:
    kind = kinds["connector"]
    weights = layer_weights(model, kind, 0)
    (engine,) = EagerBackend().open(kind, None, [weights])
    return replace(kind, examples=lambda: kind.examples()[:1]), Bent(kind, engine, bend), weights


@pytest.mark.parametrize("value", [0.0, 1e-6, -1e-6])
def test_rounding_passes(kinds: Mapping[str, Kind], tiny_model: ModelDir, value: float) -> None:
    verdict = verify(*bent(kinds, tiny_model, add(value)))
    assert 0 < verdict.error <= verdict.bound
    assert verdict.bound < 1e-4


def drop_a_row(outputs: list[Tensor]) -> None:
    outputs[-1] = outputs[-1][:-1]


def keep_one_row(outputs: list[Tensor]) -> None:
    outputs[-1] = outputs[-1][:1]


def shuffle_bits(outputs: list[Tensor]) -> None:
    outputs[0] += 1e-7 * torch.rand(outputs[0].shape)


REFUSED: dict[str, tuple[Callable[[list[Tensor]], Any], str]] = {
    "above": (add(2e-5), "output 'boundary' of verification input 0 is off by .* allowed"),
    "below": (add(-2e-5), "is off by"),
    "infinite": (add(float("inf")), "off by inf"),
    "nan": (add(float("nan")), "output 'boundary'"),
    "swapped": (lambda outputs: outputs[0].copy_(outputs[0].flip(0)), "output 'text' .* is off by"),
    "row": (drop_a_row, r"output 'boundary' .* has shape \(3, 48\) instead of \(4, 48\)"),
    "broadcast": (keep_one_row, r"has shape \(1, 48\)"),
    "unsteady": (shuffle_bits, "output 'text' .* differs between two runs"),
}


@pytest.mark.parametrize(("bend", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_outputs_are_refused(
    kinds: Mapping[str, Kind], tiny_model: ModelDir, bend: Callable[[list[Tensor]], Any], message: str
) -> None:
    with pytest.raises(EngineError, match=f"connector: .*{message}.*not stored"):
        verify(*bent(kinds, tiny_model, bend))
