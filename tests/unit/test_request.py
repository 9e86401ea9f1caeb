"""Requests and their references: every rule of the tasks, every value out of range, every kind of source."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vino_rt.errors import InputError, UsageError, VinoError
from vino_rt.media import read_image
from vino_rt.request import MAX_PROMPT, Reference, Request
from vino_rt.task_rules import MAX_IMAGES, TASKS, infer_task

IMAGE = Reference.image("a.png")
VIDEO = Reference.video("b.mp4")
SIZE = (np.int64(64), np.int16(48))


def images(count: int) -> tuple[Reference, ...]:
    return tuple(Reference.image(f"{i}.png") for i in range(count))


@pytest.mark.parametrize(
    ("count", "video", "frames", "size", "task"),
    [
        (0, False, None, None, "t2i"),
        (0, False, 1, (64, 64), "t2i"),
        (0, False, 5, None, "t2v"),
        (1, False, None, None, "ti2i"),
        (3, False, 1, None, "ti2i"),
        (1, False, 5, None, "i2v"),
        (1, False, 5, (64, 64), "ti2v"),
        (2, False, 5, None, "ti2v"),
        (0, True, None, None, "tv2v"),
        (0, True, 5, None, "tv2v"),
        (2, True, None, None, "tiv2v"),
    ],
)
def test_task_is_inferred(count: int, video: bool, frames: int | None, size: tuple[int, int] | None, task: str) -> None:
    assert infer_task(count, video, frames, size) == task
    request = Request(prompt="", references=images(count) + ((VIDEO,) if video else ()), frames=frames, size=size)
    assert request.resolved_task == task


@pytest.mark.parametrize(("count", "size", "task"), [(0, None, "t2v"), (1, None, "i2v"), (1, (64, 64), "ti2v")])
def test_a_wanted_clip_decides_where_frames_do_not(count: int, size: tuple[int, int] | None, task: str) -> None:
    assert infer_task(count, False, None, size, moving=True) == task


@pytest.mark.parametrize(
    ("task", "references", "frames", "part"),
    [
        ("t2i", (IMAGE,), None, "no image references, given 1"),
        ("t2i", (), 5, "makes one image, frames is 5"),
        ("t2v", (), 1, "makes a video, frames is 1"),
        ("t2v", (VIDEO,), None, "takes no video"),
        ("i2v", (), None, "1 to 9 image references, given 0"),
        ("ti2i", (IMAGE, VIDEO), None, "takes no video"),
        ("tv2v", (IMAGE, VIDEO), None, "no image references"),
        ("tv2v", (), None, "needs a video"),
        ("clone", (VIDEO,), None, "1 to 9 image references"),
    ],
)
def test_a_task_that_contradicts_its_references(
    task: str, references: tuple[Reference, ...], frames: int | None, part: str
) -> None:
    with pytest.raises(UsageError, match=part):
        Request(prompt="", task=task, references=references, frames=frames)


def test_unknown_task_names_the_legal_ones() -> None:
    with pytest.raises(InputError, match="t2i, t2v, i2v, ti2v, ti2i, tv2v, tiv2v, clone"):
        Request(prompt="", task="v2v")


def test_clone_is_tiv2v() -> None:
    assert Request(prompt="", task="clone", references=(IMAGE, VIDEO)).resolved_task == "tiv2v"


@pytest.mark.parametrize(
    ("fields", "error", "part"),
    [
        ({"prompt": "x" * 100_000}, InputError, f"100000 characters; at most {MAX_PROMPT}"),
        ({"prompt": None}, InputError, "prompt is NoneType"),
        ({"prompt": "\ud800"}, InputError, "not valid Unicode at character 0"),
        ({"negative": "x" * (MAX_PROMPT + 1)}, InputError, "negative prompt has"),
        ({"frames": 0}, InputError, "frames is 0"),
        ({"frames": 6}, InputError, "take 5 or 9"),
        ({"frames": True}, InputError, "frames is True"),
        ({"steps": 0}, InputError, "from 1 to 1000"),
        ({"steps": 1001}, InputError, "from 1 to 1000"),
        ({"steps": 2.0}, InputError, "steps is 2.0"),
        ({"seed": -1}, InputError, "seed is -1"),
        ({"seed": 2**63}, InputError, "9223372036854775807"),
        ({"guidance": math.nan}, InputError, "guidance is nan"),
        ({"guidance": math.inf}, InputError, "guidance is inf"),
        ({"guidance": -1.0}, InputError, "from 0 to 100"),
        ({"image_guidance": 0.5}, InputError, "image guidance is 0.5"),
        ({"image_guidance": 2.0, "guidance": 1.0}, UsageError, "needs guidance above 1"),
        ({"size": (64,)}, InputError, "width, height"),
        ({"size": (64, 0)}, InputError, "height is 0"),
        ({"size": (64.0, 64)}, InputError, "width is 64.0"),
        ({"references": [IMAGE]}, InputError, "tuple of Reference"),
        ({"references": ("a.png",)}, InputError, "tuple of Reference"),
        ({"references": (VIDEO, VIDEO)}, InputError, "at most one"),
        ({"references": images(MAX_IMAGES + 1)}, InputError, "at most 9"),
        ({"base_image": True, "references": (IMAGE,)}, UsageError, "at least two"),
        ({"base_image": True}, UsageError, "at least two"),
        ({"task": ["t2i"]}, InputError, r"task is \['t2i'\]; legal tasks are t2i"),
        ({"seed": np.bool_(True)}, InputError, "seed is np.True_"),
        ({"steps": np.float32(2)}, InputError, "steps is np.float32"),
        ({"guidance": 10**400}, InputError, "from 0 to 100"),
        ({"image_guidance": 2.0}, UsageError, "image guidance 2.0 without an image reference"),
        ({"image_guidance": 2.0, "references": (VIDEO,)}, UsageError, "without an image reference"),
        ({"negative": "blur", "guidance": 1.0}, UsageError, "a negative prompt with guidance 1.0"),
    ],
)
def test_bad_values(fields: dict[str, Any], error: type[VinoError], part: str) -> None:
    with pytest.raises(error, match=part):
        Request(**{"prompt": "", **fields})


def test_numbers_of_numpy_are_stored_as_pythons() -> None:
    given = {"seed": np.int64(3), "steps": np.int32(2), "frames": np.uint8(5), "guidance": np.float32(3), "size": SIZE}
    request = Request(prompt="", references=(IMAGE,), image_guidance=np.float64(2), **given)  # type: ignore[arg-type]
    assert (request.seed, request.steps, request.frames, request.guidance) == (3, 2, 5, 3.0)
    stored = (request.seed, request.steps, request.frames, request.guidance, request.image_guidance)
    assert [type(value) for value in stored] == [int, int, int, float, float]
    assert request.size == (64, 48)
    assert [type(side) for side in request.size] == [int, int]
    assert type(Reference.video(np.zeros((2, 3, 5, 3), np.uint8), fps=np.float32(12)).fps) is float  # type: ignore[arg-type]


@given(
    frames=st.one_of(st.none(), st.integers(-3, 120)),
    steps=st.one_of(st.none(), st.integers(-3, 1100)),
    guidance=st.one_of(st.none(), st.floats()),
    image_guidance=st.floats(),
    size=st.one_of(st.none(), st.tuples(st.integers(-3, 20000), st.integers(-3, 20000))),
    count=st.integers(0, 11),
    video=st.integers(0, 2),
    task=st.one_of(st.none(), st.sampled_from([*TASKS, "other"])),
)
def test_a_request_is_legal_or_a_named_error(count: int, video: int, **fields: Any) -> None:
    try:
        request = Request(prompt="", references=images(count) + (VIDEO,) * video, **fields)
    except (InputError, UsageError):
        return
    rule = TASKS[request.resolved_task]
    assert rule.images[0] <= count <= rule.images[1]
    assert rule.video == bool(video)
    assert request.image_guidance >= 1
    assert request.guidance is None or request.guidance > 1 or request.image_guidance == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: Reference("image"),
        lambda: Reference("image", Path("a"), np.zeros((3, 5, 3), np.uint8)),
        lambda: Reference("sound", Path("a")),  # type: ignore[arg-type]
        lambda: Reference("video", Path("a"), fps=24.0),
        lambda: Reference.image(np.zeros((3, 5, 4), np.uint8)),
        lambda: Reference.image(np.zeros((3, 5, 3), np.float32)),
        lambda: Reference.image(np.zeros((0, 5, 3), np.uint8)),
        lambda: Reference.video(np.zeros((3, 5, 3), np.uint8)),
        lambda: Reference.video(np.zeros((2, 3, 5, 3), np.uint8), fps=0.0),
        lambda: Reference.video("a.mp4", fps=12.0),
    ],
)
def test_bad_references(make: Any) -> None:
    with pytest.raises(InputError):
        make()


@pytest.mark.parametrize("source", [None, ["a.png"], b"a.png", 3])
def test_what_is_no_reference_is_named(source: Any) -> None:
    kind = type(source).__name__
    for make in (Reference.image, Reference.video, partial(Reference, "image")):
        with pytest.raises(InputError, match=f"is {kind}; give a path|exactly one of them"):
            make(source)
    with pytest.raises(InputError, match="a reference video is Image; give a path"):
        Reference.video(Image.new("RGB", (3, 2)))  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "I;16", "P"])
def test_a_picture_of_pillows_is_read_as_its_file(mode: str, tmp_path: Path) -> None:
    picture = Image.fromarray(np.arange(30, dtype=np.uint8).reshape(5, 6) * 8).convert(mode)
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(tmp_path / "x.png", exif=turned)
    with Image.open(tmp_path / "x.png") as opened:
        reference = Reference.image(opened)
        assert opened.size == (6, 5)
    assert reference.pixels is not None
    assert reference.pixels.shape == (6, 5, 3)
    assert np.array_equal(reference.pixels, read_image(tmp_path / "x.png"))


def test_a_damaged_picture_of_pillows_is_refused(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "x.png")
    whole = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(whole[: len(whole) // 2])
    with (
        Image.open(tmp_path / "x.png") as opened,
        pytest.raises(InputError, match="the image in memory: the picture is damaged or cut off"),
    ):
        Reference.image(opened)


def test_pixels_are_kept_not_copied() -> None:
    pixels = np.zeros((2, 3, 5, 3), np.uint8)
    reference = Reference.video(pixels, fps=12.0)
    assert reference.pixels is pixels
    assert reference.fps == 12.0


@pytest.mark.parametrize("name", ["base_image", "spatial_tiling", "sample_posterior"])
@pytest.mark.parametrize("value", ["no", 1, None])
def test_a_flag_is_true_or_false(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{name} is {value!r}; it must be True or False"):
        Request(prompt="", **{name: value})  # type: ignore[arg-type]
    given = Request(prompt="", spatial_tiling=np.True_)  # type: ignore[arg-type]
    assert given.spatial_tiling is True
