"""The step loop and its step: which step sees what, what is mixed, who is told, how it stops, and what is recorded."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.accuracy import assert_as_accurate, drawn
from vino_kernels.choice import dispatch
from vino_rt import denoise as loop
from vino_rt.backends.recipe import load_recipe
from vino_rt.engines import open_steps
from vino_rt.errors import OutOfMemory
from vino_rt.kernels import kernel_end
from vino_rt.schedule import Schedule, guide, make_schedule
from vino_rt.step import ALIGNMENT, Allocate, BoundModel, End, GuidedStep, StepCache, Work, plain_end

ENDS = {"plain": plain_end, "kernel": kernel_end()}


class Line:
    """Velocities that are known functions of step and latents, and a record of the calls."""

    def __init__(self, branches: int, slope: float = 0.0) -> None:
        self.branches, self.slope = branches, slope
        self.calls: list[tuple[int, Tensor]] = []

    def velocity(self, step: Tensor, latents: Tensor) -> Tensor:
        self.calls.append((int(step), latents.clone()))
        return torch.stack([(b + 1) * (1 + int(step)) + self.slope * latents for b in range(self.branches)])


def denoise(
    model: BoundModel,
    noise: Tensor,
    schedule: Schedule,
    mix: tuple[float, float],
    on_step: Callable[[int], None],
    end: End = plain_end,
) -> Tensor:
    return loop.denoise(GuidedStep(model, noise, schedule, mix, end=end), noise, schedule.steps, on_step)


def ignore(_: int) -> None:
    """Nobody listens."""


def test_a_straight_path_arrives_whatever_the_steps() -> None:
    noise, data = torch.randn(7, 5), torch.randn(7, 5)

    class Straight:
        def velocity(self, step: Tensor, latents: Tensor) -> Tensor:
            return (noise - data)[None]

    for steps in (1, 3, 50):
        end = denoise(Straight(), noise, make_schedule(steps, 5.0), (1.0, 1.0), ignore)
        torch.testing.assert_close(end, data, rtol=0, atol=1e-5)


@pytest.mark.parametrize("branches", [1, 2, 3])
def test_each_step_is_guidance_then_euler(branches: int) -> None:
    schedule, model = make_schedule(3, 7.0), Line(branches, slope=0.1)
    x = start = torch.randn(5, 3)
    end = denoise(model, start, schedule, (5.0, 2.0), ignore)
    calls, model.calls = model.calls, []
    for step in range(3):
        assert calls[step][0] == step
        assert torch.equal(calls[step][1], x)
        x = x - schedule.delta[step] * guide(model.velocity(torch.tensor([step]), x), 5.0, 2.0)
    assert torch.equal(end, x)
    assert len(calls) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("branches", [1, 2, 3])
def test_the_kernel_ends_a_step_as_accurately(branches: int, dtype: torch.dtype) -> None:
    """Latents are float32, as in a run; velocities have the precision of the model."""
    latents, velocity = drawn(37, 5, seed=1), drawn(branches, 37, 5, dtype=dtype, seed=2)
    mix, delta = torch.tensor([5.0, 1.5]), torch.tensor([0.02])
    exact = plain_end(latents.double(), velocity.double(), mix.double(), delta.double())
    assert_as_accurate(kernel_end()(latents, velocity, mix, delta), plain_end(latents, velocity, mix, delta), exact)


@pytest.mark.parametrize("branches", [1, 2, 3])
def test_a_run_by_the_kernel_is_the_plain_run(branches: int) -> None:
    """In float32 both compute the same numbers in the same order, on a CPU to the bit."""
    noise, schedule = torch.randn(37, 5), make_schedule(5, 5.0)
    ends = [denoise(Line(branches, 0.2), noise, schedule, (5.0, 2.0), ignore, end) for end in ENDS.values()]
    assert torch.equal(ends[0], ends[1])


@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_where_kernels_run_the_head_one_ends_the_step(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[int, ...]] = []
    own = dispatch.guide_and_step

    def counted(latents: Tensor, *others: Any) -> Tensor:
        called.append(tuple(latents.shape))
        return own(latents, *others)

    monkeypatch.setattr(dispatch, "guide_and_step", counted)
    steps, (request, *_) = open_steps(replace(load_recipe("cpu"), backend=backend, kinds={})), requests()
    loop.denoise(steps.get(*request), request[1], 4, ignore)
    assert called == (4 * [(7, 3)] if backend == "triton" else [])


def test_the_noise_is_left_as_it_was() -> None:
    noise = torch.randn(5, 3)
    kept = noise.clone()
    denoise(Line(2), noise, make_schedule(2, 5.0), (5.0, 1.0), ignore)
    assert torch.equal(noise, kept)


def test_progress_counts_finished_steps() -> None:
    told: list[int] = []
    denoise(Line(1), torch.randn(2, 3), make_schedule(4, 5.0), (1.0, 1.0), told.append)
    assert told == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("last", [0, 2])
def test_what_progress_raises_ends_the_run(last: int) -> None:
    model = Line(1)

    def stop(done: int) -> None:
        if done == last:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        denoise(model, torch.randn(2, 3), make_schedule(4, 5.0), (1.0, 1.0), stop)
    assert len(model.calls) == last


def test_twice_gives_the_same_bytes() -> None:
    noise = torch.randn(11, 3)
    first, second = (denoise(Line(3, 0.2), noise, make_schedule(5, 5.0), (5.0, 2.0), ignore) for _ in range(2))
    assert torch.equal(first, second)


def test_precision_of_the_latents_is_kept() -> None:
    noise = torch.randn(2, 3).bfloat16()
    end = denoise(Line(2), noise, make_schedule(2, 5.0), (5.0, 1.0), ignore)
    assert end.dtype == torch.bfloat16


@dataclass(eq=False)
class Slope:
    """A model whose request brought one tensor."""

    slope: Tensor

    def velocity(self, step: Tensor, latents: Tensor) -> Tensor:
        return torch.stack([self.slope * latents, latents + step])

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.slope,)

    def copy(self, allocate: Allocate) -> "Slope":
        return Slope(allocate(self.slope))


class Recording:
    """Counts what is recorded; like a graph, it calls the work once before."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, work: Work) -> Work:
        self.count += 1
        work()
        return work


