"""What a step changes, as sections of named tensors, and back: weights, their average, the optimiser's moments.

Global random numbers are not among it: the loop seeds them anew for every micro-batch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from vino_rt.errors import ModelError
from vino_rt.train.average import Average
from vino_rt.train.checkpoint import Opened
from vino_rt.train.distributed import assign
from vino_rt.train.optimiser import Optimiser
from vino_rt.weight_writer import CODES

MOMENTS = {"first": "exp_avg", "second": "exp_avg_sq", "momentum": "momentum_buffer"}
"""Section of a checkpoint -> name in the optimiser's state."""


@dataclass(frozen=True, eq=False)
class State:
    """Everything of a run that a step changes, besides counters and clocks."""

    model: nn.Module
    trained: Mapping[str, nn.Parameter]
    optimiser: Optimiser
    average: Average

    def sections(self) -> dict[str, dict[str, Tensor]]:
        """The tensors themselves, not copies; moments only of parameters that had a gradient so far."""
        weights: dict[str, Tensor] = {**self.trained, **dict(_buffers(self.model))}
        sections = {"weights": weights, "average": self.average.tensors}
        moments = self._moments()
        for section, key in MOMENTS.items():
            sections[section] = {name: kept[key] for name, kept in moments.items() if key in kept}
        return {section: tensors for section, tensors in sections.items() if tensors}

    def updates(self) -> dict[str, int]:
        """How often the optimiser updated a parameter, by name; AdamW's bias correction depends on it, Muon has none.

        Parameters that Muon updates are there with 0.
        """
        return {name: int(kept.get("step", 0)) for name, kept in self._moments().items() if kept}

    def restore(self, opened: Opened) -> None:
        """Take everything from a checkpoint; ModelError naming file and tensor where it does not fit this model."""
        updates = opened.record.get("updates")
        if not isinstance(updates, dict) or not set(updates) <= set(self.trained):
            raise ModelError(f"{opened.path}: its updates are of other parameters than this model's; use --fresh")
        for name, count in updates.items():
            self.optimiser.start(self.trained[name], count)
        for section, tensors in self.sections().items():
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            for name, whole in opened.load(section, shapes).items():
                assign(tensors[name].detach(), whole)

    def _moments(self) -> dict[str, Mapping[str, Tensor]]:
        return {name: self.optimiser.moments(parameter) for name, parameter in self.trained.items()}


def _buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that belong to the weights and hold numbers that training could change."""
    for place, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix=place, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set and buffer.dtype in CODES:
                yield name, buffer
