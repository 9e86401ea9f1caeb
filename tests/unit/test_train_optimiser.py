"""Learning rates, groups, clipping and the average of the weights, each against what its definition says."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from tests.unit.toy_objective import ToyModel
from vino_rt.errors import UsageError
from vino_rt.train.average import Average
from vino_rt.train.distributed import trained
from vino_rt.train.optimiser import clip_gradient, gradient_norm, learning_rate, make_optimiser, set_learning_rate
from vino_rt.train.stage import AverageStage, Group, OptimiserStage

STAGE = OptimiserStage(lr=2.0, warmup=4, floor=0.1)


def rates(stage: OptimiserStage, steps: int) -> list[float]:
    return [learning_rate(stage, step, steps) for step in range(steps)]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_learning_rate_rises_then_falls_to_the_floor(schedule: Any) -> None:
    given = rates(replace(STAGE, schedule=schedule), 15)
    assert given[:4] == [0.5, 1.0, 1.5, 2.0]
    assert given[4] == 2.0
    assert given[-1] == pytest.approx(2.0 if schedule == "constant" else 0.2)
    middle = {"constant": 2.0, "linear": 1.1, "cosine": 1.1}[schedule]
    assert given[9] == pytest.approx(middle)
    assert all(later <= earlier for earlier, later in pairwise(given[4:]))


def test_learning_rate_of_very_short_stages() -> None:
    assert rates(replace(STAGE, warmup=0, schedule="cosine"), 1) == [2.0]
    assert rates(replace(STAGE, warmup=3), 3)[-1] == 2.0
    assert rates(replace(STAGE, warmup=0, schedule="linear"), 2) == [2.0, pytest.approx(0.2)]


class Odd(nn.Module):
    """A normalisation whose weight has three axes, a trained parameter without any, a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.rms_norm = _ChannelNorm()
        self.conv = nn.Conv2d(3, 5, 1)
        self.scale = nn.Parameter(torch.ones(()))
        self.table = nn.Parameter(torch.ones(2, 3))
        self.frozen = nn.Parameter(torch.ones(2, 3), requires_grad=False)


class _ChannelNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(3, 1, 1))


def settings(model: nn.Module, **changes: Any) -> dict[str, tuple[float, float]]:
    optimiser = make_optimiser(replace(STAGE, weight_decay=0.3, **changes), model, trained(model))
    names = {parameter: name for name, parameter in trained(model).items()}
    return {
        names[parameter]: (group["scale"], group["weight_decay"])
        for group in optimiser.param_groups
        for parameter in group["params"]
    }


def test_biases_norms_and_vectors_never_decay() -> None:
    given = settings(Odd())
    assert {name for name, (_, decay) in given.items() if decay == 0.3} == {"conv.weight", "table"}
    assert set(given) == {"rms_norm.gamma", "conv.weight", "conv.bias", "scale", "table"}
    assert given["rms_norm.gamma"] == (1.0, 0.0)


def test_the_first_group_that_matches_takes_a_parameter() -> None:
    groups = (Group(match="^conv", lr=0.5), Group(match="weight|table", lr=0.25, decay=False))
    given = settings(Odd(), groups=groups)
    assert given["conv.weight"] == (0.5, 0.3)
    assert given["conv.bias"] == (0.5, 0.0)
    assert given["table"] == (0.25, 0.0)
    assert given["scale"] == (1.0, 0.0)
    with pytest.raises(UsageError, match=r"match 'kernel' is found in none of 5 parameters"):
        settings(Odd(), groups=(Group(match="kernel"),))


def test_a_group_of_factor_0_stays_as_it_is() -> None:
    model = Odd()
    groups = (Group(match="conv", lr=0.0, decay=True), Group(match="table", lr=0.5))
    optimiser = make_optimiser(replace(STAGE, groups=groups), model, trained(model))
    set_learning_rate(optimiser, 0.01)
    assert sorted({group["lr"] for group in optimiser.param_groups}) == [0.0, 0.005, 0.01]
    before = {name: parameter.detach().clone() for name, parameter in trained(model).items()}
    for parameter in trained(model).values():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    moved = {name for name, parameter in trained(model).items() if not torch.equal(parameter, before[name])}
    assert moved == {"rms_norm.gamma", "scale", "table"}


