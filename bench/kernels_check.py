"""Whether an implementation computes what it should, before it is timed: the accuracy rule on some rows.

Error against the reference in float64 at most twice that of the reference in the same precision, plus its rounding.
Rows of every operation but attention stand alone; of attention, chosen queries see all their keys.
"""

from typing import Any

import torch
from torch import Tensor

from bench.kernels_cases import THETA, Case, axes_of
from vino_kernels.choice.attention import Bounds
from vino_kernels.gated_residual.ref import gated_residual_ref
from vino_kernels.guide_and_step.ref import guide_and_step_ref
from vino_kernels.norm_modulate.ref import FP8_MAX, norm_modulate_ref
from vino_kernels.qk_norm_rope.ref import qk_norm_rope_ref

ROWS = 64
"""How many rows are judged."""


def shares(case: Case, inputs: tuple[Tensor, ...], outputs: dict[str, Any]) -> dict[str, float]:
    """The error of each implementation's output over what is allowed; above 1, or NaN, it is wrong."""
    rows = chosen_rows(case.shape.rows, case.bounds, inputs[0].device)
    plain, exact = (judged(case, inputs, rows, wide=wide) for wide in (False, True))
    found = {}
    for name, made in outputs.items():
        parts = made if isinstance(made, tuple) else (made,)
        found[name] = max(share(taken(one, rows), p, e) for one, p, e in zip(parts, plain, exact, strict=True))
    return found


def taken(x: Tensor, rows: Tensor) -> Tensor:
    """These rows; bytes of float8 are taken as bytes, which every PyTorch can index."""
    return x.view(torch.uint8)[rows].view(x.dtype) if x.dtype.itemsize == 1 else x[rows]


def share(made: Tensor, plain: Tensor, exact: Tensor) -> float:
    """Error over what is allowed; infinite for NaN."""
    rounding = torch.finfo(made.dtype).eps * exact.abs().amax().item()
    error, reference = ((x.double() - exact).abs().amax().item() for x in (made, plain))
    return error / (2 * reference + rounding) if error == error else float("inf")


def chosen_rows(count: int, bounds: Bounds, device: torch.device) -> Tensor:
    """int64, ascending: the first and last row of every run, and others spread over all."""
    edges = {row for rows, _ in bounds.views() for row in (rows.start, rows.stop - 1)}
    spread = {int(i * (count - 1) / max(ROWS - 1, 1)) for i in range(ROWS)}
    return torch.tensor(sorted(edges | spread), device=device)


def judged(case: Case, inputs: tuple[Tensor, ...], rows: Tensor, *, wide: bool) -> tuple[Tensor, ...]:
    """The reference on these rows, in the precision of the inputs or in float64."""

    def of(x: Tensor) -> Tensor:
        return x.double() if wide and x.is_floating_point() else x

    if case.operation == "boundary_attention":
        return (attended(inputs[0], inputs[1], inputs[2], case.bounds, rows, wide=wide),)
    x = of(inputs[0][rows])
    if case.operation == "qk_norm_rope":
        k, weights, positions = of(inputs[1][rows]), (of(inputs[2]), of(inputs[3])), inputs[4][rows]
        return qk_norm_rope_ref(x, k, *weights, positions, axes_of(case), THETA)
    if case.operation == "norm_modulate":
        divisor = inputs[3] if case.shape.variant == "fp8" else None
        made = norm_modulate_ref(x, of(inputs[1]), of(inputs[2]), False, None if wide else divisor)
        return ((made / divisor).clamp(-FP8_MAX, FP8_MAX) if wide and divisor is not None else made,)
    if case.operation == "gated_residual":
        return (gated_residual_ref(x, of(inputs[1]), of(inputs[2][rows])),)
    return (guide_and_step_ref(x, of(inputs[1][:, rows]), inputs[2], inputs[3]),)


def attended(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, rows: Tensor, *, wide: bool) -> Tensor:
    """Attention of these query rows [n, H, C], as the reference computes it; padding is zero."""
    out = torch.zeros(len(rows), *q.shape[1:], dtype=torch.float64 if wide else q.dtype, device=q.device)
    for own, keys in bounds.views():
        inside = (rows >= own.start) & (rows < own.stop)
        if not inside.any():
            continue
        some, seen, mixed = q[rows[inside]], k[keys], v[keys]
        if wide:
            some, seen, mixed = some.double(), seen.double(), mixed.double()
        scores = torch.einsum("ihc,jhc->hij", some * q.shape[2] ** -0.5, seen)
        weights = scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(-1)
        out[inside] = torch.einsum("hij,jhc->ihc", weights.to(mixed.dtype), mixed)
    return out
