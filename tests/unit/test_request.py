"""Requests and what they come to: every rule of the tasks, every value out of range, every default."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vino_rt.errors import InputError, UsageError, VinoError
from vino_rt.model_settings import ModelSettings, Sampling
from vino_rt.request import MAX_IMAGES, MAX_PROMPT, TASKS, Reference, Request, infer_task
from vino_rt.settings import SEED_RANGE, SourceSizes, branches, prepared_sizes, resolve

DEFAULTS = ModelSettings(
    name="test", family="vino", area=407040, unit=16, max_frames=89, fps=24.0, default_size=(640, 640),
    default_frames=85, steps=50, image=Sampling(5.0, 5.0), video=Sampling(7.0, 7.0), negative_prompt="bad image",
    negative_prompt_video="bad video",
)  # fmt: skip
IMAGE = Reference.image("a.png")
VIDEO = Reference.video("b.mp4")
SMALL = SourceSizes()


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
    ],
)
def test_bad_values(fields: dict[str, Any], error: type[VinoError], part: str) -> None:
    with pytest.raises(error, match=part):
        Request(**{"prompt": "", **fields})


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
    ],
)
def test_bad_references(make: Any) -> None:
    with pytest.raises(InputError):
        make()


def test_pixels_are_kept_not_copied() -> None:
    pixels = np.zeros((2, 3, 5, 3), np.uint8)
    reference = Reference.video(pixels, fps=12.0)
    assert reference.pixels is pixels
    assert reference.fps == 12.0


def test_defaults_of_an_image() -> None:
    settings = resolve(Request(prompt="a"), DEFAULTS, SMALL)
    assert (settings.task, settings.frames, settings.width, settings.height) == ("t2i", 1, 640, 640)
    assert (settings.guidance, settings.shift, settings.negative, settings.steps) == (5.0, 5.0, "bad image", 50)
    assert 0 <= settings.seed < SEED_RANGE
    assert json.loads(json.dumps(settings.record())) == dataclasses.asdict(settings)


def test_defaults_of_a_video() -> None:
    settings = resolve(Request(prompt="a", task="t2v", seed=2**63 - 1, negative=""), DEFAULTS, SMALL)
    assert (settings.frames, settings.guidance, settings.shift, settings.fps) == (85, 7.0, 7.0, 24.0)
    assert (settings.negative, settings.seed) == ("", 2**63 - 1)


def test_seeds_differ_from_request_to_request() -> None:
    assert len({resolve(Request(prompt=""), DEFAULTS, SMALL).seed for _ in range(4)}) > 1


@pytest.mark.parametrize(("size", "part"), [((640, 479), "640x480"), ((8, 8), "16x16"), ((1920, 1088), "about 407040")])
def test_sizes_off_the_grid_or_too_large(size: tuple[int, int], part: str) -> None:
    with pytest.raises(InputError, match=part):
        resolve(Request(prompt="", size=size), DEFAULTS, SMALL)


@pytest.mark.parametrize("size", [(848, 480), (640, 640), (736, 560), (16, 16)])
def test_legal_sizes(size: tuple[int, int]) -> None:
    settings = resolve(Request(prompt="", size=size), DEFAULTS, SMALL)
    assert (settings.width, settings.height) == size


def test_frames_above_the_models_most() -> None:
    with pytest.raises(InputError, match="at most 89"):
        resolve(Request(prompt="", frames=93), DEFAULTS, SMALL)


@pytest.mark.parametrize(("frames", "task"), [(None, "ti2i"), (5, "i2v")])
def test_the_last_image_decides_the_size(frames: int | None, task: str) -> None:
    sources = SourceSizes(images=((1920, 1080), (3000, 4000)))
    request = Request(prompt="", task=task, references=images(2), frames=frames)
    settings = resolve(request, DEFAULTS, sources)
    assert (settings.width, settings.height, settings.frames) == (560, 736, frames or 1)


def test_several_images_to_video_take_the_requests_size() -> None:
    sources = SourceSizes(images=((1920, 1080), (3000, 4000)))
    settings = resolve(Request(prompt="", references=images(2), frames=5, size=(848, 480)), DEFAULTS, sources)
    assert (settings.task, settings.width, settings.height) == ("ti2v", 848, 480)


@pytest.mark.parametrize(("frames", "available", "result"), [(None, 200, 85), (None, 40, 37), (17, 40, 17), (1, 40, 1)])
def test_the_video_decides_size_and_frames(frames: int | None, available: int, result: int) -> None:
    sources = SourceSizes(images=((64, 64),), video=(1920, 1080), video_frames=available, video_fps=30.0)
    settings = resolve(Request(prompt="", references=(IMAGE, VIDEO), frames=frames), DEFAULTS, sources)
    assert (settings.task, settings.width, settings.height, settings.frames) == ("tiv2v", 848, 464, result)
    assert settings.fps == 30.0
    assert settings.guidance == (7.0 if result > 1 else 5.0)


@pytest.mark.parametrize("fps", [None, 1000.0])
def test_a_source_without_a_usable_rate_takes_the_models(fps: float | None) -> None:
    sources = SourceSizes(video=(64, 64), video_frames=9, video_fps=fps)
    assert resolve(Request(prompt="", references=(VIDEO,)), DEFAULTS, sources).fps == 24.0


def test_a_video_too_short() -> None:
    with pytest.raises(InputError, match="has 4 frames; at least 5"):
        resolve(Request(prompt="", references=(VIDEO,)), DEFAULTS, SourceSizes(video=(64, 64), video_frames=4))


def test_a_size_the_task_decides_otherwise() -> None:
    sources = SourceSizes(images=((1920, 1080),))
    assert resolve(Request(prompt="", references=(IMAGE,), size=(848, 480)), DEFAULTS, sources).width == 848
    with pytest.raises(InputError, match="takes the size of its image, here 848x480; leave size out"):
        resolve(Request(prompt="", references=(IMAGE,), size=(480, 848)), DEFAULTS, sources)


def test_prepared_sizes_are_images_then_video() -> None:
    sources = SourceSizes(images=((1920, 1080),), video=(1920, 1080), video_frames=7)
    request = Request(prompt="", references=(VIDEO, IMAGE))
    assert prepared_sizes(request, DEFAULTS, sources) == ((1, 480, 848), (5, 464, 848))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ("prompt", "negative")),
        ({"guidance": 1.0}, ("prompt",)),
        ({"guidance": 0.0}, ("prompt",)),
        ({"references": (IMAGE,)}, ("prompt", "negative")),
        ({"references": (IMAGE,), "image_guidance": 1.5}, ("prompt", "negative", "negative_no_images")),
        ({"references": (VIDEO,), "image_guidance": 1.5}, ("prompt", "negative")),
        ({"image_guidance": 1.5}, ("prompt", "negative")),
    ],
)
def test_branches(fields: dict[str, Any], expected: tuple[str, ...]) -> None:
    request = Request(prompt="", **fields)
    sources = SourceSizes(
        images=((64, 64),) * len(request.images), video=(64, 64) if request.video else None, video_frames=9
    )
    assert branches(resolve(request, DEFAULTS, sources)) == expected


def test_image_guidance_against_a_models_default_without_guidance() -> None:
    quiet = dataclasses.replace(DEFAULTS, image=Sampling(1.0, 5.0))
    with pytest.raises(UsageError, match="needs guidance above 1"):
        resolve(Request(prompt="", image_guidance=2.0), quiet, SMALL)


def test_the_prompts_limit_is_the_renderers() -> None:
    from vino_rt.models.vino.prompt import MAX_CHARACTERS

    assert MAX_PROMPT == MAX_CHARACTERS