def test_muon_updates_matrices_of_its_group_with_equal_singular_values_at_the_rates_of_adamw() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 32), nn.Linear(32, 48))
    groups = (Group(match="^0", method="muon", lr=0.5),)
    optimiser = make_optimiser(OptimiserStage(lr=0.1, weight_decay=0.0, groups=groups), model, trained(model))
    set_learning_rate(optimiser, 0.1)
    before = {name: parameter.detach().clone() for name, parameter in trained(model).items()}
    for parameter in trained(model).values():
        parameter.grad = torch.randn_like(parameter) * torch.logspace(-3, 0, parameter.shape[-1])
    optimiser.step()
    change = {name: parameter.detach() - before[name] for name, parameter in trained(model).items()}
    singular = torch.linalg.svdvals(change["0.weight"])
    # Its five iterations leave the values between 0.7 and 1.2 of what is aimed at.
    aim = 0.5 * 0.1 * 0.2 * math.sqrt(48)
    assert 0.5 * aim < float(singular.min()) < float(singular.max()) < 1.5 * aim
    for name in ("0.bias", "1.weight", "1.bias"):
        rate = 0.05 if name == "0.bias" else 0.1
        torch.testing.assert_close(change[name].abs(), torch.full_like(change[name], rate), rtol=0.1, atol=0)
    kept = {name: set(optimiser.moments(parameter)) for name, parameter in trained(model).items()}
    assert kept["0.weight"] == {"momentum_buffer"}
    assert kept["0.bias"] == kept["1.weight"] == {"step", "exp_avg", "exp_avg_sq"}


def test_muon_without_a_matrix_is_refused() -> None:
    with pytest.raises(UsageError, match=r"match 'bias' is found in no matrix"):
        settings(Odd(), groups=(Group(match="bias", method="muon"),))


def test_clipping_scales_all_gradients_to_the_limit() -> None:
    parameters = [nn.Parameter(torch.zeros(3, 5)), nn.Parameter(torch.zeros(7)), nn.Parameter(torch.zeros(2))]
    assert float(gradient_norm(parameters)) == 0.0
    parameters[0].grad = torch.full((3, 5), 2.0)
    parameters[1].grad = torch.full((7,), -1.0)
    norm = float(gradient_norm(parameters))
    assert norm == pytest.approx(math.sqrt(15 * 4 + 7))
    for limit in (0.0, norm, 100.0):
        clip_gradient(parameters, norm, limit)
        assert float(gradient_norm(parameters)) == norm
    clip_gradient(parameters, norm, 0.5)
    assert float(gradient_norm(parameters)) == pytest.approx(0.5, rel=1e-6)
    assert parameters[0].grad[0, 0] / parameters[1].grad[0] == pytest.approx(-2.0)


def test_average_follows_its_formula() -> None:
    model = nn.Linear(3, 2)
    average = Average(AverageStage(decay=0.8, warmup=3), trained(model))
    expected = {name: parameter.detach().double() for name, parameter in trained(model).items()}
    for step in range(20):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update(step)
        keep = min(0.8, (step + 1) / (step + 4))
        assert average.decay(step) == pytest.approx(keep)
        expected = {n: keep * e + (1 - keep) * trained(model)[n].detach().double() for n, e in expected.items()}
    for name, value in expected.items():
        torch.testing.assert_close(average.tensors[name].double(), value, rtol=1e-5, atol=1e-6)
    assert Average(AverageStage(decay=0.9), trained(model)).decay(0) == 0.9


def test_averages_are_lent_to_the_model_and_given_back_to_the_bit() -> None:
    model = ToyModel(0, 0.0)
    average = Average(AverageStage(decay=0.5), trained(model))
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.add_(torch.randn(parameter.shape))
    weights = {name: parameter.detach().clone() for name, parameter in trained(model).items()}
    kept = {name: tensor.clone() for name, tensor in average.tensors.items()}
    with average.applied():
        assert all(torch.equal(trained(model)[name], tensor) for name, tensor in kept.items())
    assert all(torch.equal(trained(model)[name], tensor) for name, tensor in weights.items())
    assert all(torch.equal(average.tensors[name], tensor) for name, tensor in kept.items())


def test_no_average_takes_no_memory_and_lends_nothing() -> None:
    model = nn.Linear(3, 2)
    average = Average(AverageStage(), trained(model))
    before = model.weight.detach().clone()
    average.update(0)
    with average.applied():
        assert torch.equal(model.weight, before)
    assert not average.tensors
