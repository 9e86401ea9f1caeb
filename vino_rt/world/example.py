"""One example of a task: what is given, what is asked, what is right; and the pixels of each.

It knows scenes and how they are drawn, not how examples are chosen.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vino_rt.world.dice import Dice
from vino_rt.world.draw import Pixels, coverage, draw
from vino_rt.world.layout import Canvas
from vino_rt.world.scene import FPS, Scene, Thing

LONGEST = 2.0
"""Seconds a clip lasts at most: more frames show the same time more finely, so things stay on the canvas."""
AROUND = 3
"""Pixels by which the mask of an edit reaches beyond what changed: soft rims and the model's own blur."""
RIM = 1
"""Pixels by which the mask of a new background reaches beyond it; more would swallow small things."""


@dataclass(frozen=True)
class Example:
    """References, prompt and truth of one example; pictures are drawn when asked for."""

    task: str
    """One of `vino_rt.request.TASKS`."""
    kind: str
    prompt: str
    target: Scene
    frames: int
    """Frames of the target and of the video: 1 for images."""
    width: int
    height: int
    images: tuple[Scene, ...] = ()
    """Reference images, shown as they are at time 0."""
    video: Scene | None = None
    base_image: bool = False
    """The last image is the one to edit, the others are what to edit it with."""
    focus: tuple[int, ...] = ()
    """Indices of the target's things that the prompt is about."""
    edited: tuple[int, ...] = ()
    """Indices of the things an edit changes: in the source for `remove`, in the target for `add`, in both else."""

    @property
    def fps(self) -> float:
        """Frames in a second: `FPS`, more for clips of more than `LONGEST` seconds."""
        return max(FPS, (self.frames - 1) / LONGEST)

    @property
    def aspect(self) -> float:
        """Width / height."""
        return self.width / self.height

    @property
    def source(self) -> Scene | None:
        """What an edit starts from: the video, else the last image; None where nothing is edited."""
        if not self.edits:
            return None
        return self.video if self.video is not None else self.images[-1]

    @property
    def edits(self) -> bool:
        """Whether the target is a changed source, everything else in it kept."""
        return self.kind in EDITS

    @property
    def about(self) -> tuple[Thing, ...]:
        """The things the prompt is about: those in focus and those that an edit takes away."""
        removed = self.edited if self.kind == "remove" else ()
        things = () if self.source is None else self.source.things
        return (*(self.target.things[i] for i in self.focus), *(things[i] for i in removed))

    @property
    def scenes(self) -> tuple[Scene, ...]:
        """Everything shown."""
        return (*self.images, *([self.video] if self.video is not None else []), self.target)

    def picture(self, index: int) -> Pixels:
        """A reference image, uint8 [H, W, 3]."""
        picture: Pixels = draw(self.images[index], width=self.width, height=self.height)[0]
        return picture

    def clip(self) -> Pixels | None:
        """The reference video, uint8 [F, H, W, 3]."""
        return None if self.video is None else self._drawn(self.video)

    def truth(self) -> Pixels:
        """What is right, uint8 [F, H, W, 3]."""
        return self._drawn(self.target)

    def mask(self) -> NDArray[np.bool_]:
        """Pixels that an edit touches, [F, H, W]: what changes, in source or target, and `AROUND` pixels about it.

        A new background touches all but the things that stay, and their rims; without an edit all pixels are touched.
        """
        shape = (self.frames, self.height, self.width)
        source = self.source
        if source is None:
            return np.ones(shape, np.bool_)
        changed = np.zeros(shape, np.bool_)
        for scene, other in ((source, self.target), (self.target, source)):
            for index, thing in enumerate(scene.things):
                if thing not in other.things:
                    changed |= self._covered(scene, index)
        changed = _grown(changed, AROUND)
        if source.background != self.target.background:
            kept = np.zeros(shape, np.bool_)
            for index, thing in enumerate(source.things):
                if thing in self.target.things:
                    kept |= self._covered(source, index, whole=True)
            changed |= _grown(~kept, RIM)
        return changed

    def _drawn(self, scene: Scene) -> Pixels:
        return draw(scene, width=self.width, height=self.height, frames=self.frames, fps=self.fps)

    def _covered(self, scene: Scene, index: int, *, whole: bool = False) -> NDArray[np.bool_]:
        """Pixels of each frame in which a thing lies, or that it fills."""
        least = 1.0 if whole else np.finfo(np.float32).tiny
        size = (self.width, self.height)
        return np.stack([coverage(index, scene, *size, i / self.fps) >= least for i in range(self.frames)])


EDITS = ("recolour", "replace", "add", "remove", "move", "background", "with_reference")
"""Kinds of examples whose target is a changed source."""


@dataclass(frozen=True)
class Brief:
    """What a maker of examples is told."""

    dice: Dice
    task: str
    kind: str
    width: int
    height: int
    frames: int
    length: str
    """Style of the prompt: "long" or "short"."""

    @property
    def long(self) -> bool:
        """Whether a long prompt is wanted."""
        return self.length == "long"

    @property
    def canvas(self) -> Canvas:
        """What scenes must fit."""
        return Canvas(self.width / self.height, min((self.frames - 1) / FPS, LONGEST))

    def example(
        self,
        prompt: str,
        target: Scene,
        *,
        images: tuple[Scene, ...] = (),
        video: Scene | None = None,
        base_image: bool = False,
        focus: tuple[int, ...] = (),
        edited: tuple[int, ...] = (),
    ) -> Example:
        """An example as briefed, of these fields of `Example`."""
        brief = (self.frames, self.width, self.height)
        return Example(self.task, self.kind, prompt, target, *brief, images, video, base_image, focus, edited)


def _grown(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """The mask [F, H, W] with every pixel at most `by` rows and columns away from it."""
    result = mask
    for axis in (1, 2):
        padding = [(by, by) if i == axis else (0, 0) for i in range(3)]
        padded = np.pad(result, padding)
        length = mask.shape[axis]
        result = np.logical_or.reduce([padded.take(range(i, i + length), axis) for i in range(2 * by + 1)])
    return result
