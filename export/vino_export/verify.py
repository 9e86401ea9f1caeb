"""Engine against reference: the measured error and the bound it must keep (design section 6)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vino_rt.backends.base import Engine, Kind
from vino_rt.backends.eager import load_module
from vino_rt.errors import EngineError

MARGIN = 2.0
ROUNDING = 16 * 2.0**-23
"""Sixteen units in the last place of the largest value: libraries add up a row of products in different orders, and
over the few rows of an example either may be luckier than the other. A wrong result is off by 1e-2 (spec section 8).
"""


@dataclass(frozen=True)
class Verdict:
    """Largest absolute error of an engine over a kind's examples, and the bound at that place."""

    error: float
    bound: float


def verify(kind: Kind, engine: Engine, weights: Mapping[str, Tensor]) -> Verdict:
    """Run every example through the engine, the eager module, and the eager module in float64, the judge.

    An output may be off by twice what eager float32 is off, plus `ROUNDING` of the judge's largest value; two runs of
    the engine must agree bit for bit. Raises EngineError naming the output that breaks either rule.
    """
    eager = load_module(kind, weights)
    judge = load_module(kind, {name: tensor.double() for name, tensor in weights.items()})
    worst = Verdict(0.0, 0.0)
    for number, example in enumerate(kind.examples()):
        outputs, again = engine.run(**example), engine.run(**example)
        truth = _call(judge, {n: t.double() if t.is_floating_point() else t for n, t in example.items()})
        ours = _call(eager, example)
        for i, spec in enumerate(kind.spec.outputs):
            where = f"{kind.name}: output {spec.name!r} of verification input {number}"
            if outputs[i].shape != truth[i].shape:
                shapes = f"{tuple(outputs[i].shape)} instead of {tuple(truth[i].shape)}"
                raise EngineError(f"{where} has shape {shapes}; the engine is not stored")
            if not torch.equal(outputs[i], again[i]):
                raise EngineError(f"{where} differs between two runs; the engine is not stored")
            error = _peak(outputs[i].double() - truth[i])
            allowed = MARGIN * _peak(ours[i].double() - truth[i]) + ROUNDING * _peak(truth[i])
            if not error <= allowed:
                raise EngineError(f"{where} is off by {error:.3g}, allowed {allowed:.3g}; the engine is not stored")
            if error * worst.bound >= worst.error * allowed:
                worst = Verdict(error, allowed)
    return worst


@torch.inference_mode()
def _call(module: torch.nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    outputs = module(*inputs.values())
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _peak(difference: Tensor) -> float:
    return float(difference.abs().max()) if difference.numel() else 0.0
