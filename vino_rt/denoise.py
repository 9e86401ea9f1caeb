"""The step loop; it knows no backend and computes no shape."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class Step(Protocol):
    """Runs the steps of a schedule one after the other, on latents of its own; implemented in `vino_rt.step`."""

    latents: Tensor
    """Patches [N, P], overwritten by every step."""

    def begin(self, noise: Tensor) -> None:
        """Go to the first step, from these patches."""

    def advance(self) -> None:
        """Make the next step."""


def denoise(step: Step, noise: Tensor, steps: int, on_step: Callable[[int], None]) -> Tensor:
    """Take target patches [N, P] from noise to data in a number of steps.

    `on_step` is called with the number of finished steps, first with 0; what it raises ends the run.
    """
    step.begin(noise)
    on_step(0)
    for done in range(1, steps + 1):
        step.advance()
        on_step(done)
    return step.latents.clone()
