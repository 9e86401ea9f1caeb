"""The tasks, what each takes and makes, and how one is inferred from a request (MODEL.md section 2)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vino_rt.errors import InputError, UsageError

Size = tuple[int, int]
"""Width and height in pixels."""

MAX_IMAGES = 9
"""Most image references of a request; each adds about a full frame of tokens to every branch."""


@dataclass(frozen=True)
class TaskRule:
    """The references that a task takes, and what decides the size of its output."""

    images: tuple[int, int]
    """Least and most image references."""
    video: bool
    """Whether it edits or follows a video reference."""
    still: bool
    """Whether it makes one frame."""
    size_from: Literal["request", "image", "video"]


TASKS: Mapping[str, TaskRule] = {
    "t2i": TaskRule((0, 0), False, True, "request"),
    "t2v": TaskRule((0, 0), False, False, "request"),
    "i2v": TaskRule((1, MAX_IMAGES), False, False, "image"),
    "ti2v": TaskRule((1, MAX_IMAGES), False, False, "request"),
    "ti2i": TaskRule((1, MAX_IMAGES), False, True, "image"),
    "tv2v": TaskRule((0, 0), True, False, "video"),
    "tiv2v": TaskRule((1, MAX_IMAGES), True, False, "video"),
    "clone": TaskRule((1, MAX_IMAGES), True, False, "video"),
}
"""The tasks of MODEL.md section 2; `clone` is `tiv2v` under the name of what its instruction asks for."""


def infer_task(images: int, video: bool, frames: int | None, size: Size | None, *, moving: bool | None = None) -> str:
    """The task that references, frames and size imply; moving: whether a clip is wanted (None: frames above 1)."""
    if video:
        return "tiv2v" if images else "tv2v"
    if moving is None:
        moving = frames is not None and frames > 1
    if not moving:
        return "ti2i" if images else "t2i"
    if not images:
        return "t2v"
    return "i2v" if images == 1 and size is None else "ti2v"


def check_task(task: str, images: int, video: bool, frames: int | None) -> None:
    """Raise InputError for an unknown task, UsageError for one that its references or frames contradict."""
    if not isinstance(task, str) or task not in TASKS:
        raise InputError(f"task is {task!r}; legal tasks are {', '.join(TASKS)}")
    rule = TASKS[task]
    low, high = rule.images
    if not low <= images <= high:
        raise UsageError(f"task {task} takes {f'{low} to {high}' if high else 'no'} image references, given {images}")
    if video != rule.video:
        raise UsageError(f"task {task} {'needs a' if rule.video else 'takes no'} video reference")
    if rule.still and frames not in (None, 1):
        raise UsageError(f"task {task} makes one image, frames is {frames}; leave frames out or name a video task")
    if not rule.still and not rule.video and frames == 1:
        raise UsageError(f"task {task} makes a video, frames is 1; ask for 5 or more or name an image task")
