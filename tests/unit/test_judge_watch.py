"""The judge on clips of rendered truth: directions, speeds, turns and growth, and things that flicker."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.degraded import degraded
from vino_rt.world.dice import thrown
from vino_rt.world.draw import draw
from vino_rt.world.judge import watch
from vino_rt.world.judge.see import Seen, SeenThing
from vino_rt.world.judge.watch import follow
from vino_rt.world.layout import Canvas, any_motion, any_thing, arrange
from vino_rt.world.scene import BACKGROUNDS, TEXTURES, Motion, Scene, Thing


def clip_scene(*seed: object, frames: int) -> Scene | None:
    """One to three things with motions, any texture."""
    dice = thrown("watch", frames, *seed)
    number = dice.one((1, 2, 3))
    sizes = ("small", "large") if number < 3 else ("tiny",)
    things: list[Thing] = []
    for _ in range(number):
        thing = any_thing(dice, things, sizes)
        motion = any_motion(dice, thing.shape)
        things.append(replace(thing, texture=dice.one(TEXTURES), motion=motion))
    placed = arrange(dice, things, Canvas(1.0, (frames - 1) / 8))
    return None if placed is None else Scene(dice.one(tuple(BACKGROUNDS)), placed)


@pytest.mark.parametrize(("frames", "bad"), [(17, False), (17, True), (5, True)])
def test_motion_of_rendered_truth_is_seen(frames: int, bad: bool) -> None:
    rng, total = np.random.default_rng(0), Counter[str]()
    for index in range(130):
        scene = clip_scene(index, frames=frames)
        if scene is None:
            continue
        pixels = draw(scene, width=64, height=64, frames=frames)
        tracks = watch(degraded(pixels, rng, sigma=0.8, noise=3.0, shift=5.0) if bad else pixels)
        total["number"] += len(scene.things)
        for thing in scene.things:
            track = min(tracks, key=lambda track: abs(track.first.x - thing.x) + abs(track.first.y - thing.y))
            motion = thing.motion
            total["colour"] += track.colour == thing.colour
            total["shape"] += track.shape == thing.shape
            total["direction"] += track.direction == motion.direction
            total["speed"] += track.speed == (motion.speed if motion.direction else None)
            total["spins"] += track.spins == motion.spins
            total["growth"] += track.growth == motion.growth
    assert total["number"] > 100
    assert all(count >= (0.97 if bad else 0.99) * total["number"] for count in total.values()), total


@pytest.mark.parametrize("fps", [8.0, 16.0, 24.0])
def test_speeds_are_in_seconds(fps: float) -> None:
    frames = int(fps) + 1
    for speed in ("slowly", "quickly"):
        moving = Thing("ring", "pink", 0.3, 0.5, motion=Motion("right", speed))
        (track,) = watch(draw(Scene("gray", (moving,)), width=64, height=64, frames=frames, fps=fps), fps)
        assert (track.direction, track.speed, track.frames) == ("right", speed, frames)


def test_a_single_frame_rests() -> None:
    (track,) = watch(draw(Scene("black", (Thing("star", "green", 0.5, 0.5),)), width=48, height=80))
    assert (track.direction, track.speed, track.spins, track.growth) == (None, None, False, None)
    assert str(track) == "green star at (0.50, 0.50) rests"


def seen(*things: tuple[str, float, float]) -> Seen:
    return Seen("black", tuple(SeenThing("circle", colour, x, y, 0.1, 0.03) for colour, x, y in things))


def test_a_flicker_is_no_thing_and_a_gap_does_not_cut_a_track() -> None:
    pictures = [seen(("red", 0.2 + 0.03 * i, 0.5), ("blue", 0.8, 0.2)) for i in range(9)]
    pictures[3] = seen(("blue", 0.8, 0.2))
    pictures[5] = seen(("red", 0.35, 0.5), ("blue", 0.8, 0.2), ("green", 0.5, 0.9))
    red, blue = follow(pictures, 1.0)
    assert (red.colour, red.frames, red.direction, red.speed) == ("red", 8, "right", "quickly")
    assert (blue.colour, blue.frames, blue.direction) == ("blue", 9, None)


def test_things_that_pass_each_other_keep_their_colours() -> None:
    pictures = [seen(("red", 0.3 + 0.05 * i, 0.50), ("blue", 0.7 - 0.05 * i, 0.56)) for i in range(9)]
    red, blue = follow(pictures, 1.0)
    assert (red.colour, red.direction, blue.colour, blue.direction) == ("red", "right", "blue", "left")


def test_aslant_is_no_direction() -> None:
    (track,) = follow([seen(("red", 0.3 + 0.03 * i, 0.3 + 0.025 * i)) for i in range(9)], 1.0)
    assert track.direction is None
