"""Whether frames are what an example asks for, for every task: `judge`, and the measure of what stayed the same.

It knows examples and what is seen in frames; it knows no model. `floor` tells how well an autoencoder alone could have
kept a picture, so that a task is not failed for the decoder's sake.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vino_rt.world.example import AROUND, Example
from vino_rt.world.examples import PROXIES
from vino_rt.world.judge.match import Pair, looks, moves, pairs, placed, surroundings
from vino_rt.world.judge.see import Pixels, see_all
from vino_rt.world.judge.watch import Track, follow

Mask = NDArray[np.bool_]
Reconstruct = Callable[[Pixels], Pixels]
"""Frames uint8 [F, H, W, 3] to what an autoencoder makes of them, of the same shape."""

SLACK = 3.0
"""dB that a kept picture may fall below its reconstruction."""
BEST = 60.0
"""dB at which pictures count as equal: a mean square error of a fifteenth of a step."""
FAIR = 27.0
"""dB that a kept picture must reach where no autoencoder is given."""


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, which parts of it are, and what was seen, for people."""

    right: bool
    parts: Mapping[str, bool]
    seen: str


def psnr(first: Pixels, second: Pixels, where: NDArray[np.bool_] | None = None) -> float:
    """Peak signal to noise ratio in dB of two uint8 arrays [..., H, W, 3], over the pixels `where` [..., H, W].

    At most `BEST`, also for no pixels at all: nothing differs.
    """
    assert first.shape == second.shape, f"{first.shape} against {second.shape}"
    error = (first.astype(np.float32) - second) ** 2
    if where is not None:
        error = error[where]
    mean = float(error.mean(dtype=np.float64)) if error.size else 0.0
    return BEST if mean <= 255**2 / 10 ** (BEST / 10) else float(10 * np.log10(255**2 / mean))


def kept(frames: Pixels, source: Pixels, floor: Reconstruct | None, edit: tuple[Pixels, Mask] | None = None) -> bool:
    """Whether frames show the source's pixels nearly as well as an autoencoder does.

    `edit` is the right answer and the pixels that it keeps: only those count then, and the autoencoder need not do
    better on the answer than on the source. It codes them together with what is edited, so they come out otherwise.
    """
    truth, where = edit or (source, None)
    needed = FAIR
    if floor is not None:
        given = [source] if edit is None else [source, truth]
        needed = min(psnr(floor(pixels), source, where) for pixels in given) - SLACK
    return psnr(frames, source, where) >= needed


def judge(example: Example, frames: Pixels, *, floor: Reconstruct | None = None) -> Verdict:
    """Judge the answer to an example, uint8 [F, H, W, 3] of the example's size and number of frames.

    The parts always hold `colour`, `shape`, `number` and `alone`; clips add what moves, edits and first frames `kept`.
    What must hold for an answer to be right depends on the task and stands in `_needed`.
    """
    size = (example.frames, example.height, example.width, 3)
    assert frames.shape == size, f"{frames.shape}: the example has {size}"
    pictures = see_all(frames)
    found = follow(pictures, example.aspect, example.fps)
    matched = pairs(example.target.things, found, example.aspect)
    background = _commonest([picture.background for picture in pictures])
    parts = looks(matched, found)
    if example.frames > 1:
        parts |= moves(matched, example.prompt)
    if example.edits:
        parts |= _edit(example, frames, matched, background, parts, floor)
    else:
        parts |= surroundings(matched, example.prompt, example.target, background, example.aspect)
    if example.task == "i2v" or example.kind in PROXIES:
        wanted = example.truth() if example.kind in PROXIES else example.picture(0)[None]
        parts["kept"] = kept(frames[:1], wanted[:1], floor)
    return Verdict(all(parts[name] for name in _needed(example, parts)), parts, _seen(found, background))


def _needed(example: Example, parts: Mapping[str, bool]) -> tuple[str, ...]:
    """Names of the parts that decide, as the score table words it."""
    if example.edits:
        return ("done", "kept")
    if example.task == "i2v":
        return ("kept", "motion")
    if example.task == "t2v":
        return ("motion",)
    things = ("colour", "shape", "number")
    if example.kind in PROXIES:
        return (*things, "alone", "kept")
    if example.task == "t2i":
        # Two objects are two and not three; of one it is asked whether it is there once.
        return things if example.kind == "single" else (*things, "alone")
    return (*things, "motion", *(name for name in ("place", "side") if name in parts))


def _edit(
    example: Example,
    frames: Pixels,
    matched: Sequence[Pair],
    background: str,
    parts: Mapping[str, bool],
    floor: Reconstruct | None,
) -> dict[str, bool]:
    """Whether an edit is done (all is as in the target, at its place and moving so, nothing else), the rest kept."""
    clip = example.clip()
    source = clip if clip is not None else example.picture(len(example.images) - 1)[None]
    before = example.source
    assert before is not None
    # Where a thing is put somewhere new, the prompt names a region and not a point: what lies about it is not kept.
    kept_places = {(thing.x, thing.y) for thing in before.things}
    free = [i for i, thing in enumerate(example.target.things) if (thing.x, thing.y) not in kept_places]
    mask = example.mask()
    for index in free:
        mask |= _about(matched[index][1], mask.shape)
    own = {
        "background": background == example.target.background,
        "placed": placed(matched, free, example.prompt, example.aspect),
    }
    done = [*own.values(), *(parts[name] for name in ("colour", "shape", "number", "alone"))]
    done.append(parts.get("motion", True))
    return {**own, "done": all(done), "kept": kept(frames, source, floor, (example.truth(), ~mask))}


def _about(track: Track | None, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The pixels [F, H, W] of a resting thing that was found, and `AROUND` pixels about it; none if it was not."""
    if track is None:
        return np.zeros(shape, np.bool_)
    _, height, width = shape
    x = np.arange(width) + 0.5 - track.first.x * width
    y = np.arange(height) + 0.5 - track.first.y * height
    reach = track.first.radius * (height * width) ** 0.5 + AROUND
    return np.broadcast_to(np.hypot(x, y[:, None]) <= reach, shape)


def _commonest(names: Sequence[str]) -> str:
    return max(dict.fromkeys(names), key=names.count)


def _seen(found: Sequence[Track], background: str) -> str:
    return f"{', '.join(map(str, found)) or 'nothing'} on {background}"
