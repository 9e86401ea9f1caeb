"""The step loop: which step sees what, what is mixed, who is told, and how it stops."""

import pytest
import torch
from torch import Tensor

from vino_rt.denoise import denoise
from vino_rt.schedule import guide, make_schedule


class Line:
    """Velocities that are known functions of step and latents, and a record of the calls."""

    def __init__(self, branches: int, slope: float = 0.0) -> None:
        self.branches, self.slope = branches, slope
        self.calls: list[tuple[int, Tensor]] = []

    def velocity(self, step: int, latents: Tensor) -> Tensor:
        self.calls.append((step, latents.clone()))
        return torch.stack([(b + 1) * (1 + step) + self.slope * latents for b in range(self.branches)])


def ignore(_: int) -> None:
    """Nobody listens."""


def test_a_straight_path_arrives_whatever_the_steps() -> None:
    noise, data = torch.randn(7, 5), torch.randn(7, 5)

    class Straight:
        def velocity(self, step: int, latents: Tensor) -> Tensor:
            return (noise - data)[None]

    for steps in (1, 3, 50):
        end = denoise(Straight(), noise, make_schedule(steps, 5.0), guidance=1.0, image_guidance=1.0, on_step=ignore)
        torch.testing.assert_close(end, data, rtol=0, atol=1e-5)


@pytest.mark.parametrize("branches", [1, 2, 3])
def test_each_step_is_guidance_then_euler(branches: int) -> None:
    schedule, model = make_schedule(3, 7.0), Line(branches, slope=0.1)
    x = start = torch.randn(5, 3)
    end = denoise(model, start, schedule, guidance=5.0, image_guidance=2.0, on_step=ignore)
    calls, model.calls = model.calls, []
    for step in range(3):
        assert calls[step][0] == step
        assert torch.equal(calls[step][1], x)
        x = x - schedule.delta[step] * guide(model.velocity(step, x), 5.0, 2.0)
    assert torch.equal(end, x)
    assert len(calls) == 3


def test_the_noise_is_left_as_it_was() -> None:
    noise = torch.randn(5, 3)
    kept = noise.clone()
    denoise(Line(2), noise, make_schedule(2, 5.0), guidance=5.0, image_guidance=1.0, on_step=ignore)
    assert torch.equal(noise, kept)


def test_progress_counts_finished_steps() -> None:
    told: list[int] = []
    denoise(Line(1), torch.randn(2, 3), make_schedule(4, 5.0), guidance=1.0, image_guidance=1.0, on_step=told.append)
    assert told == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("last", [0, 2])
def test_what_progress_raises_ends_the_run(last: int) -> None:
    model = Line(1)

    def stop(done: int) -> None:
        if done == last:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        denoise(model, torch.randn(2, 3), make_schedule(4, 5.0), guidance=1.0, image_guidance=1.0, on_step=stop)
    assert len(model.calls) == last


def test_twice_gives_the_same_bytes() -> None:
    noise = torch.randn(11, 3)
    first, second = (
        denoise(Line(3, 0.2), noise, make_schedule(5, 5.0), guidance=5.0, image_guidance=2.0, on_step=ignore)
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_precision_of_the_latents_is_kept() -> None:
    noise = torch.randn(2, 3).bfloat16()
    end = denoise(Line(2), noise, make_schedule(2, 5.0), guidance=5.0, image_guidance=1.0, on_step=ignore)
    assert end.dtype == torch.bfloat16
