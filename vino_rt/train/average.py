"""The moving average of the weights, float32, beside the weights; knows parameters by name and nothing else."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vino_rt.train.distributed import local
from vino_rt.train.stage import AverageStage


class Average:
    """Averages of the trained parameters; off, and of no size, when the decay is 0."""

    def __init__(self, stage: AverageStage, trained: Mapping[str, nn.Parameter]) -> None:
        """Start from the parameters as they are."""
        self._stage = stage
        self._trained = trained
        self.tensors: dict[str, Tensor] = {}
        """By parameter name; laid out over the processes as the parameters are."""
        if stage.decay > 0:
            self.tensors = {name: parameter.detach().clone() for name, parameter in trained.items()}

    def decay(self, step: int) -> float:
        """Share of the old average that the update of step `step`, counted from 0, keeps."""
        return min(self._stage.decay, (step + 1) / (step + 1 + self._stage.warmup))

    def update(self, step: int) -> None:
        """Take in the weights after the update of step `step`, counted from 0."""
        if self.tensors:
            averages, weights = self._pairs()
            torch._foreach_lerp_(averages, weights, 1.0 - self.decay(step))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averages as its weights while the body runs, and gets its own back to the bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        if self.tensors:
            for average, weight in zip(*self._pairs(), strict=True):
                kept = weight.clone()
                weight.copy_(average)
                average.copy_(kept)

    def _pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        weights = [local(self._trained[name].detach()) for name in self.tensors]
        return [local(average) for average in self.tensors.values()], weights
