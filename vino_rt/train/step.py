"""One update of the weights: micro-batches, gradient, whether all is finite, clipping, the optimiser, the average.

It knows an objective by its protocol, and nothing of files and clocks.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vino_rt.errors import UsageError, VinoError
from vino_rt.train.average import Average
from vino_rt.train.distributed import World, make_root, trained
from vino_rt.train.feed import fault_count, sample_keys
from vino_rt.train.log import Step
from vino_rt.train.objective import Objective
from vino_rt.train.optimiser import clip_gradient, gradient_norm, learning_rate, make_optimiser, set_learning_rate
from vino_rt.train.recompute import recompute
from vino_rt.train.stage import Stage
from vino_rt.train.state import State

SHOWN_KEYS = 8


def micro_seed(seed: int, index: int) -> int:
    """Seed of a micro-batch's global random numbers, such as dropout: no generator's state outlives a micro-batch."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True)
class _Share:
    """What one process contributes to a step, in plain Python."""

    losses: Sequence[float]
    parts: Sequence[Mapping[str, float]]
    norm: float
    samples: int
    replaced: int
    """Samples that stand in for broken ones."""
    keys: Sequence[Sequence[str]]
    """Names of the samples of each micro-batch; empty unless something is not finite."""


class Stepper:
    """Updates the weights of an objective's model as a stage says."""

    def __init__(self, stage: Stage, objective: Objective, world: World) -> None:
        """Move the model to its device, shard it and make its optimiser.

        UsageError when nothing is left to train, a group matches nothing, or a scalar would have to be sharded.
        """
        self._stage, self._objective, self._world = stage, objective, world
        objective.model.to(world.device)
        if stage.recompute:
            recompute(objective.shards())
        self.root = make_root(objective.model, objective.shards(), world)
        parameters = trained(objective.model)
        if not parameters:
            raise UsageError(f"objective {stage.objective!r} leaves nothing to train: every parameter is frozen")
        assert all(parameter.dtype == torch.float32 for parameter in parameters.values())
        optimiser = make_optimiser(stage.optimiser, objective.model, parameters)
        self.state = State(objective.model, parameters, optimiser, Average(stage.average, parameters))
        self._parameters = list(parameters.values())

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self._parameters)

    def autocast(self) -> torch.autocast:
        """The precision of the forward pass."""
        half = self._stage.precision == "bfloat16"
        return torch.autocast(self._world.device.type, dtype=torch.bfloat16, enabled=half)

    def take(self, step: int, batches: Iterator[Any]) -> Step:
        """Make the update of `step`, counted from 0; VinoError, with nothing updated, when something is not finite."""
        began = time.perf_counter()
        shares = self._world.gather(self._gradient(step, batches))
        # In the order of indices, as one process would have had them.
        turns = range(self._stage.accumulate)
        losses = [share.losses[turn] for turn in turns for share in shares]
        norm = shares[0].norm
        if not all(map(math.isfinite, (norm, *losses))):
            self._refuse(step, losses, norm, [share.keys[turn] for turn in turns for share in shares])
        lr = learning_rate(self._stage.optimiser, step, self._stage.steps)
        set_learning_rate(self.state.optimiser, lr)
        clip_gradient(self._parameters, norm, self._stage.optimiser.clip)
        self.state.optimiser.step()
        self.state.optimiser.zero_grad()
        self.state.average.update(step)
        return Step(
            step=step + 1,
            loss=sum(losses) / len(losses),
            parts=[share.parts[turn] for turn in turns for share in shares],
            lr=lr,
            grad_norm=norm,
            samples=sum(share.samples for share in shares),
            seconds=time.perf_counter() - began,
            replaced=sum(share.replaced for share in shares),
        )

    def _gradient(self, step: int, batches: Iterator[Any]) -> _Share:
        """Gradients of this process's micro-batches, added up; FSDP2 takes the mean over processes."""
        values: list[Tensor] = []
        parts, keys, replaced = [], [], 0
        for turn in range(self._stage.accumulate):
            index = (step * self._stage.accumulate + turn) * self._world.size + self._world.rank
            batch = next(batches)
            torch.manual_seed(micro_seed(self._stage.seed, index))
            with self.autocast():
                value, named = self.root(lambda batch=batch, index=index: self._loss(batch, index))
            (value / self._stage.accumulate).backward()
            values.append(value.detach().float())
            parts.append({name: float(number) for name, number in named.items()})
            keys.append(sample_keys(batch))
            replaced += fault_count(batch)
        # One wait for the device in a step, here: whether all is finite must be known before the update.
        norm = gradient_norm(self._parameters).to(self._world.device)
        numbers: list[float] = torch.stack([norm, *values]).tolist()
        bad = not all(map(math.isfinite, numbers))
        samples = sum(max(1, len(names)) for names in keys)
        return _Share(numbers[1:], parts, numbers[0], samples, replaced, keys if bad else [()] * len(keys))

    def _loss(self, batch: Any, index: int) -> tuple[Tensor, Mapping[str, float]]:
        loss = self._objective.loss(batch, index)
        return loss.value, loss.parts

    def _refuse(self, step: int, losses: Sequence[float], norm: float, keys: Sequence[Sequence[str]]) -> None:
        """Say which micro-batches made the step useless: those with such a loss, else all of the step."""
        self.state.optimiser.zero_grad()
        guilty = [turn for turn, loss in enumerate(losses) if not math.isfinite(loss)]
        what = f"the loss is {losses[guilty[0]]}" if guilty else f"the norm of the gradient is {norm}"
        guilty = guilty or list(range(len(losses)))
        told = []
        for turn in guilty:
            names = ", ".join(keys[turn][:SHOWN_KEYS]) + (", ..." if len(keys[turn]) > SHOWN_KEYS else "")
            told.append(f"{step * len(losses) + turn}" + (f" (samples {names})" if names else ""))
        noun = "micro-batch" if len(told) == 1 else "micro-batches"
        raise VinoError(
            f"step {step + 1}: {what} in {noun} {', '.join(told)}; the weights were not updated, the last checkpoint "
            "is intact. Look at these samples; to go on with a lower learning rate or a harder clip, write the model "
            "of the checkpoint with --steps and its step, and start another stage from that"
        )
