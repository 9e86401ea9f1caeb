"""Verify an engine against the reference: measure its error and check it against a bound (MODEL.md section 8)."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vino_export.int8 import quantised_weights, with_int8_linears
from vino_rt.backends.base import INT8_ATTENTION, QUANTISED, Engine, Kind, run_elsewhere
from vino_rt.backends.eager import load_module
from vino_rt.errors import EngineError
from vino_rt.kernels import int8_attention_operations
from vino_rt.models.vino.ops import PLAIN, operations

MARGIN = 2.0
ROUNDING = 16 * 2.0**-23
"""Relative to the largest value: 16 units in the last place of float32. Libraries sum products in different orders, so
on the few rows of an example either side may happen to be more exact. A mistake gives errors of 1e-2 (MODEL.md section
8).
"""

ALIKE = 0.25
"""Most that an int8 engine may differ from the same arithmetic in PyTorch, relative to the quantisation error.

Both are root mean squares; the median over the examples counts. The two differ where a value lies so close to the
border between two quantisation levels that float32 rounding decides: a ratio of 0.00 to 0.11 in most examples. If that
value is the largest of a tensor, the scale and all levels change: up to 0.25.
"""


@dataclass(frozen=True)
class Verdict:
    """Absolute error and bound of the output that comes closest to its bound, over all of a kind's examples."""

    error: float
    bound: float
    rounding: float = 0.0
    """Largest error of the eager module, relative to the largest value of the reference's output."""


def verify(kind: Kind, engine: Engine, weights: Mapping[str, Tensor]) -> Verdict:
    """Compare the engine with the eager module in float64, the reference, on every example.

    The error of an output may be at most twice that of the eager module in the kind's own dtype, plus `ROUNDING` times
    the reference's largest value. Two runs of the engine must agree bit for bit. Raises EngineError naming the output
    that breaks either rule.

    For an int8 engine, the eager module quantises the same tensors, so the bound is twice the quantisation error of
    this kind on these weights; the reference does not quantise, so the error is the whole loss. Since such a wide bound
    could hide mistakes, the engine must also be close to the eager module, see `ALIKE`.
    """
    eager = with_int8_linears(load_module(kind, weights), quantised_weights(kind))
    judge = load_module(kind, {name: tensor.double() for name, tensor in weights.items()})
    worst, rounding = Verdict(0.0, 0.0), 0.0
    shares: dict[str, list[float]] = {spec.name: [] for spec in kind.spec.outputs}
    for number, example in enumerate(kind.examples()):
        given = engine.fit(**example)
        outputs, again = ([out.cpu() for out in engine.run(**given)] for _ in range(2))
        truth = call(judge, {n: t.double() if t.is_floating_point() else t for n, t in example.items()})
        with operations(int8_attention_operations() if kind.precision == INT8_ATTENTION else PLAIN):
            ours = call(eager, example)
        for i, spec in enumerate(kind.spec.outputs):
            where = f"{kind.name}: output {spec.name!r} of verification input {number}"
            if outputs[i].shape != truth[i].shape:
                shapes = f"{tuple(outputs[i].shape)} instead of {tuple(truth[i].shape)}"
                raise EngineError(f"{where} has shape {shapes}; {_refused(kind)}")
            if not torch.equal(outputs[i], again[i]):
                raise EngineError(f"{where} differs between two runs; {_refused(kind)}")
            error = peak(outputs[i].double() - truth[i])
            off = peak(ours[i].double() - truth[i])
            allowed = MARGIN * off + ROUNDING * peak(truth[i])
            rounding = max(rounding, off / (peak(truth[i]) or 1.0))
            if not error <= allowed:
                raise EngineError(f"{where} is off by {error:.3g}, allowed {allowed:.3g}; {_refused(kind)}")
            shares[spec.name].append(_rms(outputs[i] - ours[i]) / (_rms(ours[i].double() - truth[i]) or 1.0))
            if error * worst.bound >= worst.error * allowed:
                worst = Verdict(error, allowed)
    if kind.precision in QUANTISED:
        _refuse_other_rounding(kind, shares)
    return replace(worst, rounding=rounding)


def _refuse_other_rounding(kind: Kind, shares: Mapping[str, Sequence[float]]) -> None:
    for name, found in shares.items():
        if (share := statistics.median(found)) > ALIKE:
            raise EngineError(
                f"{kind.name}: output {name!r} differs from the same quantisation in PyTorch by {share:.3g} of the "
                f"quantisation error, allowed {ALIKE}; {_refused(kind)}"
            )


def _refused(kind: Kind) -> str:
    return f"the engine is not stored: report it, and {run_elsewhere(kind.name)}"


@torch.inference_mode()
def call(module: torch.nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Run a module without gradients; returns a tuple even for a single output."""
    outputs = module(*inputs.values())
    return outputs if isinstance(outputs, tuple) else (outputs,)


def peak(difference: Tensor) -> float:
    """The largest absolute value; 0 for an empty tensor."""
    return float(difference.abs().max()) if difference.numel() else 0.0


def _rms(difference: Tensor) -> float:
    return float(difference.double().square().mean().sqrt()) if difference.numel() else 0.0
