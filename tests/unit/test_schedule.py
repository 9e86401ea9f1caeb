"""Noise levels, guidance and the Euler step as formulas."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vino_rt.errors import InputError
from vino_rt.schedule import TIMESTEP_SCALE, euler, guide, lengthen, make_schedule

GOLDEN = Path(__file__).parents[1] / "golden" / "vino"


def velocities(count: int) -> Tensor:
    return torch.randn(count, 7, 5, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize(("steps", "shift"), [(1, 5.0), (3, 1.0), (7, 0.5), (50, 7.0), (1000, 13.0)])
def test_levels(steps: int, shift: float) -> None:
    schedule = make_schedule(steps, shift)
    s = 1 - torch.arange(steps, dtype=torch.float64) / steps
    expected = shift * s / (1 - s + shift * s)
    assert schedule.steps == steps
    assert schedule.level.dtype == schedule.delta.dtype == schedule.timesteps.dtype == torch.float32
    torch.testing.assert_close(schedule.level.double(), expected, rtol=0, atol=2e-6)
    assert schedule.level[0] == 1
    assert schedule.timesteps[0] == TIMESTEP_SCALE == 999
    assert schedule.delta.gt(0).all()
    # The last step ends at no noise at all.
    assert schedule.delta[-1] == schedule.level[-1]
    assert schedule.delta.double().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("rows", "room", "long"), [(3, 1, 3), (3, 5, 5), (5, 5, 5), (6, 5, 10)])
def test_a_lengthened_table_keeps_its_rows(rows: int, room: int, long: int) -> None:
    table = torch.arange(1.0, 2 * rows + 1).reshape(rows, 2)
    found = lengthen(table, room)
    assert found.shape == (long, 2)
    assert torch.equal(found[:rows], table)
    assert not found[rows:].any()


def test_levels_equal_the_release() -> None:
    for row in json.loads((GOLDEN / "scheduler" / "scheduler.json").read_text()):
        schedule = make_schedule(row["steps"], row["shift"])
        torch.testing.assert_close(schedule.level, torch.tensor(row["timesteps"]), rtol=0, atol=1.2e-7)
        torch.testing.assert_close(schedule.delta, torch.tensor(row["delta_t"]), rtol=0, atol=1.2e-7)


@pytest.mark.parametrize(
    ("steps", "shift", "message"),
    [
        (0, 5.0, "steps is 0"),
        (-3, 5.0, "steps is -3"),
        (4, 0.0, "shift is 0"),
        (4, -1.0, "shift is -1"),
        (4, float("nan"), "shift is nan"),
    ],
)
def test_impossible_schedules_are_refused(steps: int, shift: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_schedule(steps, shift)


def test_one_branch_is_itself() -> None:
    (only,) = velocity = velocities(1)
    assert torch.equal(guide(velocity, 5.0, 3.0), only)


@pytest.mark.parametrize("guidance", [0.0, 1.5, 7.0])
def test_text_guidance(guidance: float) -> None:
    positive, negative = velocity = velocities(2)
    torch.testing.assert_close(guide(velocity, guidance, 1.0), (1 - guidance) * negative + guidance * positive)
    assert torch.equal(guide([positive, positive], guidance, 1.0), positive)


def test_image_guidance() -> None:
    positive, negative, without_images = velocity = velocities(3)
    mixed = guide(velocity, 5.0, 2.0)
    torch.testing.assert_close(mixed, 5 * positive - 3 * negative - without_images)
    # At strength one the third branch has no weight; the two strengths do not stand for each other.
    torch.testing.assert_close(guide(velocity, 5.0, 1.0), guide(velocity[:2], 5.0, 1.0))
    assert (guide(velocity, 2.0, 5.0) - mixed).abs().max() > 0.1


def test_a_list_and_a_stack_are_the_same() -> None:
    velocity = velocities(3)
    assert torch.equal(guide(velocity, 5.0, 2.0), guide(list(velocity), 5.0, 2.0))


def test_euler_keeps_the_precision_of_the_latents() -> None:
    latents, velocity = velocities(2)
    delta = make_schedule(4, 5.0).delta[1]
    assert torch.equal(euler(latents, velocity, delta), latents - delta * velocity)
    assert euler(latents.bfloat16(), velocity.bfloat16(), delta).dtype == torch.bfloat16
