"""Training records: every legal way to write one is read, every other way has its reason; names, captions, buckets."""

import json

import numpy as np
import pytest

from vino_rt.errors import InputError
from vino_rt.train.data.buckets import Bucket, Sizing, choose_bucket, make_buckets
from vino_rt.train.data.grouping import group_names, split_name
from vino_rt.train.data.records import (
    CAPTION,
    RECORD,
    SHAPE,
    SHORT,
    SMALL,
    TASK,
    UNSAFE,
    Captions,
    Unusable,
    caption,
    parse_record,
    parse_text,
    read_captions,
    safe_name,
)


@pytest.mark.parametrize(
    ("value", "long", "short"),
    [
        ("a cat", ("a cat",), ("a cat",)),
        (["a cat", " one cat "], ("a cat", "one cat"), ("a cat", "one cat")),
        ({"long": "a grey cat", "short": ["cat", "a cat"]}, ("a grey cat",), ("cat", "a cat")),
        ({"long": "", "short": "ein Kätzchen 猫"}, (), ("ein Kätzchen 猫",)),
    ],
)
def test_captions(value: object, long: tuple[str, ...], short: tuple[str, ...]) -> None:
    assert read_captions(value) == Captions(long, short)


@pytest.mark.parametrize("value", [None, "", "  \n", [], ["", " "], {}, {"long": ""}, {"medium": "a cat"}])
def test_no_caption(value: object) -> None:
    with pytest.raises(Unusable) as error:
        read_captions(value)
    assert error.value.reason == CAPTION


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1, 2]", RECORD),
        ('"a cat"', RECORD),
        ('{"caption": "a"', RECORD),
        ("", RECORD),
        ("[" * 100_000, RECORD),
        ('{"caption": "a", "caption": "b"}', RECORD),
        ('{"caption": 3}', RECORD),
        ('{"caption": {"long": [null]}}', RECORD),
        ('{"caption": "\\ud800"}', RECORD),
        (json.dumps({"caption": "a" * 20_001}), RECORD),
        ('{"caption": "a", "images": "a.png"}', RECORD),
        ('{"caption": "a", "images": [7]}', RECORD),
        (json.dumps({"caption": "a", "images": ["a.png"] * 10}), RECORD),
        ('{"caption": "a", "base_image": 1}', RECORD),
        ('{"caption": "a", "task": "paint"}', TASK),
        ('{"caption": "a", "target": "../a.png"}', UNSAFE),
        ('{"caption": "a", "video": "/etc/a.mp4"}', UNSAFE),
        ('{"caption": "a", "images": ["b/../../a.png"]}', UNSAFE),
        ('{"caption": "a", "images": ["C:a.png"]}', UNSAFE),
        ('{"caption": "a", "images": ["..\\\\a.png"]}', UNSAFE),
        ('{"caption": "a", "target": "a\\u0000.png"}', UNSAFE),
    ],
)
def test_bad_record(text: str, reason: str) -> None:
    with pytest.raises(Unusable) as error:
        parse_record(text.encode("utf-8", "surrogatepass"))
    assert error.value.reason == reason


def test_good_record() -> None:
    draft = parse_record(
        b'\xef\xbb\xbf{"caption": "a", "task": "ti2i", "images": ["x/a.png", "b..c.png"], "url": 1, "base_image": true}'
    )
    assert (draft.task, draft.images, draft.base_image, draft.target) == ("ti2i", ("x/a.png", "b..c.png"), True, None)
    assert parse_text(b"a cat\n").captions.long == ("a cat",)


def test_text_that_is_not_utf8() -> None:
    with pytest.raises(Unusable, match="byte 2"):
        parse_text(b"ab\xff")


def test_safe_name_lets_unicode_pass() -> None:
    assert safe_name("日本/猫 1.png") == "日本/猫 1.png"


def test_caption_share_and_fallback() -> None:
    captions = Captions(("long 1", "long 2"), ("short 1", "short 2", "short 3"))
    rng = np.random.default_rng(5)
    drawn = [caption(captions, rng, 0.25) for _ in range(2000)]
    assert set(drawn) == {*captions.long, *captions.short}
    assert 0.21 < sum(text.startswith("long") for text in drawn) / 2000 < 0.29
    assert caption(Captions((), ("s",)), rng, 1.0) == "s"
    assert caption(Captions(("l",), ()), rng, 0.0) == "l"


