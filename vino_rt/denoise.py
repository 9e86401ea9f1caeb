"""The step loop; it knows no backend and computes no shape."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from vino_rt.schedule import Schedule, euler, guide


class BoundModel(Protocol):
    """A model with everything but time and latents already bound to it."""

    def velocity(self, step: int, latents: Tensor) -> Tensor:
        """Patches [N, P] at step `step` of the bound schedule -> velocities [branches, N, P]."""


def denoise(
    model: BoundModel,
    latents: Tensor,
    schedule: Schedule,
    *,
    guidance: float,
    image_guidance: float,
    on_step: Callable[[int], None],
) -> Tensor:
    """Take target patches [N, P] from noise to data along the schedule.

    `on_step` is called with the number of finished steps, first with 0; what it raises ends the run.
    """
    on_step(0)
    for step in range(schedule.steps):
        velocity = guide(model.velocity(step, latents), guidance, image_guidance)
        latents = euler(latents, velocity, schedule.delta[step])
        on_step(step + 1)
    return latents
