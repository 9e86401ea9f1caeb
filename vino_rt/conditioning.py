"""Request -> what the transformer is conditioned on: text, boundary rows and references of each guidance branch.

The VLM's states and the connector are passed in; knows no backend (MODEL.md sections 3 and 5).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vino_rt.models.vino.prefill import VlmStates
from vino_rt.models.vino.prompt import VlmInput
from vino_rt.settings import Branch, Settings
from vino_rt.sources import Sources

Connect = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""States [L, H] and those at boundary tokens [R, H] -> text [L, Z], boundary rows [R, D]."""


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What one guidance branch is conditioned on."""

    text: Tensor
    """[L, Z] in the connector's precision"""
    boundary: Tensor
    """[2 * references, D]: start and end row of each reference in turn."""
    references: tuple[int, ...]
    """Indices of the request's reference latents (images, then the video) that this branch sees."""


def branch_input(branch: Branch, settings: Settings, sources: Sources) -> VlmInput:
    """Input of the vision-language model for a branch (MODEL.md section 5).

    The branch without images keeps the video and, where the last image is the one being edited, that image.
    """
    prompt = settings.prompt if branch == "prompt" else settings.negative
    images = sources.images
    if branch == "negative_no_images":
        images = images[-1:] if settings.base_image else ()
    return VlmInput(prompt, images, sources.vlm_frames)


def condition(states: VlmStates, references: int, connect: Connect) -> Conditioning:
    """Map one branch's VLM states to the transformer's conditioning.

    references: reference latents of the request; a branch that shows fewer uses the last ones (MODEL.md section 5).
    """
    rows = [row for pair in zip(states.vision_start, states.vision_end, strict=True) for row in pair]
    hidden = states.states.float()
    text, boundary = connect(hidden, hidden[torch.tensor(rows, dtype=torch.int64)])
    shown = len(states.vision_start)
    return Conditioning(text, boundary, tuple(range(references - shown, references)))


def join(branches: Sequence[Conditioning]) -> tuple[Tensor, Tensor]:
    """Text rows [T, Z] and boundary rows [R, D] of all branches, branch by branch, as a plan packs them."""
    return torch.cat([b.text for b in branches]), torch.cat([b.boundary for b in branches])
