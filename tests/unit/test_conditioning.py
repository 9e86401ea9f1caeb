"""What each guidance branch is shown, and how states become text, boundary rows and references."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vino_rt.conditioning import Conditioning, branch_input, condition, join
from vino_rt.models.vino.prefill import VlmStates
from vino_rt.request import Pixels
from vino_rt.settings import Branch, Settings, SourceSizes, branches
from vino_rt.sources import Sources

IMAGES: tuple[Pixels, ...] = tuple(np.full((16, 16, 3), value, np.uint8) for value in (10, 20, 30))
CLIP: Pixels = np.full((8, 16, 16, 3), 40, np.uint8)


def settings(**changes: Any) -> Settings:
    given: dict[str, Any] = {
        "prompt": "a cat", "task": "ti2i", "width": 64, "height": 48, "frames": 1, "fps": 24.0, "steps": 2, "seed": 0,
        "guidance": 5.0, "shift": 5.0, "image_guidance": 2.0, "negative": "a dog", "images": 3, "base_image": False,
        "spatial_tiling": False, "sample_posterior": False,
    }  # fmt: skip
    return Settings(**given | changes)


def sources(images: int, clip: bool) -> Sources:
    return Sources(SourceSizes(), IMAGES[:images], CLIP[:5] if clip else None, CLIP if clip else None)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("prompt", "negative", "negative_no_images")),
        ({"image_guidance": 1.0}, ("prompt", "negative")),
        ({"images": 0}, ("prompt", "negative")),
        ({"guidance": 1.0, "image_guidance": 1.0}, ("prompt",)),
        ({"guidance": 0.0, "image_guidance": 1.0}, ("prompt",)),
    ],
)
def test_branches(changes: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert branches(settings(**changes)) == expected


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(
    ("branch", "base_image", "prompt", "images"),
    [
        ("prompt", False, "a cat", [10, 20, 30]),
        ("prompt", True, "a cat", [10, 20, 30]),
        ("negative", False, "a dog", [10, 20, 30]),
        ("negative", True, "a dog", [10, 20, 30]),
        ("negative_no_images", False, "a dog", []),
        ("negative_no_images", True, "a dog", [30]),
    ],
)
def test_what_a_branch_is_shown(branch: Branch, base_image: bool, prompt: str, images: list[int], clip: bool) -> None:
    given = branch_input(branch, settings(base_image=base_image), sources(3, clip))
    assert given.prompt == prompt
    assert [int(image[0, 0, 0]) for image in given.images] == images
    assert given.video is (CLIP if clip else None)


class Connector:
    """Keeps what it was given; text is the states' first three columns, boundary twice the first two."""

    def __init__(self) -> None:
        self.given: list[tuple[Tensor, Tensor]] = []

    def __call__(self, states: Tensor, boundary: Tensor) -> tuple[Tensor, Tensor]:
        self.given.append((states, boundary))
        return states[:, :3], 2 * boundary[:, :2]


def states(start: tuple[int, ...], end: tuple[int, ...], rows: int = 17) -> VlmStates:
    return VlmStates(torch.randn(rows, 5), start, end)


def test_boundary_rows_alternate_start_and_end() -> None:
    given, connector = states((2, 8), (6, 11)), Connector()
    result = condition(given, 2, connector)
    assert torch.equal(result.text, given.states[:, :3])
    assert torch.equal(result.boundary, 2 * given.states[[2, 6, 8, 11], :2])
    assert result.references == (0, 1)


def test_states_reach_the_connector_as_float32() -> None:
    connector = Connector()
    given = states((2,), (6,))
    condition(VlmStates(given.states.bfloat16(), (2,), (6,)), 1, connector)
    assert [tensor.dtype for tensor in connector.given[0]] == [torch.float32] * 2


@pytest.mark.parametrize(("shown", "references", "expected"), [(0, 2, ()), (1, 3, (2,)), (2, 3, (1, 2)), (0, 0, ())])
def test_a_branch_that_shows_fewer_uses_the_last(shown: int, references: int, expected: tuple[int, ...]) -> None:
    rows = tuple(range(1, 1 + shown))
    result = condition(states(rows, tuple(row + 5 for row in rows)), references, Connector())
    assert result.references == expected
    assert result.boundary.shape == (2 * shown, 2)


def test_join_keeps_the_order_of_branches() -> None:
    made = [Conditioning(torch.randn(n, 3), torch.randn(m, 2), ()) for n, m in ((5, 4), (1, 0), (7, 2))]
    text, boundary = join(made)
    assert text.shape == (13, 3)
    assert boundary.shape == (6, 2)
    assert torch.equal(text[5:6], made[1].text)
    assert torch.equal(text[6:], made[2].text)
    assert torch.equal(boundary[:4], made[0].boundary)
    assert torch.equal(boundary[4:], made[2].boundary)
