"""`guide_and_step`: the kernel against its reference and float64, the reference against the schedule."""

import pytest
import torch
from torch import Tensor

from tests.kernels.accuracy import DTYPES, assert_as_accurate, converted, drawn
from vino_kernels.guide_and_step import _op, guide_and_step
from vino_kernels.guide_and_step.ref import guide_and_step_ref
from vino_kernels.guide_and_step.triton import launch
from vino_rt.schedule import euler, guide

SHAPES = {"one": (1,), "none": (0, 16), "odd": (3, 5, 7), "two_programs": (1, 1025)}
GUIDANCE, DELTA = (6.5, 1.7), 0.037


def inputs(shape: tuple[int, ...], branches: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, velocity, guidance, delta."""
    latents, velocity = drawn(*shape, dtype=dtype, seed=1), drawn(branches, *shape, dtype=dtype, seed=2)
    return latents, velocity, torch.tensor(GUIDANCE), torch.tensor([DELTA])


def truth(tensors: tuple[Tensor, ...]) -> Tensor:
    latents, velocity, guidance, delta = tensors
    return guide_and_step_ref(latents.double(), velocity.double(), guidance, delta)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("branches", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_kernel(device: torch.device, shape: tuple[int, ...], branches: int, dtype: torch.dtype) -> None:
    tensors = inputs(shape, branches, dtype)
    got = launch(*converted(tensors, device))
    assert_as_accurate(got, guide_and_step_ref(*tensors), truth(tensors))


def test_kernel_with_float32_latents(device: torch.device) -> None:
    latents, velocity, guidance, delta = inputs((3, 37), 3, torch.bfloat16)
    tensors = latents.float() + 1e-4, velocity, guidance, delta
    got = launch(*converted(tensors, device))
    assert_as_accurate(got, guide_and_step_ref(*tensors), truth(tensors))


@pytest.mark.gpu
def test_offsets_beyond_two_to_the_31() -> None:
    """Of the velocities: the latents are smaller than 2**31, the last branch begins behind it."""
    count = 2**30 + 48
    latents, velocity = torch.zeros(count, device="cuda"), torch.zeros(3, count, dtype=torch.bfloat16, device="cuda")
    latents[-1], velocity[:, -1] = 1.0, torch.tensor([1.0, 2.0, 4.0])
    out = guide_and_step(latents, velocity, torch.tensor([3.0, 2.0]).cuda(), torch.tensor([0.5]).cuda())
    assert out[-1] == 1.0 - 0.5 * (4.0 + 2.0 * (2.0 - 4.0) + 3.0 * (1.0 - 2.0))
    assert not out[:-1].any()


@pytest.mark.parametrize("branches", [1, 2, 3])
def test_reference_is_the_schedule(branches: int) -> None:
    tensors = latents, velocity, _, delta = inputs((3, 5, 7), branches, torch.float32)
    expected = euler(latents, guide(velocity, *GUIDANCE), delta)
    torch.testing.assert_close(guide_and_step(*tensors), expected, rtol=0, atol=1e-6)


def test_registration() -> None:
    torch.library.opcheck(_op, inputs((3, 5), 3, torch.float32))


def test_shapes_that_do_not_fit() -> None:
    latents, velocity, guidance, delta = inputs((3, 5), 2, torch.float32)
    with pytest.raises(ValueError, match="1 to 3 branches"):
        guide_and_step(latents, velocity[:, :2], guidance, delta)
    with pytest.raises(ValueError, match="1 to 3 branches"):
        guide_and_step(latents, velocity.repeat(2, 1, 1), guidance, delta)
    with pytest.raises(ValueError, match=r"guidance must be float32 \[2\]"):
        guide_and_step(latents, velocity, guidance[:1], delta)
    with pytest.raises(TypeError, match="latents is torch"):
        launch(latents.double(), velocity, guidance, delta)
