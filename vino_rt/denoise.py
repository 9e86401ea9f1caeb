"""The denoising loop; it knows no backend and computes no shapes."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class Step(Protocol):
    """Runs the steps of a schedule in order on its own latents; implemented in `vino_rt.step`."""

    latents: Tensor
    """Patches [N, P], overwritten by every step."""

    def begin(self, noise: Tensor) -> None:
        """Start again at the first step, from these patches [N, P]."""

    def advance(self) -> None:
        """Run the next step of the schedule on `latents`."""


def denoise(step: Step, noise: Tensor, steps: int, on_step: Callable[[int], None]) -> Tensor:
    """Denoise target patches [N, P] in `steps` steps and return the result, a copy.

    `on_step` is called with the number of finished steps, from 0 to `steps`; an exception from it ends the run.
    """
    step.begin(noise)
    on_step(0)
    for done in range(1, steps + 1):
        step.advance()
        on_step(done)
    return step.latents.clone()
