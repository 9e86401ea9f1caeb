"""AdamW as a stage asks for it: groups of parameters, the learning rate of every step, the norm of the gradient.

It knows parameters by name and shape, not what they mean.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from vino_rt.errors import UsageError
from vino_rt.train.distributed import full, local
from vino_rt.train.stage import Group, OptimiserStage


def learning_rate(stage: OptimiserStage, step: int, steps: int) -> float:
    """Learning rate of step 0 <= `step` < `steps`: a linear rise to `lr`, then the schedule down to the floor."""
    if step < stage.warmup:
        return stage.lr * (step + 1) / stage.warmup
    done = (step - stage.warmup) / max(1, steps - 1 - stage.warmup)
    shape = {"constant": 1.0, "linear": 1.0 - done, "cosine": (1.0 + math.cos(math.pi * done)) / 2.0}[stage.schedule]
    return stage.lr * (shape if stage.schedule == "constant" else stage.floor + (1.0 - stage.floor) * shape)


def make_optimiser(stage: OptimiserStage, model: nn.Module, trained: Mapping[str, nn.Parameter]) -> torch.optim.AdamW:
    """AdamW over the trained parameters of a model, by name; UsageError when a group's pattern is found in no name.

    Every group of the optimiser carries its factor of the learning rate as `scale`.
    """
    for group in stage.groups:
        if not any(re.search(group.match, name) for name in trained):
            raise UsageError(
                f"optimiser.groups: match {group.match!r} is found in none of {len(trained)} parameters, "
                f"such as {next(iter(trained), 'none')!r}; correct or remove the group"
            )
    plain = set(_never_decayed(model))
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        group = _group(stage.groups, name)
        decay = stage.weight_decay if group.decay and name not in plain else 0.0
        members.setdefault((group.lr, decay), []).append(parameter)
    groups = [
        {"params": parameters, "scale": scale, "weight_decay": decay} for (scale, decay), parameters in members.items()
    ]
    return torch.optim.AdamW(groups, lr=stage.lr, betas=stage.betas, eps=stage.eps, fused=True)


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
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


def _group(groups: Sequence[Group], name: str) -> Group:
    return next((group for group in groups if re.search(group.match, name)), Group(match=""))


def _never_decayed(model: nn.Module) -> Iterator[str]:
    """Names of biases, of parameters of one axis or none, and of everything a normalisation owns."""
    for place, module in model.named_modules():
        norm = "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(prefix=place, recurse=False):
            if norm or parameter.ndim <= 1 or name.endswith("bias"):
                yield name
