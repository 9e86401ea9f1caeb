"""On the library itself and a GPU, which no machine of ours has had: written, and not run yet.

`pytest -m tensorrt` where `tensorrt` is installed.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from torch import Tensor

from tests.tensorrt.small import AREA, BUCKET, UNIT, first_weights, picture_kind, small_config
from vino_export.tensorrt.profiles import profiles_of, shapes
from vino_export.tensorrt.write import PlanOptions, write_plan
from vino_rt.backends.base import DTYPES, Engine, Kind
from vino_rt.backends.cuda_graph import Recorder, Work
from vino_rt.backends.eager import load_module
from vino_rt.backends.tensorrt.backend import TensorRtBackend
from vino_rt.backends.tensorrt.description import read_description
from vino_rt.models.vino.kinds import transformer_kinds

HERE = torch.cuda.is_available() and importlib.util.find_spec("tensorrt") is not None
pytestmark = [
    pytest.mark.tensorrt,
    pytest.mark.skipif(not HERE, reason="needs an NVIDIA GPU and the package tensorrt"),
    pytest.mark.timeout(600),
]
MARGIN, ROUNDING = 2.0, 2.0**-7
"""Design section 6, with a unit in the last place of bfloat16 of the largest value."""

HEAD, AXES = 64, (16, 24, 24)
"""Channels of a head: fused attention takes multiples of 8 from 16 to 256, and nothing else may be built."""


def block_kinds() -> dict[str, Kind]:
    """Of a transformer as wide as that of the bundled model, whose attention TensorRT has kernels for."""
    config = replace(small_config(), num_attention_heads=3, attention_head_dim=HEAD, rope_axes_dim=AXES)
    return {name: kind.at("bfloat16") for name, kind in transformer_kinds(config).items()}


def built(kind: Kind, folder: Path, variant: str) -> Path:
    path, target = folder / "engine.plan", TensorRtBackend().target()
    options = PlanOptions(
        buckets=(BUCKET,), unit=UNIT, area=AREA, target=target, variant=variant, timing_cache=folder / "timings"
    )
    write_plan(kind, path, first_weights(kind), options)
    return path


def inputs_of(kind: Kind, seed: int = 0) -> dict[str, Tensor]:
    """Random values in the bucket's sizes; tables of rows as they must be."""
    torch.manual_seed(seed)
    profile = profiles_of(kind, [BUCKET], UNIT, AREA)[0]
    given = {}
    for spec in kind.spec.inputs:
        shape = shapes(spec, profile)[1]
        given[spec.name] = torch.randn(shape).to(DTYPES[spec.dtype])
        if spec.name == "offsets":
            rows = profile["J"].best
            given["offsets"] = torch.tensor([0, rows // 3, rows // 2, rows - 5, rows], dtype=torch.int32)
        elif spec.name in ("orders", "target_index"):
            given[spec.name] = torch.arange(shape[-1]).expand(shape).contiguous()
    return given


def assert_as_accurate(kind: Kind, engine: Engine, changes: Mapping[str, Tensor] = MappingProxyType({})) -> None:
    """Of two runs, which must give the same bytes. changes: inputs that are not those of `inputs_of`."""
    inputs, weights = {**inputs_of(kind), **changes}, first_weights(kind)
    given = engine.fit(**inputs)
    first, again = engine.run(**given), engine.run(**given)
    with torch.inference_mode():
        wide = {n: x.double() if x.is_floating_point() else x for n, x in inputs.items()}
        truth = load_module(kind, {n: w.double() for n, w in weights.items()})(*wide.values())
        plain = load_module(kind, weights)(*inputs.values())
    truths, plains = (x if isinstance(x, tuple) else (x,) for x in (truth, plain))
    for got, same, judge, exact in zip(first, again, plains, truths, strict=True):
        assert torch.equal(got, same)
        error, allowed = ((x.cpu().double() - exact).abs().max() for x in (got, judge))
        assert error <= MARGIN * allowed + ROUNDING * exact.abs().max()


@pytest.mark.parametrize("variant", ["native", "plugin"])
@pytest.mark.parametrize("name", ["single_block", "dual_block", "head"])
def test_a_plan_computes_the_same(tmp_path: Path, name: str, variant: str) -> None:
    kind = block_kinds()[name]
    path = built(kind, tmp_path, variant)
    (engine,) = TensorRtBackend().open(kind, path, [first_weights(kind)])
    assert_as_accurate(kind, engine)
    engine.close()
    told = str(read_description(path).layers)
    if variant == "plugin" and name != "head":
        assert "BoundaryAttention" in told


@pytest.mark.parametrize("variant", ["native", "plugin"])
def test_segments_of_no_rows(tmp_path: Path, variant: str) -> None:
    """A request of one branch leaves the table's other segments empty, and its padding where its bucket is full."""
    kind = block_kinds()["single_block"]
    (engine,) = TensorRtBackend().open(kind, built(kind, tmp_path, variant), [first_weights(kind)])
    rows = profiles_of(kind, [BUCKET], UNIT, AREA)[0]["J"].best
    for cuts in ([0, rows, rows, rows, rows], [0, rows - 7, rows - 7, rows - 7, rows], [0, 9, 9, 40, rows]):
        assert_as_accurate(kind, engine, {"offsets": torch.tensor(cuts, dtype=torch.int32)})


def test_stripped_weights_come_back(tmp_path: Path) -> None:
    kind = picture_kind()
    path = built(kind, tmp_path, "native")
    (engine,) = TensorRtBackend().open(kind, path, [first_weights(kind)])
    assert_as_accurate(kind, engine)


def test_layers_have_their_own_weights(tmp_path: Path) -> None:
    kind = block_kinds()["head"]
    path = built(kind, tmp_path, "native")
    other = {name: torch.zeros_like(tensor) for name, tensor in first_weights(kind).items()}
    own, silent = TensorRtBackend().open(kind, path, [first_weights(kind), other])
    given = own.fit(**inputs_of(kind))
    assert own.run(**given)[0].abs().max() > 0
    assert silent.run(**given)[0].abs().max() == 0


def layers_of(kind: Kind, folder: Path, count: int) -> list[Engine]:
    """Layers of a kind with weights that differ."""
    first = first_weights(kind)
    weights = [{name: tensor * (1 + layer / 8) for name, tensor in first.items()} for layer in range(count)]
    return TensorRtBackend().open(kind, built(kind, folder, "native"), weights)


def through(layers: Sequence[Engine], given: Mapping[str, Tensor]) -> Tensor:
    """Layer after layer, each on the output of the one before it; modulations are slices of one table, as in a step."""
    joint, rest = given["joint"], {n: x for n, x in given.items() if n not in ("joint", "modulation")}
    table = given["modulation"].repeat(len(layers), 1)
    for layer, modulation in zip(layers, torch.split(table, len(given["modulation"])), strict=True):
        (joint,) = layer.run(joint=joint, modulation=modulation, **rest)
    return joint


def recorded(layers: Sequence[Engine], given: Mapping[str, Tensor], out: Tensor) -> Work:
    """What runs the layers again, on what lies in `given` then."""

    def work() -> None:
        out.copy_(through(layers, given))

    return Recorder(layers[0].device)(work)


def test_layers_recorded_as_a_step_is_replay_what_they_launch(tmp_path: Path) -> None:
    """One context for all layers, recorded at other addresses than those of the run before, as the runtime does it."""
    kind = block_kinds()["single_block"]
    layers = layers_of(kind, tmp_path, 3)
    given = layers[0].fit(**inputs_of(kind))
    out = torch.empty_like(given["joint"])
    replay = recorded(layers, given, out)
    for seed in range(3):
        for name, tensor in layers[0].fit(**inputs_of(kind, seed)).items():
            given[name].copy_(tensor)
        out.fill_(torch.nan)
        replay()
        torch.cuda.synchronize()
        assert torch.equal(out, through(layers, given)), "a replay differs from plain launches"


def test_a_recorded_step_outlives_launches_of_another_size(tmp_path: Path) -> None:
    """What other sizes are set to and compute in must not reach into a graph."""
    kind = block_kinds()["single_block"]
    layers = layers_of(kind, tmp_path, 2)
    given = layers[0].fit(**inputs_of(kind))
    out = torch.empty_like(given["joint"])
    replay = recorded(layers, given, out)
    expected = through(layers, given)
    for example in kind.examples():
        through(layers, layers[0].fit(**example))
    replay()
    torch.cuda.synchronize()
    assert torch.equal(out, expected)
