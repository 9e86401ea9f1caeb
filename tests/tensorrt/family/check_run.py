"""Opening and running a plan over signature-checked stand-ins: mismatches, weights put back, what a context is told."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

from tests.tensorrt.small import AREA, BUCKET, TARGET, UNIT, FakeDevice, first_weights, picture_kind, small_kinds
from tests.tensorrt.standin import StandIn
from vino_export.tensorrt.profiles import profiles_of, shapes
from vino_rt.backends.base import DTYPES, Kind
from vino_rt.backends.tensorrt.backend import TensorRtBackend
from vino_rt.backends.tensorrt.description import NETWORK, Description, digest, write_description
from vino_rt.backends.tensorrt.library import DTYPES as NAMES
from vino_rt.errors import EngineError, EngineMismatch

HEAD = small_kinds("bfloat16")["head"]


def stored(kind: Kind, folder: Path, version: str, changes: Mapping[str, Any] = MappingProxyType({})) -> Path:
    """A plan with its description, as `write_plan` leaves them."""
    path = folder / "engine.plan"
    path.write_bytes(b"plan")
    facts = {
        "kind": kind.name, "tensorrt": version, "target": TARGET, "variant": "native", "weights": None, "profiles": (),
        "inputs": tuple(spec.name for spec in kind.spec.inputs),
    }  # fmt: skip
    write_description(path, Description(**{**facts, **changes}))
    return path


def answer_for(library: StandIn, kind: Kind, weights: dict[str, torch.Tensor]) -> None:
    """Let engines and contexts tell of the kind's tensors, for one bucket."""
    profile = profiles_of(kind, [BUCKET], UNIT, AREA)[0]
    specs = {spec.name: spec for spec in (*kind.spec.inputs, *kind.spec.outputs)}
    names, mode = [*specs, *weights], library.TensorIOMode
    outputs = {spec.name for spec in kind.spec.outputs}
    types = {name: DTYPES[spec.dtype] for name, spec in specs.items()} | {n: w.dtype for n, w in weights.items()}
    by_type = {dtype: getattr(library.DataType, name) for name, dtype in NAMES.items()}

    def engine_shape(_: Any, name: str) -> tuple[int, ...]:
        if name in weights:
            return tuple(weights[name].shape)
        return tuple(-1 if isinstance(dim, str) else dim for dim in specs[name].dims)

    library.answers |= {
        ("ICudaEngine", "num_io_tensors"): len(names),
        ("ICudaEngine", "num_optimization_profiles"): 1,
        ("ICudaEngine", "get_tensor_name"): lambda _, index: names[index],
        ("ICudaEngine", "get_tensor_mode"): lambda _, name: mode.OUTPUT if name in outputs else mode.INPUT,
        ("ICudaEngine", "get_tensor_dtype"): lambda _, name: by_type[types[name]],
        ("ICudaEngine", "get_tensor_shape"): engine_shape,
        ("ICudaEngine", "get_tensor_location"): library.TensorLocation.DEVICE,
        ("ICudaEngine", "get_tensor_profile_shape"): lambda _, name, profile_index: shapes(specs[name], profile),
        ("ICudaEngine", "get_device_memory_size_for_profile_v2"): 4096,
        ("IExecutionContext", "get_tensor_shape"): lambda _, name: shapes(specs[name], profile)[1],
    }  # fmt: skip


def inputs_of(kind: Kind, device: FakeDevice) -> dict[str, torch.Tensor]:
    profile = profiles_of(kind, [BUCKET], UNIT, AREA)[0]
    return {spec.name: device.empty(shapes(spec, profile)[1], DTYPES[spec.dtype]).zero_() for spec in kind.spec.inputs}


def test_layers_share_a_plan_and_bind_their_own_weights(library: StandIn, tmp_path: Path) -> None:
    weights, device = first_weights(HEAD), FakeDevice()
    answer_for(library, HEAD, weights)
    path = stored(HEAD, tmp_path, str(library.__version__))
    engines = TensorRtBackend(cuda=device).open(HEAD, path, [weights, {n: w.clone() for n, w in weights.items()}])
    assert len(library.named("deserialize_cuda_engine")) == 1
    for engine in engines:
        outputs = engine.run(**inputs_of(HEAD, device))
        assert tuple(outputs[0].shape) == shapes(HEAD.spec.outputs[0], profiles_of(HEAD, [BUCKET], UNIT, AREA)[0])[1]
    strategies = [call["strategy"] for call in library.named("create_execution_context")]
    assert strategies == [library.ExecutionContextAllocationStrategy.USER_MANAGED], "one context, each layer's weights"
    assert {(call["memory"] % 256, call["size"]) for call in library.named("set_device_memory")} == {(0, 4096)}
    addresses = [call["memory"] for call in library.named("set_tensor_address") if call["name"] in weights]
    assert len(addresses) == len(set(addresses)) == 2 * len(weights)
    assert {call["stream_handle"] for call in library.named("execute_async_v3")} == {device.stream}
    told = [name for _, name, _ in library.calls]
    order = [
        told.index(n) for n in ("set_optimization_profile_async", "set_input_shape", "infer_shapes", "execute_async_v3")
    ]
    assert order == sorted(order)


def test_stripped_weights_are_put_back(library: StandIn, tmp_path: Path) -> None:
    kind, device = picture_kind(), FakeDevice()
    weights = first_weights(kind)
    answer_for(library, kind, {})
    path = stored(kind, tmp_path, str(library.__version__), {"weights": digest(weights)})
    path.with_name(NETWORK).write_bytes(b"network")
    TensorRtBackend(cuda=device).open(kind, path, [weights])
    put = {call["name"]: call["size"] for call in library.named("load_initializer")}
    assert put == {name: tensor.nbytes for name, tensor in weights.items()}
    told = [name for _, name, _ in library.calls]
    last = (
        "load_model_proto",
        "load_initializer",
        "refit_model_proto",
        "get_missing_weights",
        "refit_cuda_engine_async",
    )
    order = [told.index(name) for name in last]
    assert order == sorted(order)
    library.answers["Refitter", "get_missing_weights"] = ["conv.bias"]
    with pytest.raises(EngineError, match=r"still lacks weights \['conv.bias'\]"):
        TensorRtBackend(cuda=device).open(kind, path, [weights])
    other = {name: tensor + 1 for name, tensor in weights.items()}
    with pytest.raises(EngineMismatch, match="built with other weights"):
        TensorRtBackend(cuda=device).open(kind, path, [other])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "tail"}, "the plan is for kind 'tail', this is 'head'"),
        ({"tensorrt": "10.0"}, "the plan is for tensorrt '10.0'"),
        ({"target": ("sm_80", "a GPU")}, r"the plan is for target \('sm_80', 'a GPU'\)"),
    ],
)
def test_a_plan_for_something_else(library: StandIn, tmp_path: Path, change: dict[str, Any], told: str) -> None:
    path = stored(HEAD, tmp_path, str(library.__version__), change)
    with pytest.raises(EngineMismatch, match=told):
        TensorRtBackend(cuda=FakeDevice()).open(HEAD, path, [first_weights(HEAD)])


def test_a_plan_that_cannot_be_read(library: StandIn, tmp_path: Path) -> None:
    path = stored(HEAD, tmp_path, str(library.__version__))
    library.answers["Runtime", "deserialize_cuda_engine"] = None
    with pytest.raises(EngineError, match=r"TensorRT cannot read .*it did not say why.*build again"):
        TensorRtBackend(cuda=FakeDevice()).open(HEAD, path, [first_weights(HEAD)])
