"""Examples of every task: pure functions of the seed, within their split, nothing touching, edits of one thing."""

import math
from collections import Counter

import numpy as np
import pytest

from vino_rt.errors import InputError
from vino_rt.task_rules import TASKS
from vino_rt.world.examples import KINDS, Example, all_kinds, make
from vino_rt.world.layout import APART, LINES, MARGIN
from vino_rt.world.scene import COLOURS, SHAPES, Scene, Thing, gap
from vino_rt.world.split import HELD_OUT, SPLITS, held_out

ALL = [(task, kind) for task in KINDS for kind in all_kinds(task)]
EDITED = [(task, kind) for task, kind in ALL if kind in (*KINDS["ti2i"], "with_reference")]
SEEDS = 60


def close(scene: Scene, example: Example, seconds: float) -> float:
    """Least distance of two things of a scene, in lengths of the world; infinite without two."""
    poses = [thing.pose(seconds) for thing in scene.things]
    gaps = [gap(pose, other, example.aspect) for i, pose in enumerate(poses) for other in poses[:i]]
    return min(gaps, default=math.inf)


def over_the_rim(scene: Scene, example: Example, seconds: float) -> float:
    """How far things reach beyond the canvas, in pixels; negative: they all lie on it."""
    unit = math.sqrt(example.width * example.height)
    far = -math.inf
    for pose in (thing.pose(seconds) for thing in scene.things):
        for at, side in ((pose.x, example.width), (pose.y, example.height)):
            far = max(far, pose.radius * unit - at * side, at * side + pose.radius * unit - side)
    return far


def things_of(task: str, kind: str) -> list[Thing]:
    """Every thing shown in a number of examples of each split, 64x64 and of the usual length."""
    examples = [make(task, seed, split=split, kind=kind) for split in SPLITS for seed in range(SEEDS)]
    return [thing for example in examples for scene in example.scenes for thing in scene.things]


def test_the_split_holds_out_six_pairs_each_shape_once() -> None:
    assert len(HELD_OUT) == 6
    assert {shape for _, shape in HELD_OUT} == set(SHAPES)
    assert len({colour for colour, _ in HELD_OUT} & set(COLOURS)) == 6


@pytest.mark.parametrize(("task", "kind"), ALL)
@pytest.mark.parametrize("split", ["train", "test", "unseen"])
def test_every_kind_keeps_its_split(task: str, kind: str, split: str) -> None:
    for seed in range(SEEDS):
        example = make(task, seed, split=split, kind=kind)
        shown = [thing for scene in example.scenes for thing in scene.things]
        assert any(map(held_out, shown)) == (split == "unseen")
        if split == "unseen":
            assert any(map(held_out, example.about))


@pytest.mark.parametrize(("task", "kind"), ALL)
@pytest.mark.parametrize(("size", "frames"), [((64, 64), 17), ((48, 80), 5), ((80, 48), 49), ((128, 64), 17)])
def test_nothing_touches_or_leaves_and_all_motion_shows(
    task: str, kind: str, size: tuple[int, int], frames: int
) -> None:
    for seed in range(12):
        example = make(task, seed, split="train", kind=kind, size=size, frames=frames)
        assert example.frames == (1 if task in ("t2i", "ti2i") else frames)
        length = (example.frames - 1) / example.fps
        assert length <= 2.0
        for scene in example.scenes:
            for seconds in np.linspace(0, length, 33):
                assert close(scene, example, float(seconds)) > 0.5 * APART
                assert over_the_rim(scene, example, float(seconds)) < -0.5 * MARGIN * math.sqrt(size[0] * size[1])
            assert not any(thing.motion.spins and thing.shape in ("circle", "ring") for thing in scene.things)


@pytest.mark.parametrize(("task", "kind"), [pair for pair in ALL if pair != ("ti2v", "references")])
def test_all_things_lie_on_the_lines(task: str, kind: str) -> None:
    shown = things_of(task, kind)
    # Close views leave no room but at the centre.
    lines = {0.5} if kind == "close" else set(LINES)
    assert {thing.x for thing in shown} == lines
    assert {thing.y for thing in shown} == lines


def test_of_clips_of_references_only_what_grows_lies_beside_its_line_as_far_as_the_rim_asks() -> None:
    beside = 0
    for thing in things_of("ti2v", "references"):
        half = thing.pose(2.0).radius + MARGIN
        # A small thing put at a place by the rim ends 0.0025 too large for it: a sixth of a pixel.
        grown = thing.size == "small" and thing.motion.growth == "grows"
        legal = {*LINES, half, 1.0 - half} if grown else set(LINES)
        assert {thing.x, thing.y} <= legal
        assert not grown or 0.0 < half - LINES[0] < 0.003
        beside += not {thing.x, thing.y} <= set(LINES)
    assert beside


