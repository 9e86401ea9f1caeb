"""What requests come to against a model's defaults: gaps filled, sizes decided, branches needed."""

import dataclasses
import json
from typing import Any

import pytest

from vino_rt.errors import InputError, UsageError
from vino_rt.model_settings import ModelSettings, Sampling
from vino_rt.request import Reference, Request
from vino_rt.settings import SEED_RANGE, SourceSizes, branches, check_size, prepared_sizes, resolve, typed_record

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


@pytest.mark.parametrize(
    ("size", "part"),
    [
        ((640, 479), "640x480"),
        ((8, 8), "16x16"),
        ((1920, 1088), "has 2088960 pixels; this model makes about 407040: take 848x480"),
        ((1088, 1920), "about 407040: take 480x848"),
        ((16384, 48), "has 786432 pixels; this model makes about 407040: take 9600x48"),
        ((16384, 32), "has 524288 pixels; this model makes about 407040: take 9600x48"),
        ((32, 16384), "about 407040: take 48x9600"),
    ],
)
def test_sizes_off_the_grid_or_too_large(size: tuple[int, int], part: str) -> None:
    with pytest.raises(InputError, match=part):
        resolve(Request(prompt="", size=size), DEFAULTS, SMALL)


@pytest.mark.parametrize(("area", "most"), [(256, 16), (4096, 256), (5000, 320)])
def test_a_side_of_one_unit_leaves_the_other_bounded(area: int, most: int) -> None:
    small = dataclasses.replace(DEFAULTS, area=area)
    for size in ((most, 16), (16, most)):
        assert resolve(Request(prompt="", size=size), small, SMALL).width == size[0]
    for size in ((most + 16, 16), (16, most + 16), (16384, 16)):
        with pytest.raises(InputError, match=f"pixels; this model makes about {area}"):
            resolve(Request(prompt="", size=size), small, SMALL)


@pytest.mark.parametrize("area", [256, 3072, 4096, 5000, 407040])
def test_the_size_that_a_refusal_names_is_legal(area: int) -> None:
    small = dataclasses.replace(DEFAULTS, area=area)
    for long in (48, 272, 1920, 6400, 16384):
        for short in (16, 32, 48, 64, 160, 1088):
            for size in ((long, short), (short, long)):
                try:
                    check_size(*size, small)
                except InputError as error:
                    width, height = map(int, str(error).rpartition(" ")[2].split("x"))
                    check_size(width, height, small)
                    assert width * height < size[0] * size[1]


def test_a_legal_reference_gives_a_legal_size() -> None:
    for area in (3072, 4096, 407040):
        small = dataclasses.replace(DEFAULTS, area=area)
        most = min(200.0, area / 256)
        for share in (0.3, 0.5, 0.7, 0.9, 0.99, 1.0):
            for size in ((round(50 * most**share), 50), (50, round(50 * most**share))):
                request = Request(prompt="", task="ti2i", references=(IMAGE,))
                settings = resolve(request, small, SourceSizes(images=(size,)))
                check_size(settings.width, settings.height, small)


@pytest.mark.parametrize("size", [(3000, 20), (20, 3000)])
def test_a_reference_too_long_is_named(size: tuple[int, int]) -> None:
    small = dataclasses.replace(DEFAULTS, area=4096)
    told = rf"{size[0]}x{size[1]} is 150\.0:1; at most 16:1 is legal: crop it"
    with pytest.raises(InputError, match=rf"a\.png: {told}"):
        resolve(Request(prompt="", references=(IMAGE,)), small, SourceSizes(images=(size,)))
    with pytest.raises(InputError, match=rf"b\.mp4: {told}"):
        resolve(Request(prompt="", references=(VIDEO,)), small, SourceSizes(video=size, video_frames=9))


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
    for frames, held in ((4, "4 frames"), (1, "1 frame")):
        found = SourceSizes(video=(64, 64), video_frames=frames)
        with pytest.raises(InputError, match=rf"^b\.mp4: the video has {held}, a clip needs at least 5"):
            resolve(Request(prompt="", references=(VIDEO,)), DEFAULTS, found)


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
        ({"references": (VIDEO,)}, ("prompt", "negative")),
        ({"guidance": 1.0, "negative": ""}, ("prompt",)),
    ],
)
def test_branches(fields: dict[str, Any], expected: tuple[str, ...]) -> None:
    request = Request(prompt="", **fields)
    sources = SourceSizes(
        images=((64, 64),) * len(request.images), video=(64, 64) if request.video else None, video_frames=9
    )
    assert branches(resolve(request, DEFAULTS, sources)) == expected


def test_options_against_a_models_default_without_guidance() -> None:
    quiet, sources = dataclasses.replace(DEFAULTS, image=Sampling(1.0, 5.0)), SourceSizes(images=((64, 64),))
    with pytest.raises(UsageError, match="needs guidance above 1"):
        resolve(Request(prompt="", references=(IMAGE,), image_guidance=2.0), quiet, sources)
    with pytest.raises(UsageError, match=r"a negative prompt with guidance 1\.0"):
        resolve(Request(prompt="", negative="blur"), quiet, SMALL)


def test_settings_that_a_file_holds_as_text_get_their_types_back() -> None:
    record = resolve(Request(prompt="7", guidance=2.5), DEFAULTS, SMALL).record()
    texts = {name: str(value) for name, value in record.items()}
    assert typed_record(texts) == record
    assert {name: type(value) for name, value in typed_record(texts).items()} == {k: type(v) for k, v in record.items()}
    foreign = {"steps": "many", "seed": "1_0", "fps": "1e999", "base_image": "yes", "seen": "5", "frames": "9" * 9999}
    assert typed_record(foreign) == foreign
