"""The measure of parity: one line per output, the limits, and the list of outputs nobody has judged yet.

It knows names of outputs and numbers, not what a case computes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

EXACT = 0.0
MMDIT = CONNECTOR = VAE = 1e-5
VLM = 3e-5
PIPELINE = 5e-5
LEVEL = 1.2e-7
"""One unit in the last place of a noise level, 1 at most: the order of one sum decides it."""
TIMESTEP = 1.3e-4
"""The same of 999 times a level, with the rounding of the product."""
FLIPS = 1e-3
"""Share of bytes that truncation may turn by one after float arithmetic within its limit."""
BF16 = "_bf16"


@dataclass(frozen=True)
class Line:
    """The verdict on one output; None where nothing could be measured, and then `reason` says why."""

    case: str
    output: str
    max_abs: float | None
    limit: float | None
    ok: bool
    reason: str = ""

    def record(self) -> dict[str, str | float | bool | None]:
        """What is printed; a reason only where there is one."""
        shown = {"case": self.case, "output": self.output, "max_abs": self.max_abs, "limit": self.limit, "ok": self.ok}
        return {**shown, "reason": self.reason} if self.reason else shown


def distance(ours: Tensor, golden: Tensor) -> float:
    """Largest absolute difference, in float64; infinite where shapes differ or a value is not finite."""
    if ours.shape != golden.shape:
        return math.inf
    if not ours.numel():
        return 0.0
    gap = (ours.detach().double() - golden.double()).abs().max().item()
    return gap if math.isfinite(gap) else math.inf


def low_precision_limit(golden: Tensor, golden_low: Tensor) -> float:
    """Twice what the release is off in bfloat16, plus the rounding of its float32 result."""
    return 2 * distance(golden_low, golden) + distance(golden.bfloat16(), golden)


@dataclass
class Judge:
    """Collects the lines of one case and remembers which of its outputs are still to be judged."""

    case: str
    outputs: Mapping[str, Tensor]
    on_line: Callable[[Line], None]
    judged: set[str] = field(default_factory=set)

    def close(self, output: str, ours: Tensor | None, limit: float, golden: Tensor | None = None) -> None:
        """Judge a float output by its largest deviation; `golden` None takes it from the outputs by name.

        A batch of one in front of the golden tensor, which our row-wise code does not have, is no difference.
        """
        expected = self.outputs.get(output) if golden is None else golden
        if ours is None or expected is None:
            return self.fail(output, "the case holds no tensor to compare with" if expected is None else "not computed")
        self.judged.add(output)
        if ours.dim() == expected.dim() - 1 and expected.shape[0] == 1:
            ours = ours[None]
        elif ours.shape != expected.shape and ours.numel() == expected.numel() and 1 in expected.shape:
            ours = ours.reshape(expected.shape) if _squeezed(ours) == _squeezed(expected) else ours
        if ours.shape != expected.shape:
            return self.fail(output, f"ours has shape {list(ours.shape)}, golden {list(expected.shape)}")
        self.number(output, distance(ours, expected), limit)

    def exact(self, output: str, ours: Tensor | None, golden: Tensor | None = None) -> None:
        """Judge integers, bytes or anything that must be equal to the bit."""
        self.close(output, ours, EXACT, golden)

    def low_precision(self, output: str, ours: Tensor, base: str | None = None) -> None:
        """Judge a bfloat16 output against the float32 one, `base` (None: its name without the suffix)."""
        golden = self.outputs.get(base or output.removesuffix(BF16))
        if golden is None:
            return self.fail(output, f"no float32 output {base or output.removesuffix(BF16)!r} to judge it by")
        limit = low_precision_limit(golden, self.outputs[output])
        self.close(output, ours.float(), limit, golden)

    def number(self, output: str, value: float, limit: float, reason: str = "") -> None:
        """Judge a deviation that was measured elsewhere."""
        self.judged.add(output)
        if not math.isfinite(value):
            return self.fail(output, reason or "ours holds values that are not finite", limit)
        self.on_line(Line(self.case, output, value, limit, value <= limit, reason))

    def fail(self, output: str, reason: str, limit: float | None = None) -> None:
        """An output that could not be compared."""
        self.judged.add(output)
        self.on_line(Line(self.case, output, None, limit, False, reason))

    def finish(self, reason: str = "nobody judges this output: its name is of no known pattern") -> None:
        """A failure for every output that no judge took."""
        for output in self.outputs:
            if output not in self.judged:
                self.fail(output, reason)


def _squeezed(tensor: Tensor) -> list[int]:
    return [size for size in tensor.shape if size != 1]


def as_tensor(value: object) -> Tensor:
    """A number, or a nested list of numbers, as a tensor; lists of unequal lengths become their flattened items."""
    if isinstance(value, list) and any(isinstance(item, list) for item in value):
        flat = [as_tensor(item).flatten() for item in value]
        return torch.cat(flat) if flat else torch.zeros(0)
    return torch.as_tensor(value, dtype=torch.float64).reshape(-1)