@pytest.mark.parametrize(("task", "kind"), ALL)
def test_an_example_is_what_its_task_takes(task: str, kind: str) -> None:
    rule = TASKS[task]
    for seed in range(SEEDS):
        example = make(task, seed, split="test", kind=kind)
        assert (example.task, example.kind) == (task, kind)
        assert rule.images[0] <= len(example.images) <= rule.images[1]
        assert (example.video is not None) == rule.video
        assert example.base_image == (task == "ti2i" and kind == "with_reference")
        assert not example.base_image or len(example.images) > 1
        assert all(image.rests for image in example.images)
        assert all(0 <= index < len(example.target.things) for index in example.focus)
        assert example.about or kind == "background"


def test_the_same_arguments_make_the_same_example() -> None:
    for task in KINDS:
        for seed in range(10):
            assert make(task, seed, split="train") == make(task, seed, split="train")


def test_any_other_argument_makes_another_example() -> None:
    first = [make("t2i", seed, split="train") for seed in range(20)]
    others = [
        [make("t2i", seed + 20, split="train") for seed in range(20)],
        [make("t2i", seed, split="test") for seed in range(20)],
        [make("t2i", seed, split="train", kind="single") for seed in range(20)],
        [make("t2i", seed, split="train", caption="long") for seed in range(20)],
    ]
    for row in others:
        assert not any(one == other for one, other in zip(first, row, strict=True))


def test_training_and_test_share_no_scene() -> None:
    train = {make("t2i", seed, split="train").target for seed in range(300)}
    assert not train & {make("t2i", seed, split="test").target for seed in range(300)}


def test_kinds_are_drawn_by_their_weights_and_proxies_never() -> None:
    drawn = Counter(make("ti2i", seed, split="train").kind for seed in range(600))
    assert set(drawn) == set(KINDS["ti2i"])
    for kind, share in KINDS["ti2i"].items():
        assert drawn[kind] / 600 == pytest.approx(share, abs=0.06)


def test_pixels_have_the_promised_shapes() -> None:
    for task, kind in ALL:
        example = make(task, 1, split="train", kind=kind, size=(48, 80), frames=5)
        clip, size = example.clip(), (example.frames, 80, 48, 3)
        assert example.truth().shape == size
        assert example.truth().dtype == np.uint8
        assert all(example.picture(i).shape == (80, 48, 3) for i in range(len(example.images)))
        assert clip is None or clip.shape == size
        assert example.mask().shape == size[:3]


def test_clips_begin_at_their_picture() -> None:
    for task, kind in (("i2v", "motion"), ("tiv2v", "clone")):
        for seed in range(20):
            example = make(task, seed, split="train", kind=kind)
            assert np.array_equal(example.truth()[0], example.picture(0))
            assert not example.target.rests


def test_a_clone_moves_as_the_thing_of_the_video() -> None:
    for seed in range(30):
        example = make("tiv2v", seed, split="train", kind="clone")
        assert example.video is not None
        assert example.target.things[0].motion == example.video.things[0].motion
        assert example.target.things[0].shape != example.video.things[0].shape


def test_references_appear_in_their_clip() -> None:
    for seed in range(SEEDS):
        example = make("ti2v", seed, split="train")
        for image, thing in zip(example.images, example.target.things, strict=True):
            (shown,) = image.things
            assert (shown.colour, shown.shape, shown.size, shown.texture) == (
                thing.colour, thing.shape, thing.size, thing.texture,
            )  # fmt: skip


@pytest.mark.parametrize(("task", "kind"), EDITED)
def test_an_edit_changes_what_it_names_and_its_mask_covers_that(task: str, kind: str) -> None:
    for seed in range(15):
        example = make(task, seed, split="train", kind=kind, frames=5)
        source = example.source
        assert example.edits
        assert source is not None
        kept = [thing for thing in source.things if thing in example.target.things]
        assert len(kept) >= len(source.things) - 1
        assert (source.background != example.target.background) == (kind == "background" or not example.edited)
        before = example.clip() if task != "ti2i" else example.picture(-1)[None]
        assert before is not None
        changed = np.any(before != example.truth(), axis=-1)
        assert changed.any()
        assert not (changed & ~example.mask()).any()


def test_masks_leave_room() -> None:
    for kind in KINDS["ti2i"]:
        shares = [make("ti2i", seed, split="train", kind=kind).mask().mean() for seed in range(20)]
        assert all(0 < share < 1 for share in shares), kind
    assert make("t2i", 0, split="train").mask().all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"task": "t2x"}, "t2x"),
        ({"kind": "motion"}, "motion"),
        ({"split": "dev"}, "dev"),
        ({"size": (64, 200)}, "64x200"),
        ({"size": (8, 8)}, "8x8"),
        ({"task": "t2v", "frames": 6}, "6"),
        ({"task": "t2v", "frames": 1}, "1"),
        ({"caption": "medium"}, "medium"),
    ],
)
def test_what_is_not_legal_is_named(change: dict[str, object], named: str) -> None:
    arguments = {"task": "t2i", "seed": 0, "split": "train", **change}
    with pytest.raises(InputError, match=named):
        make(**arguments)  # type: ignore[arg-type]
