"""Times, guidance and the Euler step of flow matching as pure functions (MODEL.md section 5); knows no model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vino_rt.errors import InputError

TIMESTEP_SCALE = 999.0
"""The model's timestep for noise level w is this times w."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """Noise levels of a run: level[i] before step i; delta[i] = level[i] - level[i + 1]. Both float32 [steps]."""

    level: Tensor
    delta: Tensor

    @property
    def steps(self) -> int:
        """Number of denoising steps."""
        return self.level.shape[0]

    @property
    def timesteps(self) -> Tensor:
        """Timestep input of the model before each step, float32 [steps]."""
        return self.level * TIMESTEP_SCALE


def make_schedule(steps: int, shift: float) -> Schedule:
    """Shifted linear levels w = shift*s / (1 - s + shift*s), s from 1 to 0 in `steps` steps (MODEL.md section 5).

    Raises InputError for fewer than one step or a shift that is not positive.
    """
    if steps < 1:
        raise InputError(f"steps is {steps}; it must be at least 1")
    if not shift > 0:
        raise InputError(f"shift is {shift}; it must be above 0")
    s = torch.linspace(1, 0, steps + 1)
    levels = shift * s / (1 - s + shift * s)
    return Schedule(level=levels[:-1], delta=levels[:-1] - levels[1:])


def lengthen(table: Tensor, room: int) -> Tensor:
    """Pad a table with one row per step, [K, ...], with zero rows to a multiple of `room` rows."""
    missing = -table.shape[0] % room
    return torch.cat((table, table.new_zeros(missing, *table.shape[1:]))) if missing else table


def guide(velocity: Sequence[Tensor] | Tensor, guidance: float | Tensor, image_guidance: float | Tensor) -> Tensor:
    """Combine the velocities of one to three branches [branches, ...] into one [...] (MODEL.md section 5).

    guidance g and image_guidance gi: numbers or tensors []. One branch: itself. Two (p, n): n + g*(p - n). Three
    (p, n, m): m + gi*(n - m) + g*(p - n).
    """
    if len(velocity) == 1:
        return velocity[0]
    positive, negative = velocity[0], velocity[1]
    if len(velocity) == 2:
        return negative + guidance * (positive - negative)
    without_images = velocity[2]
    return without_images + image_guidance * (negative - without_images) + guidance * (positive - negative)


def euler(latents: Tensor, velocity: Tensor, delta: Tensor) -> Tensor:
    """One Euler step x - delta*v, in the shape and dtype of `latents`; `delta`: a tensor []."""
    return latents - delta * velocity
