"""A denoise step as one piece of work on fixed memory: all branches, guidance, Euler update, and on to the next step.

What differs from step to step is looked up by an index on the device, and what differs from request to request is
copied into the memory of the step that was recorded for its shapes. So on a GPU a step is one graph, recorded once and
replayed; on a CPU the same work is called. It knows no model and no backend.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from vino_rt.schedule import Schedule, euler, guide, lengthen

Work = Callable[[], None]
Record = Callable[[Work], Work]
"""Turns work on fixed memory into what repeats it."""
End = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""The end of a step, of latents [N, P], velocities [branches, N, P], guidance float32 [2], of the prompt and of the
images, and delta float32 [1]: the latents after it. Writes to none of them."""
Place = Callable[[Tensor], Tensor]
"""Gives a tensor memory of its own, with its values."""
ALIGNMENT = 512
"""Bytes: where PyTorch's own blocks on a GPU begin, and more than any engine asks for."""


def plain_end(latents: Tensor, velocity: Tensor, mix: Tensor, delta: Tensor) -> Tensor:
    """`End` as the schedule has it: guidance, then the Euler step."""
    return euler(latents, guide(velocity, mix[0], mix[1]), delta[0])


class BoundModel(Protocol):
    """A model with everything but time and latents already bound to it."""

    def velocity(self, step: Tensor, latents: Tensor) -> Tensor:
        """Number of the step int64 [1], patches [N, P] -> velocities [branches, N, P]; both on the model's device."""


class KeptModel(BoundModel, Protocol):
    """A bound model that can take another request of the same shapes into its memory."""

    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that a request brought, in a fixed order."""

    def copy(self, place: Place) -> "KeptModel":
        """The same on the memory that `place` gives to each of `tensors`."""


class GuidedStep:
    """See the module; `vino_rt.denoise.Step`."""

    def __init__(
        self,
        model: BoundModel,
        noise: Tensor,
        schedule: Schedule,
        mix: tuple[float, float],
        record: Record = lambda work: work,
        end: End = plain_end,
    ) -> None:
        """noise: patches [N, P] like those that `begin` will get; mix: guidance of the prompt and of the images."""
        self.model = model
        self.latents = noise.clone()
        self._number = torch.zeros(1, dtype=torch.int64, device=noise.device)
        self._delta = schedule.delta.to(noise.device, copy=True)
        self._mix = torch.tensor(mix, dtype=torch.float32, device=noise.device)
        self._end = end
        self._repeat = record(self._work)

    def begin(self, noise: Tensor) -> None:
        """Go to the first step, from these patches."""
        self.latents.copy_(noise)
        self._number.zero_()

    def advance(self) -> None:
        """Make the next step; on a GPU it is under way when this returns."""
        self._repeat()

    def take(self, model: KeptModel, kept: KeptModel, schedule: Schedule, mix: tuple[float, float]) -> None:
        """Copy what a request brought over that of the request before; `kept` is the model of this step."""
        for own, new in zip(kept.tensors(), model.tensors(), strict=True):
            own.copy_(new)
        self._delta.copy_(schedule.delta)
        self._mix.copy_(torch.tensor(mix, dtype=torch.float32))

    def _work(self) -> None:
        velocity = self.model.velocity(self._number, self.latents)
        delta = self._delta.index_select(0, self._number)
        self.latents.copy_(self._end(self.latents, velocity, self._mix, delta))
        self._number.add_(1)


class Block:
    """Memory for what requests bring, from its start; a `Place`."""

    def __init__(self, memory: Tensor) -> None:
        """memory: uint8 [bytes]."""
        self._memory, self._used = memory, 0

    def __call__(self, tensor: Tensor) -> Tensor:
        """The next part of it, contiguous."""
        start, self._used = self._used, self._used + taken(tensor)
        return self._memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)


def taken(tensor: Tensor) -> int:
    """Bytes of a block."""
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT


class Steps:
    """The steps recorded so far, by the shapes of everything in them; the least recently used go first.

    One request runs at a time and brings everything anew, so that all steps lie one over another in the same memory.
    Where a step needs more, those after it get at least twice as much: together less than four times what the largest
    needs, and no more than that where the largest comes first.
    """

    def __init__(self, limit: int, record: Record, end: End = plain_end, room: int = 1) -> None:
        """limit: how many are kept; with 0 every request works on the memory it brought.

        room: schedules are lengthened to a multiple of so many steps, so that their number is no matter of shapes.
        """
        self._limit, self._record, self._end, self.room = limit, record, end, room
        self._kept: OrderedDict[tuple[object, ...], tuple[GuidedStep, KeptModel]] = OrderedDict()
        self._memory = torch.empty(0, dtype=torch.uint8)

    def get(self, model: KeptModel, noise: Tensor, schedule: Schedule, mix: tuple[float, float]) -> GuidedStep:
        """The step of a request: one recorded for its shapes with the request copied in, or a new one."""
        if not self._limit:
            return GuidedStep(model, noise, schedule, mix, self._record, self._end)
        schedule = replace(schedule, delta=lengthen(schedule.delta, self.room))
        parts = (noise, schedule.delta, *model.tensors())
        key = tuple((tuple(part.shape), part.dtype) for part in parts)
        if key in self._kept:
            self._kept.move_to_end(key)
            step, kept = self._kept[key]
            step.take(model, kept, schedule, mix)
            return step
        needed = sum(map(taken, model.tensors()))
        if needed > self._memory.numel():
            size = max(needed, 2 * self._memory.numel())
            self._memory = torch.empty(size, dtype=torch.uint8, device=noise.device)
        kept = model.copy(Block(self._memory))
        step = GuidedStep(kept, noise, schedule, mix, self._record, self._end)
        self._kept[key] = step, kept
        while len(self._kept) > self._limit:
            self._kept.popitem(last=False)
        return step

    def clear(self) -> None:
        """Give the memory of all recorded steps back."""
        self._kept.clear()
        self._memory = self._memory.new_empty(0)

    def __len__(self) -> int:
        return len(self._kept)
