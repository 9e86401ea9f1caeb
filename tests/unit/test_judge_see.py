"""The judge's eye on rendered truth: things found with colour, shape, number and place, also through a bad decoder."""

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from tests.unit.degraded import degraded
from vino_rt.world.dice import Dice, thrown
from vino_rt.world.draw import coverage, draw
from vino_rt.world.judge import see
from vino_rt.world.judge.regions import grow, label, shrink
from vino_rt.world.judge.see import SPECK, Seen
from vino_rt.world.judge.shapes import TURN, form, wrap
from vino_rt.world.layout import Canvas, arrange
from vino_rt.world.scene import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, Motion, Scene, Thing

SIZES = ((64, 64), (80, 48), (48, 80))
NEAR = 1.5
"""Pixels by which a centre may be off."""


def scene(dice: Dice, aspect: float) -> Scene:
    """One to four things of any kind, textures as frequent as plain colour; several may share colour and shape."""
    while True:
        number = dice.weighted({1: 0.35, 2: 0.35, 3: 0.2, 4: 0.1})
        sizes = ("small", "large") if number < 3 else ("tiny",)
        things = [
            Thing(dice.one(SHAPES), dice.one(tuple(COLOURS)), 0.5, 0.5, dice.one(sizes), dice.one(TEXTURES))
            for _ in range(number)
        ]
        placed = arrange(dice, things, Canvas(aspect, 0.0))
        if placed is not None:
            return Scene(dice.one(tuple(BACKGROUNDS)), placed)


def scenes(count: int, seed: str) -> Iterator[tuple[Scene, int, int]]:
    """Scenes with the width and height to draw them at."""
    for index in range(count):
        width, height = SIZES[index % len(SIZES)]
        yield scene(thrown("judge", seed, index), width / height), width, height


def tally(truth: Scene, seen: Seen, width: int, height: int) -> Counter[str]:
    """How many things there are, and how many of them were found right in place, colour, shape and size."""
    count = Counter(things=len(truth.things), scenes=1)
    count["number"] += len(seen.things) == len(truth.things)
    count["background"] += seen.background == truth.background
    for thing in truth.things:
        near = [
            other
            for other in seen.things
            if math.hypot((other.x - thing.x) * width, (other.y - thing.y) * height) < NEAR
        ]
        if len(near) == 1:
            count["place"] += 1
            for part in ("colour", "shape", "size"):
                count[part] += getattr(near[0], part) == getattr(thing, part)
    return count


@pytest.mark.parametrize(
    ("sigma", "noise", "shift", "least"), [(0.0, 0.0, 0.0, 0.99), (0.8, 3.0, 0.0, 0.97), (0.9, 4.0, 10.0, 0.97)]
)
def test_rendered_truth_is_seen(sigma: float, noise: float, shift: float, least: float) -> None:
    rng, total = np.random.default_rng(3), Counter[str]()
    for truth, width, height in scenes(300, f"committed {sigma}"):
        frames = draw(truth, width=width, height=height)
        if sigma:
            frames = degraded(frames, rng, sigma=sigma, noise=noise, shift=shift)
        total += tally(truth, see(frames[0]), width, height)
    for part in ("place", "colour", "shape", "size"):
        assert total[part] >= least * total["things"], (part, total)
    for part in ("number", "background"):
        assert total[part] >= least * total["scenes"], (part, total)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("degrees", [0.0, 17.0, 45.0, 80.0])
def test_turned_shapes_keep_their_name_and_tell_the_angle(shape: str, degrees: float) -> None:
    thing = Thing(shape, "red", 0.5, 0.5, "small", motion=Motion(spins=True))
    found = form(coverage(0, Scene("white", (thing,)), 64, 64, degrees / 90.0))
    assert found.shape == shape
    assert found.score > 0.95
    assert (found.x, found.y) == pytest.approx((32, 32), abs=0.2)
    assert found.radius == pytest.approx(0.155 * 64, rel=0.03)
    assert abs(wrap(found.angle - degrees, TURN[shape]) if shape in TURN else found.angle) < 3