def test_captions_draw_the_same_numbers_whatever_they_hold() -> None:
    one, two = np.random.default_rng(1), np.random.default_rng(1)
    caption(Captions(("a",), ()), one, 1.0)
    caption(Captions(("a", "b", "c"), ("d", "e")), two, 0.0)
    assert one.random() == two.random()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a/b.png", ("a/b", "target", "png")),
        ("a/b.target.JPG", ("a/b", "target", "jpg")),
        ("b.ref0.webp", ("b", "ref0", "webp")),
        ("b.ref9.webp", ("b.ref9", "target", "webp")),
        ("v1.2/b.source.mp4", ("v1.2/b", "source", "mp4")),
        ("photo.v2.png", ("photo.v2", "target", "png")),
        ("source.png", ("source", "target", "png")),
        ("v1.2/readme", ("v1.2/readme", "target", "")),
    ],
)
def test_split_name(name: str, parts: tuple[str, str, str]) -> None:
    assert split_name(name) == parts


def test_groups() -> None:
    groups = group_names(["b.png", "a.ref1.png", "a.json", "a.ref0.jpg", "a.mp4", ".b.png", "__MACOSX/a.json", "c.exe"])
    assert [group.key for group in groups] == ["a", "b"]
    assert groups[0].record == ["a.json"]
    assert groups[0].references == ["ref0", "ref1"]
    assert groups[0].media["target"] == ["a.mp4"]


@pytest.mark.parametrize("area", [64 * 64, 256 * 256, 480 * 848])
def test_bucket_list(area: int) -> None:
    buckets = make_buckets(area, frames=(1, 17))
    assert len(set(buckets)) == len(buckets)
    assert {b.frames for b in buckets} == {1, 17}
    assert all(b.width % 16 == b.height % 16 == 0 for b in buckets)
    assert all(0.5 - 1e-9 <= b.width / b.height <= 2 + 1e-9 for b in buckets)
    assert {(b.width, b.height) for b in buckets} == {(b.height, b.width) for b in buckets}
    off = max(abs(b.width * b.height / area - 1) for b in buckets)
    assert off <= (0.3 if area == 4096 else 0.05)


SIZING = Sizing(
    buckets=(Bucket(64, 64), Bucket(128, 128), Bucket(128, 64), Bucket(64, 64, 5), Bucket(128, 128, 17)), area=4096
)


@pytest.mark.parametrize(
    ("size", "frames", "bucket"),
    [
        ((64, 64), 1, Bucket(64, 64)),
        ((127, 300), 1, Bucket(64, 64)),
        ((130, 130), 1, Bucket(128, 128)),
        ((1001, 499), 1, Bucket(128, 64)),
        ((500, 500), 300, Bucket(128, 128, 17)),
        ((500, 500), 16, Bucket(64, 64, 5)),
        ((90, 90), 300, Bucket(64, 64, 5)),
    ],
)
def test_choice_of_bucket(size: tuple[int, int], frames: int, bucket: Bucket) -> None:
    sizing = Sizing(buckets=SIZING.buckets, area=4096, min_kept=0.3)
    assert choose_bucket(*size, frames, sizing) == bucket


@pytest.mark.parametrize(
    ("size", "frames", "reason"), [((63, 500), 1, SMALL), ((500, 500), 3, SHORT), ((5000, 100), 1, SHAPE)]
)
def test_no_bucket(size: tuple[int, int], frames: int, reason: str) -> None:
    with pytest.raises(Unusable) as error:
        choose_bucket(*size, frames, SIZING)
    assert error.value.reason == reason


def test_sizing_refuses_nonsense() -> None:
    with pytest.raises(InputError, match="multiples of 16"):
        Sizing(buckets=(Bucket(64, 65),), area=4096)
    with pytest.raises(InputError, match="no buckets"):
        Sizing(buckets=(), area=4096)
    with pytest.raises(InputError, match="1, 5, 9"):
        Bucket(64, 64, 4)
    with pytest.raises(InputError, match="max_enlarge"):
        Sizing(buckets=(Bucket(64, 64),), area=4096, max_enlarge=0)
    with pytest.raises(InputError, match="aspect"):
        make_buckets(4096, max_aspect=0.5)
