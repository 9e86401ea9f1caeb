"""Request -> what the transformer is conditioned on: text, boundary rows and references of each guidance branch.

Works on states and through the connector it is handed; knows no backend.
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
    """What one guidance branch sees."""

    text: Tensor
    """[L, Z] in the connector's precision"""
    boundary: Tensor
    """[2 * references, D]: start and end row of each reference in turn."""
    references: tuple[int, ...]
    """Which of the request's reference latents, in order (images, then the video)."""


def branch_input(branch: Branch, settings: Settings, sources: Sources) -> VlmInput:
    """What the vision-language model sees of a branch (MODEL.md section 5).

    The branch without images keeps the video and, where the last image is the one being edited, that image.
    """
    prompt = settings.prompt if branch == "prompt" else settings.negative
    images = sources.images
    if branch == "negative_no_images":
        images = images[-1:] if settings.base_image else ()
    return VlmInput(prompt, images, sources.vlm_frames)


def condition(states: VlmStates, references: int, connect: Connect) -> Conditioning:
    """Connect one branch's states.

    references: how many latents the request has; a branch that shows fewer uses the last of them (MODEL.md section 5).
    """
    rows = [row for pair in zip(states.vision_start, states.vision_end, strict=True) for row in pair]
    hidden = states.states.float()
    text, boundary = connect(hidden, hidden[torch.tensor(rows, dtype=torch.int64)])
    shown = len(states.vision_start)
    return Conditioning(text, boundary, tuple(range(references - shown, references)))


def join(branches: Sequence[Conditioning]) -> tuple[Tensor, Tensor]:
    """Text rows [T, Z] and boundary rows [R, D] of all branches, branch by branch, as a plan packs them."""
    return torch.cat([b.text for b in branches]), torch.cat([b.boundary for b in branches])