def test_touching_things_are_told_apart_by_colour() -> None:
    for first, second in (("red", "blue"), ("yellow", "orange"), ("cyan", "green"), ("purple", "pink")):
        things = (Thing("square", first, 0.36, 0.5, "large"), Thing("square", second, 0.64, 0.5, "large"))
        seen = see(draw(Scene("gray", things), width=64, height=64)[0])
        assert [(thing.colour, thing.shape) for thing in seen.things] == [(first, "square"), (second, "square")]


def test_things_of_one_colour_that_blur_joins_are_two() -> None:
    things = (Thing("circle", "green", 0.35, 0.5), Thing("circle", "green", 0.73, 0.5))
    frames = draw(Scene("white", things), width=64, height=64)
    seen = see(degraded(frames, np.random.default_rng(0), sigma=1.0, noise=2.0, shift=0.0)[0])
    assert [(thing.colour, thing.shape) for thing in seen.things] == [("green", "circle")] * 2


def test_dirt_is_not_a_thing_and_a_smear_has_no_shape() -> None:
    frame = draw(Scene("navy", (Thing("star", "yellow", 0.3, 0.5),)), width=64, height=64)[0]
    frame[5:9, 50:54] = (222, 36, 36)
    assert [thing.shape for thing in see(frame).things] == ["star"]
    frame[20:22, 40:62] = (222, 36, 36)
    assert SPECK * 64 * 64 < 2 * 22
    assert [(thing.colour, thing.shape) for thing in see(frame).things] == [("yellow", "star"), ("red", "blob")]


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_nothing_there(background: str) -> None:
    assert see(draw(Scene(background, ()), width=80, height=48)[0]) == Seen(background, ())


def assert_well_formed(seen: Seen) -> None:
    """Whatever is seen has names of the small world and lies on the canvas."""
    assert seen.background in BACKGROUNDS
    for thing in seen.things:
        assert thing.colour in COLOURS
        assert thing.shape in (*SHAPES, "blob")
        assert 0 <= thing.x <= 1
        assert 0 <= thing.y <= 1


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (31, 67)])
def test_any_pixels_are_looked_at(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    for pixels in (noise, noise // 128 * 255, noise // 201 * 255):
        assert_well_formed(see(pixels))
    ramp = np.broadcast_to(np.linspace(0, 255, size[1]).astype(np.uint8)[None, :, None], (*size, 3))
    assert_well_formed(see(np.ascontiguousarray(ramp)))


def flooded(mask: np.ndarray) -> list[frozenset[tuple[int, int]]]:
    """Regions by following neighbours one by one: the slow way that cannot be wrong."""
    left, found = {(int(y), int(x)) for y, x in np.argwhere(mask)}, []
    while left:
        region, edge = set[tuple[int, int]](), [left.pop()]
        while edge:
            y, x = edge.pop()
            region.add((y, x))
            around = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= around
            edge.extend(around)
        found.append(frozenset(region))
    return found


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 1.0])
def test_regions_equal_flood_fill(share: float) -> None:
    masks = np.random.default_rng(7).random((4, 13, 21)) < share
    labels, areas = label(masks)
    assert labels.shape == masks.shape
    assert areas[0] == 0
    assert np.array_equal(labels > 0, masks)
    assert areas.sum() == masks.sum()
    for mask, numbers in zip(masks, labels, strict=True):
        own = [frozenset((int(y), int(x)) for y, x in np.argwhere(numbers == n)) for n in np.unique(numbers[mask])]
        assert set(own) == set(flooded(mask))
    assert [int((labels == n).sum()) for n in range(1, len(areas))] == areas[1:].tolist()


def test_a_spiral_is_one_region() -> None:
    mask = np.zeros((41, 41), np.bool_)
    for step in range(0, 20, 2):
        mask[step, step : 41 - step] = mask[40 - step, step : 41 - step] = True
        mask[step + 2 : 41 - step, step] = mask[step : 41 - step, 40 - step] = True
        mask[step + 2, step + 1] = True
    assert len(flooded(mask)) == len(label(mask)[1]) - 1


def test_growing_and_shrinking() -> None:
    mask = np.zeros((5, 6), np.bool_)
    mask[2, 2] = True
    assert grow(mask).sum() == 9
    assert np.array_equal(shrink(grow(mask)), mask)
