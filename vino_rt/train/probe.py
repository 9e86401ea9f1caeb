"""A second teacher for the vision tower: each visual token tells which thing has its centre in it, and where.

Answers alone teach a tower slowly: one word in ten names a shape, and its gradient comes through all decoder layers.
The probe is a single linear layer and is thrown away afterwards. It knows scenes, no text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vino_rt.models.vino.prepare import VLM_FRAMES, Grid, vlm_frame_indices
from vino_rt.models.vino.prompt import GROUP_FRAMES
from vino_rt.world.scene import COLOURS, SHAPES, Scene

SHAPE, COLOUR = {name: i + 1 for i, name in enumerate(SHAPES)}, {name: i + 1 for i, name in enumerate(COLOURS)}
"""Classes of a token; 0 is: nothing has its centre here."""
OFFSET = 4.0
"""Weight of the offset: a tenth of a token off counts as much as a few hundredths of a nat."""


@dataclass(frozen=True, eq=False)
class Centres:
    """What each of V visual tokens should tell."""

    shape: Tensor
    """int64 [V]"""
    colour: Tensor
    """int64 [V]"""
    offset: Tensor
    """float32 [V, 2], down and right from the token's middle, from -0.5 to 0.5 tokens; 0 where nothing is"""

    def to(self, device: torch.device) -> "Centres":
        """A copy on a device."""
        return Centres(self.shape.to(device), self.colour.to(device), self.offset.to(device))

    @classmethod
    def cat(cls, parts: Sequence["Centres"]) -> "Centres":
        """One behind the other; empty without any."""
        if not parts:
            return cls(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2))
        return cls(
            torch.cat([p.shape for p in parts]),
            torch.cat([p.colour for p in parts]),
            torch.cat([p.offset for p in parts]),
        )


class Probe(nn.Module):
    """Linear from all that the tower says of a token, at unit scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The tower's output has no scale of its own; read as it is, its first steps would throw the offset far off.
        self.norm = nn.LayerNorm(width)
        self.read = nn.Linear(width, len(SHAPE) + len(COLOUR) + 4)

    def forward(self, rows: Tensor, centres: Centres) -> tuple[Tensor, Tensor]:
        """Rows [V, width] -> loss of each, float32 [V], and of each thing whether its shape is the likeliest, bool.

        The loss is cross entropies in nats and the squared offset of what is there.
        """
        shape, colour, offset = self.read(self.norm(rows)).float().split((len(SHAPE) + 1, len(COLOUR) + 1, 2), dim=-1)
        away = (offset.tanh() / 2 - centres.offset).square().sum(-1) * (centres.shape > 0)
        loss: Tensor = F.cross_entropy(shape, centres.shape, reduction="none") + OFFSET * away
        loss = loss + F.cross_entropy(colour, centres.colour, reduction="none")
        there = centres.shape > 0
        return loss, shape[there].argmax(-1) == centres.shape[there]


def picture_centres(scene: Scene, grid: Grid, merge: int) -> Centres:
    """What the tokens of a picture of a scene at rest should tell."""
    return _centres(scene, [0.0], grid, merge)


def clip_centres(scene: Scene, frames: int, fps: float, grid: Grid, merge: int) -> Centres:
    """What the tokens of a clip's VLM frames should tell: each pair of frames at the moment between the two."""
    moments = np.array(vlm_frame_indices(frames)).reshape(VLM_FRAMES // GROUP_FRAMES, -1).mean(1) / fps
    return _centres(scene, moments.tolist(), grid, merge)


def _centres(scene: Scene, moments: Sequence[float], grid: Grid, merge: int) -> Centres:
    rows, columns = grid[1] // merge, grid[2] // merge
    shape = torch.zeros(len(moments), rows, columns, dtype=torch.int64)
    colour, offset = torch.zeros_like(shape), torch.zeros(*shape.shape, 2)
    for number, moment in enumerate(moments):
        for thing in scene.things:
            pose = thing.pose(moment)
            row, column = (min(int(at * count), count - 1) for at, count in ((pose.y, rows), (pose.x, columns)))
            shape[number, row, column], colour[number, row, column] = SHAPE[thing.shape], COLOUR[thing.colour]
            offset[number, row, column, 0] = pose.y * rows - row - 0.5
            offset[number, row, column, 1] = pose.x * columns - column - 0.5
    return Centres(shape.flatten(), colour.flatten(), offset.flatten(0, 2))
