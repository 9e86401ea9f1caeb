"""On the library itself and a GPU, which no machine of ours has had: written, and not run yet.

`pytest -m tensorrt` where `tensorrt` is installed.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tensorrt.small import AREA, BUCKET, UNIT, first_weights, picture_kind, small_kinds
from vino_export.tensorrt.profiles import profiles_of, shapes
from vino_export.tensorrt.write import PlanOptions, write_plan
from vino_rt.backends.base import DTYPES, Engine, Kind
from vino_rt.backends.eager import load_module
from vino_rt.backends.tensorrt.backend import TensorRtBackend
from vino_rt.backends.tensorrt.description import read_description

HERE = torch.cuda.is_available() and importlib.util.find_spec("tensorrt") is not None
pytestmark = [
    pytest.mark.tensorrt,
    pytest.mark.skipif(not HERE, reason="needs an NVIDIA GPU and the package tensorrt"),
    pytest.mark.timeout(600),
]
MARGIN, ROUNDING = 2.0, 2.0**-7
"""Design section 6, with a unit in the last place of bfloat16 of the largest value."""


def built(kind: Kind, folder: Path, variant: str) -> Path:
    path, target = folder / "engine.plan", TensorRtBackend().target()
    options = PlanOptions(
        buckets=(BUCKET,), unit=UNIT, area=AREA, target=target, variant=variant, timing_cache=folder / "timings"
    )
    write_plan(kind, path, first_weights(kind), options)
    return path


def inputs_of(kind: Kind) -> dict[str, Tensor]:
    """Random values in the bucket's sizes; tables of rows as they must be."""
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


def assert_as_accurate(kind: Kind, engine: Engine) -> None:
    """Of two runs, which must give the same bytes: the first launches, the second replays."""
    inputs, weights = inputs_of(kind), first_weights(kind)
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
    kind = small_kinds("bfloat16")[name]
    path = built(kind, tmp_path, variant)
    (engine,) = TensorRtBackend().open(kind, path, [first_weights(kind)])
    assert_as_accurate(kind, engine)
    engine.close()
    told = str(read_description(path).layers)
    if variant == "plugin" and name != "head":
        assert "BoundaryAttention" in told


def test_stripped_weights_come_back(tmp_path: Path) -> None:
    kind = picture_kind()
    path = built(kind, tmp_path, "native")
    (engine,) = TensorRtBackend().open(kind, path, [first_weights(kind)])
    assert_as_accurate(kind, engine)


def test_layers_have_their_own_weights(tmp_path: Path) -> None:
    kind = small_kinds("bfloat16")["head"]
    path = built(kind, tmp_path, "native")
    other = {name: torch.zeros_like(tensor) for name, tensor in first_weights(kind).items()}
    own, silent = TensorRtBackend().open(kind, path, [first_weights(kind), other])
    given = own.fit(**inputs_of(kind))
    assert own.run(**given)[0].abs().max() > 0
    assert silent.run(**given)[0].abs().max() == 0