def requests() -> list[tuple[Slope, Tensor, Schedule, tuple[float, float]]]:
    """Requests of equal shapes and different content; the last one has another shape."""
    four = [make_schedule(4, shift) for shift in (5.0, 7.0, 1.0)]
    mixes = [(5.0, 1.5), (1.5, 2.0), (3.0, 1.0)]
    same = [
        (Slope(torch.randn(3)), torch.randn(7, 3), schedule, mix) for schedule, mix in zip(four, mixes, strict=True)
    ]
    return [*same, (Slope(torch.randn(3)), torch.randn(5, 3), four[0], mixes[0])]


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_recorded_step_serves_other_requests_of_its_shapes_to_the_bit(end: End) -> None:
    recording = Recording()
    steps, given = StepCache(2, recording, end), requests()
    for request in (*given[:3], given[3], given[0]):
        model, noise, schedule, mix = request
        before = model.slope.clone()
        reached = loop.denoise(steps.get(*request), noise, schedule.steps, ignore)
        assert torch.equal(reached, denoise(model, noise, schedule, mix, ignore, end))
        assert torch.equal(model.slope, before), "what a request brought was written to"
    assert (recording.count, len(steps)) == (2, 2)


def test_the_least_recently_used_step_goes_first() -> None:
    recording = Recording()
    steps, given = StepCache(1, recording), requests()
    for request in (given[0], given[3], given[0]):
        steps.get(*request)
    assert (recording.count, len(steps)) == (3, 1)
    steps.clear()
    assert not len(steps)


def test_schedules_of_any_length_share_a_step() -> None:
    recording, (request, *_) = Recording(), requests()
    model, noise, _, mix = request
    steps = StepCache(2, recording, room=5)
    for count in (5, 3, 1, 5):
        schedule = make_schedule(count, 5.0)
        reached = loop.denoise(steps.get(model, noise, schedule, mix), noise, count, ignore)
        assert torch.equal(reached, denoise(model, noise, schedule, mix, ignore))
    assert recording.count == 1
    steps.get(model, noise, make_schedule(6, 5.0), mix)
    assert recording.count == 2


def test_recorded_steps_lie_one_over_another() -> None:
    """The largest decides how much memory they take, and grown memory leaves what was recorded before as it was."""
    steps = StepCache(4, Recording())

    def at(values: int) -> int:
        model = Slope(torch.full((values, 1), 0.5))
        own = steps.get(model, torch.randn(values, 3), make_schedule(4, 5.0), (1.0, 1.0)).model
        assert isinstance(own, Slope)
        assert torch.equal(own.slope, model.slope)
        return own.slope.data_ptr()

    large, small = at(ALIGNMENT), at(3)
    assert large == small
    larger = at(ALIGNMENT + 1)
    assert larger != large
    assert [at(ALIGNMENT), at(3), at(7)] == [large, small, larger]
    assert len(steps) == 4


def test_nothing_is_kept_or_copied_without_room() -> None:
    recording = Recording()
    steps, (request, *_) = StepCache(0, recording), requests()
    first, second = steps.get(*request), steps.get(*request)
    assert first.model is second.model is request[0]
    assert (recording.count, len(steps)) == (2, 0)


class Narrow:
    """Records like `Recording` on a device that has memory for so many steps."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.alive: list[weakref.ref[object]] = []

    def __call__(self, work: Work) -> Work:
        gc.collect()
        self.alive = [step for step in self.alive if step() is not None]
        if len(self.alive) >= self.room:
            raise OutOfMemory("no memory to record a denoise step")
        self.alive.append(weakref.ref(work.__self__))  # type: ignore[attr-defined]
        work()
        return work


def test_a_step_that_finds_no_memory_takes_that_of_the_others() -> None:
    steps, given = StepCache(4, Narrow(1)), requests()
    for request in (given[0], given[3], given[0]):
        model, noise, schedule, mix = request
        reached = loop.denoise(steps.get(*request), noise, schedule.steps, ignore)
        assert torch.equal(reached, denoise(model, noise, schedule, mix, ignore))
        assert len(steps) == 1


def test_a_step_that_finds_no_memory_even_alone_is_refused() -> None:
    narrow = Narrow(1)
    steps, given = StepCache(4, narrow), requests()
    steps.get(*given[0])
    narrow.room = 0
    with pytest.raises(OutOfMemory, match="no memory to record"):
        steps.get(*given[3])
    assert not len(steps)
    narrow.room = 1
    assert steps.get(*given[3])


def test_a_step_interrupted_leaves_nothing_for_the_next_request() -> None:
    steps, (request, *_) = StepCache(1, Recording()), requests()
    model, noise, schedule, mix = request

    def stop(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.denoise(steps.get(*request), noise, schedule.steps, stop)
    end = loop.denoise(steps.get(*request), noise, schedule.steps, ignore)
    assert torch.equal(end, denoise(model, noise, schedule, mix, ignore))
