"""Pictures of scenes: where things are, how large, how smooth their rims, how they move; any size, any frame count."""

import math

import numpy as np
import pytest

from vino_rt.world.draw import EXTENT, coverage, draw
from vino_rt.world.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, Motion, Scene, Thing

SIZES_OF_CANVAS = [(64, 64), (48, 80), (80, 48), (37, 53), (256, 192)]
AREAS = {"circle": 2.01, "square": 1.62, "triangle": 1.3, "star": 1.32, "cross": 1.71, "ring": 1.7}
"""Area of each shape of radius 1."""


def alone(shape: str = "circle", x: float = 0.5, y: float = 0.5, motion: Motion | None = None) -> Scene:
    return Scene("white", (Thing(shape, "blue", x, y, motion=motion or Motion()),))


@pytest.mark.parametrize(("width", "height"), SIZES_OF_CANVAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_has_its_area_and_place_at_any_size(shape: str, width: int, height: int) -> None:
    cover = coverage(0, alone(shape, 0.45, 0.55), width, height, 0.0)
    radius = SIZES["large"] * math.sqrt(width * height)
    assert cover.shape == (height, width)
    assert cover.dtype == np.float32
    assert cover.sum() == pytest.approx(AREAS[shape] * radius**2, rel=0.03)
    rows, columns = np.nonzero(cover)
    assert (columns.min() + columns.max() + 1) / 2 == pytest.approx(0.45 * width, abs=1)
    far = np.hypot(columns + 0.5 - 0.45 * width, rows + 0.5 - 0.55 * height).max()
    assert far == pytest.approx(EXTENT[shape] * radius, abs=1.3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [24, 64, 200])
def test_rims_are_soft_over_about_one_pixel(shape: str, side: int) -> None:
    cover = coverage(0, alone(shape), side, side, 0.0)
    assert cover.min() == 0
    assert cover.max() == 1
    soft = ((cover > 0) & (cover < 1)).sum()
    # About as many soft pixels as the rim is long, in contrast to a number that grows with the area.
    assert 0 < soft < 20 * SIZES["large"] * side
    drawn = draw(alone(shape, 0.503, 0.497), width=side, height=side)[0, ..., 0]
    between = (drawn != BACKGROUNDS["white"][0]) & (drawn != COLOURS["blue"][0])
    assert between.any()
    assert drawn[between].min() > COLOURS["blue"][0]


def test_half_a_pixel_of_motion_shows() -> None:
    pictures = [draw(alone(x=0.5 + shift / 128), width=64, height=64) for shift in (0, 1)]
    assert (pictures[0] != pictures[1]).any()


def test_colours_are_exact_inside_and_outside() -> None:
    for colour, rgb in COLOURS.items():
        for background, behind in BACKGROUNDS.items():
            picture = draw(Scene(background, (Thing("square", colour, 0.5, 0.5),)), width=32, height=32)[0]
            assert tuple(picture[16, 16]) == rgb
            assert tuple(picture[0, 0]) == behind


def test_triangle_and_star_point_up() -> None:
    for shape in ("triangle", "star"):
        cover = coverage(0, alone(shape), 100, 100, 0.0)
        widths = (cover > 0.5).sum(1)
        top = np.nonzero(widths)[0][0]
        assert top == pytest.approx(50 - 22, abs=2)
        assert widths[top + 2] < widths[48]


def test_a_ring_is_hollow_and_a_cross_has_corners_missing() -> None:
    assert coverage(0, alone("ring"), 64, 64, 0.0)[32, 32] == 0
    cover = coverage(0, alone("cross"), 64, 64, 0.0)
    assert cover[32, 32] == 1
    assert cover[24, 24] == 0


@pytest.mark.parametrize("frames", [1, 5, 17, 49])
@pytest.mark.parametrize(("width", "height"), [(64, 64), (48, 80)])
def test_frames_follow_the_poses(frames: int, width: int, height: int) -> None:
    scene = alone("circle", 0.3, 0.5, Motion("right", "slowly"))
    clip = draw(scene, width=width, height=height, frames=frames, fps=24.0)
    assert clip.shape == (frames, height, width, 3)
    assert clip.dtype == np.uint8
    for frame in range(0, frames, 4):
        dark = 1 - coverage(0, scene, width, height, frame / 24)
        away = clip[frame, ..., 0].astype(float) - COLOURS["blue"][0]
        assert np.abs(away / (BACKGROUNDS["white"][0] - COLOURS["blue"][0]) - dark).max() < 0.01
        centre = ((1 - dark) * (np.arange(width) + 0.5)).sum() / (1 - dark).sum()
        assert centre == pytest.approx((0.3 + 0.12 * frame / 24) * width, abs=0.05)


def test_growing_and_shrinking_change_the_area() -> None:
    for growth, share in (("grows", 1.25), ("shrinks", 0.8)):
        scene = alone("square", motion=Motion(growth=growth))
        areas = [coverage(0, scene, 96, 96, seconds).sum() for seconds in (0.0, 1.0)]
        assert areas[1] / areas[0] == pytest.approx(share**2, rel=0.02)


def test_a_spin_is_clockwise_and_keeps_the_area() -> None:
    scene = alone("triangle", motion=Motion(spins=True))
    upright, turned = (coverage(0, scene, 128, 128, seconds) for seconds in (0.0, 1.0))
    assert np.rot90(upright, -1) == pytest.approx(turned, abs=1e-3)
    assert coverage(0, scene, 128, 128, 0.37).sum() == pytest.approx(upright.sum(), rel=0.01)


@pytest.mark.parametrize("texture", ["striped", "dotted"])
def test_textures_darken_a_part_and_turn_with_the_thing(texture: str) -> None:
    thing = Thing("square", "red", 0.5, 0.5, texture=texture, motion=Motion(spins=True))
    clip = draw(Scene("white", (thing,)), width=128, height=128, frames=9)
    box = clip[0, 46:82, 46:82, 0]
    dark = (box < 0.8 * COLOURS["red"][0]).mean()
    assert 0.1 < dark < 0.5
    assert (box == COLOURS["red"][0]).mean() > 0.3
    quarter = np.rot90(clip[0], -1).astype(int)
    assert np.abs(quarter - clip[8]).max() <= 2


def test_things_beyond_the_rim_are_cut_off() -> None:
    scene = Scene("black", (Thing("circle", "red", 0.0, 0.0), Thing("star", "blue", 3.0, 0.5)))
    picture = draw(scene, width=40, height=40)[0]
    assert tuple(picture[0, 0]) == COLOURS["red"]
    assert tuple(picture[39, 39]) == BACKGROUNDS["black"]
    assert coverage(1, scene, 40, 40, 0.0).sum() == 0


def test_later_things_lie_over_earlier_ones() -> None:
    scene = Scene("black", (Thing("circle", "red", 0.5, 0.5), Thing("square", "green", 0.5, 0.5, "tiny")))
    picture = draw(scene, width=64, height=64)[0]
    assert tuple(picture[32, 32]) == COLOURS["green"]
