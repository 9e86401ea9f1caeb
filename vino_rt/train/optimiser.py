"""The optimiser a stage asks for: groups of parameters, the learning rate of every step, the norm of the gradient.

It knows parameters by name and shape, not what they mean.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vino_rt.errors import UsageError
from vino_rt.train.distributed import full, local
from vino_rt.train.stage import Group, OptimiserStage

MATRIX = 2
"""Axes of the parameters that Muon is made for."""
MOMENTUM = 0.95
"""Muon's, as its authors have it."""


def learning_rate(stage: OptimiserStage, step: int, steps: int) -> float:
    """Learning rate of step 0 <= `step` < `steps`: a linear rise to `lr`, then the schedule down to the floor."""
    if step < stage.warmup:
        return stage.lr * (step + 1) / stage.warmup
    done = (step - stage.warmup) / max(1, steps - 1 - stage.warmup)
    shape = {"constant": 1.0, "linear": 1.0 - done, "cosine": (1.0 + math.cos(math.pi * done)) / 2.0}[stage.schedule]
    return stage.lr * (shape if stage.schedule == "constant" else stage.floor + (1.0 - stage.floor) * shape)


class Optimiser:
    """The optimisers of one model as one: every parameter belongs to one of them."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = tuple(parts)
        self._owners = {p: part for part in self.parts for group in part.param_groups for p in group["params"]}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """PyTorch's parameter groups of all parts; each carries its factor of the learning rate as `scale`."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """What is remembered of a parameter, by PyTorch's names; empty before its first update."""
        moments: dict[str, Tensor] = self._owners[parameter].state.get(parameter, {})
        return moments

    def start(self, parameter: nn.Parameter, updates: int) -> None:
        """Make room for the moments of a parameter that was updated so often."""
        owner = self._owners[parameter]
        names = ("momentum_buffer",) if isinstance(owner, torch.optim.Muon) else ("exp_avg", "exp_avg_sq")
        owner.state[parameter] = {name: torch.zeros_like(parameter, requires_grad=False) for name in names}
        if isinstance(owner, torch.optim.AdamW):
            # Where its fused kernel expects the counter: beside the parameter.
            owner.state[parameter]["step"] = torch.tensor(float(updates), device=parameter.device)


def make_optimiser(stage: OptimiserStage, model: nn.Module, trained: Mapping[str, nn.Parameter]) -> Optimiser:
    """AdamW over the trained parameters of a model, by name, and Muon over the matrices of groups that ask for it.

    Muon (Jordan et al., 2024) with the rates of AdamW ("Muon is Scalable for LLM Training", arXiv 2502.16982).
    UsageError when a group's pattern is found in no name, or a group of Muon's has no matrix.
    """
    for group in stage.groups:
        _check_group(group, trained)
    plain = set(_never_decayed(model))
    members: dict[str, dict[tuple[float, float], list[nn.Parameter]]] = {"adamw": {}, "muon": {}}
    for name, parameter in trained.items():
        group = _group(stage.groups, name)
        decay = stage.weight_decay if group.decay and name not in plain else 0.0
        method = group.method if parameter.ndim == MATRIX else "adamw"
        members[method].setdefault((group.lr, decay), []).append(parameter)
    adamw, muon = map(_tables, members.values())
    parts: list[torch.optim.Optimizer] = []
    if adamw:
        parts.append(torch.optim.AdamW(adamw, lr=stage.lr, betas=stage.betas, eps=stage.eps, fused=True))
    if muon:
        parts.append(torch.optim.Muon(muon, lr=stage.lr, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"))
    return Optimiser(parts)


def set_learning_rate(optimiser: Optimiser, lr: float) -> None:
    """Give every group its learning rate: `lr` times its scale."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["scale"]


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Norm of all gradients together, float32 scalar, over all processes; 0 when there are none."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return full(torch.nn.utils.get_total_norm(gradients)).detach() if gradients else torch.zeros(())


def clip_gradient(parameters: Sequence[nn.Parameter], norm: float, limit: float) -> None:
    """Scale all gradients by limit / norm where that is below 1; `norm` is what `gradient_norm` gave."""
    if 0 < limit < norm:
        gradients = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        torch._foreach_mul_(gradients, limit / norm)


def _tables(members: Mapping[tuple[float, float], Sequence[nn.Parameter]]) -> list[dict[str, Any]]:
    """Groups of parameters by factor of the learning rate and decay, as PyTorch takes them."""
    return [
        {"params": parameters, "scale": scale, "weight_decay": decay} for (scale, decay), parameters in members.items()
    ]


def _check_group(group: Group, trained: Mapping[str, nn.Parameter]) -> None:
    """UsageError when a group is of none of these parameters, or of none that its method can update."""
    found = [parameter for name, parameter in trained.items() if re.search(group.match, name)]
    if group.method == "muon" and found and all(parameter.ndim != MATRIX for parameter in found):
        raise UsageError(
            f"optimiser.groups: match {group.match!r} is found in no matrix, and Muon updates nothing else; widen it"
        )
    if not found:
        raise UsageError(
            f"optimiser.groups: match {group.match!r} is found in none of {len(trained)} parameters, "
            f"such as {next(iter(trained), 'none')!r}; correct or remove the group"
        )


def _group(groups: Sequence[Group], name: str) -> Group:
    return next((group for group in groups if re.search(group.match, name)), Group(match=""))


def _never_decayed(model: nn.Module) -> Iterator[str]:
    """Names of biases, of parameters of one axis or none, and of everything a normalisation owns."""
    for place, module in model.named_modules():
        norm = "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(prefix=place, recurse=False):
            if norm or parameter.ndim <= 1 or name.endswith("bias"):
                yield name
