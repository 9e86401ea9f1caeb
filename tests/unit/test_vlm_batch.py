"""A batch through the VLM equals its samples alone, lets gradients into the queries, and costs less than they do."""

import dataclasses
import pickle
import time
from typing import Any

import numpy as np
import pytest
import torch

from vino_rt.errors import InputError
from vino_rt.models.vino.conditioner import Conditioner
from vino_rt.models.vino.prompt import ProcessedInput, VlmInput
from vino_rt.train.vlm_batch import VlmBatch, batch_states, collate

LIMIT = 1e-5


def noise(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def inputs(vlm: Conditioner) -> list[ProcessedInput]:
    """Every mix of references, pictures of several shapes, prompts of several lengths and none."""
    given = [
        VlmInput("Put the hat on the man, then let him walk away."),
        VlmInput("", (noise(48, 64, 3),)),
        VlmInput("Two of them.", (noise(64, 64, 3), noise(96, 32, 3)), noise(8, 45, 83, 3)),
        VlmInput("A clip", (), noise(8, 64, 64, 3)),
        VlmInput(""),
        VlmInput("An image and a clip", (noise(64, 64, 3),), noise(8, 83, 45, 3)),
    ]
    return [vlm.process(each) for each in given]


def batched(vlm: Conditioner, inputs: list[ProcessedInput]) -> VlmBatch:
    return collate(inputs, vlm.vision_ids, queries=len(vlm.metaquery), merge_size=vlm.merge_size)


def test_every_sample_is_what_it_is_alone(vlm: Conditioner, inputs: list[ProcessedInput]) -> None:
    with torch.inference_mode():
        batch = batched(vlm, inputs)
        assert {grid[1:] for part in batch.patches for grid in part.grids} != {batch.patches[0].grids[0][1:]}
        together = batch_states(vlm, batch)
        alone = [vlm(each) for each in inputs]
    assert together.lengths == tuple(len(single.states) for single in alone)
    for single, states in zip(alone, torch.split(together.states, list(together.lengths)), strict=True):
        assert (states - single.states).abs().max().item() <= LIMIT
    assert together.starts == tuple(single.vision_start for single in alone)
    assert together.ends == tuple(single.vision_end for single in alone)
    bounds = together.states[together.boundary]
    expected = [s.states[row] for s in alone for pair in zip(s.vision_start, s.vision_end, strict=True) for row in pair]
    assert (bounds - torch.stack(expected)).abs().max().item() <= LIMIT


@pytest.mark.parametrize("members", [[0], [4], [1, 3], [0, 0, 2]])
def test_a_part_of_the_batch(vlm: Conditioner, inputs: list[ProcessedInput], members: list[int]) -> None:
    chosen = [inputs[number] for number in members]
    with torch.inference_mode():
        together = batch_states(vlm, batched(vlm, chosen))
        alone = torch.cat([vlm(each).states for each in chosen])
    assert (together.states - alone).abs().max().item() <= LIMIT


def test_without_queries(vlm: Conditioner, inputs: list[ProcessedInput]) -> None:
    batch = collate(inputs[:3], vlm.vision_ids, merge_size=vlm.merge_size)
    with torch.inference_mode():
        states = batch_states(vlm, batch, vlm.metaquery[:0]).states
        alone = torch.cat([vlm(each).states[: len(each.input_ids)] for each in inputs[:3]])
    assert (states - alone).abs().max().item() <= LIMIT


def test_gradients_reach_the_queries_and_nothing_else(vlm: Conditioner, inputs: list[ProcessedInput]) -> None:
    queries = vlm.metaquery.detach().clone().requires_grad_()
    found = batch_states(vlm, batched(vlm, inputs), queries)
    torch.manual_seed(0)
    weight = torch.randn_like(found.states)
    torch.autograd.backward((found.states * weight).sum())
    assert queries.grad is not None
    assert all(parameter.grad is None for parameter in vlm.parameters())
    # The slope along a direction, by a difference in float32, says that it is the gradient of this very function.
    way, step = torch.randn_like(queries), 1e-3
    with torch.inference_mode():
        ahead, behind = (
            (batch_states(vlm, batched(vlm, inputs), queries + sign * step * way).states * weight).double().sum()
            for sign in (1, -1)
        )
    assert ((ahead - behind) / (2 * step)).item() == pytest.approx((queries.grad * way).sum().item(), rel=2e-2)


def test_a_batch_survives_a_pipe_and_a_device(vlm: Conditioner, inputs: list[ProcessedInput]) -> None:
    batch = batched(vlm, inputs)
    again = pickle.loads(pickle.dumps(batch)).to(torch.device("cpu"))
    with torch.inference_mode():
        assert torch.equal(batch_states(vlm, again).states, batch_states(vlm, batch).states)


def test_grids_that_do_not_fit_the_text(vlm: Conditioner, inputs: list[ProcessedInput]) -> None:
    wrong = dataclasses.replace(inputs[0], input_ids=inputs[1].input_ids)
    with pytest.raises(InputError, match="visual tokens stand in a row"):
        batched(vlm, [wrong])


def test_a_batch_is_cheaper_than_its_samples(vlm: Conditioner, inputs: list[ProcessedInput]) -> None:
    many = [inputs[1], inputs[3]] * 12
    batch = batched(vlm, many)

    def seconds(run: Any) -> float:
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin

    with torch.inference_mode():
        together = min(seconds(lambda: batch_states(vlm, batch)) for _ in range(3))
        alone = min(seconds(lambda: [vlm(each) for each in many]) for _ in range(2))
    assert together < alone / 2
