"""One denoise step as one piece of work on fixed memory: all branches, guidance, Euler update, step counter.

Values that change from step to step are looked up by an index on the device. Values that change from request to request
are copied into the memory of the step that was recorded for their shapes. On a GPU the step is therefore one graph,
recorded once and replayed; on a CPU the same function is called. It knows no model and no backend.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from vino_rt.errors import OutOfMemory
from vino_rt.schedule import Schedule, euler, guide, lengthen

Work = Callable[[], None]
Record = Callable[[Work], Work]
"""Takes work on fixed memory and returns a function that repeats it."""
End = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""The end of a step: maps latents [N, P], velocities [branches, N, P], guidance of prompt and images float32 [2], and
delta float32 [1] to the next latents. Writes to none of its inputs."""
Allocate = Callable[[Tensor], Tensor]
"""Returns a copy of a tensor in newly allocated memory."""
ALIGNMENT = 512
"""Bytes. PyTorch's own GPU allocations are aligned to this, and no engine asks for more."""


def plain_end(latents: Tensor, velocity: Tensor, mix: Tensor, delta: Tensor) -> Tensor:
    """`End` as the schedule has it: guidance, then the Euler step."""
    return euler(latents, guide(velocity, mix[0], mix[1]), delta[0])


class BoundModel(Protocol):
    """A model with everything but time and latents already bound to it."""

    def velocity(self, step: Tensor, latents: Tensor) -> Tensor:
        """Number of the step int64 [1], patches [N, P] -> velocities [branches, N, P]; both on the model's device."""


class KeptModel(BoundModel, Protocol):
    """A bound model whose tensors can be replaced by those of another request of the same shapes."""

    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that a request brought, in a fixed order."""

    def copy(self, allocate: Allocate) -> "KeptModel":
        """Copy this model, with each of `tensors` in memory that `allocate` returns."""


class GuidedStep:
    """The step described by the module docstring; implements `vino_rt.denoise.Step`."""

    def __init__(
        self,
        model: BoundModel,
        noise: Tensor,
        schedule: Schedule,
        mix: tuple[float, float],
        record: Record | None = None,
        end: End = plain_end,
    ) -> None:
        """noise: patches [N, P] like those that `begin` will get; mix: guidance of the prompt and of the images.

        record: without it, every step calls the operations anew.
        """
        self.model = model
        self.latents = noise.clone()
        self._number = torch.zeros(1, dtype=torch.int64, device=noise.device)
        self._delta = schedule.delta.to(noise.device, copy=True)
        self._mix = torch.tensor(mix, dtype=torch.float32, device=noise.device)
        self._end = end
        self._repeat = self._work if record is None else record(self._work)

    def begin(self, noise: Tensor) -> None:
        """Go to the first step, from these patches."""
        self.latents.copy_(noise)
        self._number.zero_()

    def advance(self) -> None:
        """Make the next step; on a GPU it is under way when this returns."""
        self._repeat()

    def take(self, model: KeptModel, kept: KeptModel, schedule: Schedule, mix: tuple[float, float]) -> None:
        """Copy the tensors of a new request over those of the last one; `kept` is the model this step was made for."""
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
    """Allocates from the start of one buffer; an `Allocate`."""

    def __init__(self, memory: Tensor) -> None:
        """memory: uint8 [bytes]."""
        self._memory, self._used = memory, 0

    def __call__(self, tensor: Tensor) -> Tensor:
        """Copy a tensor into the next free part of the buffer, contiguous."""
        start, self._used = self._used, self._used + aligned_bytes(tensor)
        return self._memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)


def aligned_bytes(tensor: Tensor) -> int:
    """Bytes of a block that a tensor takes, alignment included."""
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT


class StepCache:
    """Recorded steps by the shapes of their tensors; the least recently used are dropped first.

    Where memory runs out while one is recorded, all others are dropped and it is tried once more.
    Only one request runs at a time, so all recorded steps share one buffer. If a step does not fit, a new buffer of at
    least twice the size is allocated; older steps keep theirs, so the total stays below four times the largest step.
    """

    def __init__(self, limit: int, record: Record, end: End = plain_end, room: int = 1) -> None:
        """limit: steps kept at most; with 0, no step is recorded and every request runs on its own tensors.

        room: schedules are padded to a multiple of this many steps, so that one recorded step serves any number.
        """
        self._limit, self._record, self._end, self.room = limit, record, end, room
        self._kept: OrderedDict[tuple[object, ...], tuple[GuidedStep, KeptModel]] = OrderedDict()
        self._memory = torch.empty(0, dtype=torch.uint8)

    def get(self, model: KeptModel, noise: Tensor, schedule: Schedule, mix: tuple[float, float]) -> GuidedStep:
        """Return the step recorded for the shapes of a request, with the request copied in, or record a new one."""
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
        found = None
        try:
            found = self._recorded(model, noise, schedule, mix)
        except (OutOfMemory, torch.OutOfMemoryError):
            if not self._kept:
                raise
        if found is None:
            # The steps kept so far hold memory that this one needs; a request that wants one of them records it anew.
            # Not in the handler: its traceback holds the tensors of the failed attempt.
            self.clear()
            found = self._recorded(model, noise, schedule, mix)
        self._kept[key] = found
        while len(self._kept) > self._limit:
            self._kept.popitem(last=False)
        return found[0]

    def _recorded(
        self, model: KeptModel, noise: Tensor, schedule: Schedule, mix: tuple[float, float]
    ) -> tuple[GuidedStep, KeptModel]:
        """A step on a copy of the model in this cache's memory, which grows where it is too small."""
        needed = sum(map(aligned_bytes, model.tensors()))
        if needed > self._memory.numel():
            size = max(needed, 2 * self._memory.numel())
            self._memory = torch.empty(size, dtype=torch.uint8, device=noise.device)
        kept = model.copy(Block(self._memory))
        return GuidedStep(kept, noise, schedule, mix, self._record, self._end), kept

    def clear(self) -> None:
        """Free the memory of all recorded steps."""
        self._kept.clear()
        self._memory = self._memory.new_empty(0)

    def __len__(self) -> int:
        return len(self._kept)
