"""Engine against reference: the measured error and the bound it must keep (design section 6)."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vino_export.int8 import quantised_weights, with_int8_products
from vino_rt.backends.base import INT8_ATTENTION, ROUNDED, Engine, Kind
from vino_rt.backends.eager import load_module
from vino_rt.errors import EngineError
from vino_rt.kernels import int8_attention_operations
from vino_rt.models.vino.ops import PLAIN, operations

MARGIN = 2.0
ROUNDING = 16 * 2.0**-23
"""Sixteen units in the last place of the largest value: libraries add up a row of products in different orders, and
over the few rows of an example either may be luckier than the other. A wrong result is off by 1e-2 (spec section 8).
"""

ALIKE = 0.25
"""How far an engine with int8 products may be from PyTorch rounding alike, as a share of what that rounding costs.

Root mean squares, median over the examples. The two differ where a value lies within float32's last digits of the
border between two steps, 0.00 to 0.11 for most examples; where it was the largest of a tensor all its steps move, 0.25.
"""


@dataclass(frozen=True)
class Verdict:
    """Largest absolute error of an engine over a kind's examples, and the bound at that place."""

    error: float
    bound: float


def verify(kind: Kind, engine: Engine, weights: Mapping[str, Tensor]) -> Verdict:
    """Run every example through the engine, the eager module, and the eager module in float64, the judge.

    An output may be off by twice what the eager module, in the kind's own type, is off, plus `ROUNDING` of the judge's
    largest value; two runs of the engine must agree bit for bit. Raises EngineError naming the output that breaks
    either rule.

    For an engine with int8 products the eager module rounds the same values, so the bound is twice
    what these steps of rounding do to this kind on these weights; the judge rounds nothing, so the error is the whole
    loss. So wide a bound would hide mistakes: such an engine must also be near the eager module, see `ALIKE`.
    """
    eager = with_int8_products(load_module(kind, weights), quantised_weights(kind))
    judge = load_module(kind, {name: tensor.double() for name, tensor in weights.items()})
    worst = Verdict(0.0, 0.0)
    shares: dict[str, list[float]] = {spec.name: [] for spec in kind.spec.outputs}
    for number, example in enumerate(kind.examples()):
        given = engine.fit(**example)
        outputs, again = ([out.cpu() for out in engine.run(**given)] for _ in range(2))
        truth = _call(judge, {n: t.double() if t.is_floating_point() else t for n, t in example.items()})
        with operations(int8_attention_operations() if kind.precision == INT8_ATTENTION else PLAIN):
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
            shares[spec.name].append(_rms(outputs[i] - ours[i]) / (_rms(ours[i].double() - truth[i]) or 1.0))
            if error * worst.bound >= worst.error * allowed:
                worst = Verdict(error, allowed)
    if kind.precision in ROUNDED:
        _refuse_other_rounding(kind, shares)
    return worst


def _refuse_other_rounding(kind: Kind, shares: Mapping[str, Sequence[float]]) -> None:
    for name, found in shares.items():
        if (share := statistics.median(found)) > ALIKE:
            raise EngineError(
                f"{kind.name}: output {name!r} is {share:.3g} of its rounding away from PyTorch rounding alike, "
                f"allowed {ALIKE}; the engine is not stored"
            )


@torch.inference_mode()
def _call(module: torch.nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    outputs = module(*inputs.values())
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _peak(difference: Tensor) -> float:
    return float(difference.abs().max()) if difference.numel() else 0.0


def _rms(difference: Tensor) -> float:
    return float(difference.double().square().mean().sqrt()) if difference.numel() else 0.0
