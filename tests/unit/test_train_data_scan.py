"""Scanning folders and tars: what is found, what is left out, and under which reason it is counted."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from tests.unit.clips import plain
from tests.unit.datasets import SIZING, clip, picture, pictures, png, record, tar
from vino_rt.errors import InputError
from vino_rt.media_write import write_media
from vino_rt.train.data import Bucket, Index, Sizing, open_dataset
from vino_rt.train.data.records import (
    ALIGN,
    CAPTION,
    CUT,
    LARGE,
    MEDIA,
    MISSING,
    RECORD,
    SHAPE,
    SHORT,
    SMALL,
    TASK,
    TWICE,
    UNSAFE,
)


def scan(*paths: Path, sizing: Sizing = SIZING) -> Index:
    return open_dataset(paths, sizing, threads=2)


def test_pictures_with_texts_and_records(tmp_path: Path) -> None:
    picture(tmp_path / "b/cat.jpg", 200, 100)
    (tmp_path / "b/cat.txt").write_text("a cat")
    picture(tmp_path / "a/Ünïcode 猫.png")
    record(tmp_path / "a/Ünïcode 猫.json", caption=["ein Kater", "Kater"], task="t2i")
    index = scan(tmp_path)
    assert [r.key for r in index.records] == ["a/Ünïcode 猫", "b/cat"]
    assert [r.bucket for r in index.records] == [Bucket(64, 64), Bucket(96, 48)]
    assert [r.rows for r in index.records] == [16, 18]
    assert index.records[0].captions.long == ("ein Kater", "Kater")
    assert index.report.kept == 2
    assert index.report.skipped == {}


def test_roles_make_every_task(tmp_path: Path) -> None:
    for key, parts in {
        "t2v": ["mp4"],
        "ti2i": ["png", "source.png"],
        "base": ["png", "ref0.png", "ref1.png", "source.png"],
        "i2v": ["mp4", "source.clip.png"],
        "ti2v": ["mp4", "ref0.png"],
        "tv2v": ["mp4", "source.mp4"],
        "tiv2v": ["mp4", "source.mp4", "ref0.png"],
    }.items():
        for part in parts:
            name = tmp_path / f"{key}.{part.replace('.clip', '')}"
            clip(name) if part.endswith("mp4") else picture(name, *((80, 60) if "clip" in part else (80, 80)))
        record(tmp_path / f"{key}.json", caption=key)
    index = scan(tmp_path)
    assert {r.key: r.task for r in index.records} == {
        key: "ti2i" if key == "base" else key for key in ("base", "i2v", "t2v", "ti2i", "ti2v", "tiv2v", "tv2v")
    }
    found = {r.key: r for r in index.records}
    assert [found[key].base_image for key in ("base", "ti2i", "tv2v")] == [True, False, False]
    assert [Path(p.blob.name).name for p in found["base"].images] == [
        "base.ref0.png",
        "base.ref1.png",
        "base.source.png",
    ]
    assert found["tv2v"].bucket == Bucket(64, 48, 9)
    # Target 3 x 3 x 4 patches; a letterboxed square 4 x 4, a clip like the target, and two boundary rows each.
    assert [found[key].rows for key in ("t2v", "ti2v", "tv2v", "tiv2v", "base")] == [36, 54, 74, 92, 70]


def test_record_names_its_files(tmp_path: Path) -> None:
    for name in ("shared/scene.png", "x/out.png", "x/ref.png"):
        picture(tmp_path / name)
    record(tmp_path / "x/r.json", caption="c", target="./out.png", images=["ref.png", "ref.png"], base_image=True)
    record(tmp_path / "s.json", caption="c", target="shared/scene.png")
    index = scan(tmp_path)
    assert [(r.key, r.task, r.base_image, r.target.blob.name) for r in index.records] == [
        ("s", "t2i", False, "shared/scene.png"),
        ("x/r", "ti2i", True, "x/out.png"),
    ]
    assert index.report.skipped == {}


def test_listing(tmp_path: Path) -> None:
    picture(tmp_path / "p/a.png")
    clip(tmp_path / "p/b.mp4")
    lines = [
        json.dumps({"caption": "a", "target": "p/a.png", "key": "first"}),
        "",
        json.dumps({"caption": "b", "target": "p/b.mp4", "images": ["p/a.png"], "task": "ti2v"}),
        json.dumps({"caption": "c", "target": "p/a.png", "key": "first"}),
        json.dumps({"caption": "d"}),
        json.dumps({"caption": "e", "target": "../a.png"}),
        json.dumps({"caption": "long", "target": "p/a.png", "note": "x" * 2**20}),
        "{",
        json.dumps({"caption": "last", "target": "p/a.png"}),
    ]
    (tmp_path / "dataset.jsonl").write_text("\n".join(lines))
    index = scan(tmp_path)
    assert [r.key for r in index.records] == ["first", "dataset.jsonl:3", "dataset.jsonl:9"]
    assert index.report.skipped == {TWICE: 1, MISSING: 1, UNSAFE: 1, LARGE: 1, RECORD: 1}


def test_tar_and_tars_in_a_folder(tmp_path: Path) -> None:
    clip(tmp_path / "c.mp4")
    members = {
        "./001.json": b'{"caption": {"long": "l", "short": "s"}}',
        "./001.png": png(),
        "./001.source.png": png(),
        "sub/002.txt": b"clip",
        "sub/002.mp4": (tmp_path / "c.mp4").read_bytes(),
    }
    one = tar(tmp_path / "shards/0.tar", members)
    tar(tmp_path / "shards/1.tar", {"001.png": png(300, 150), "001.txt": b"x"})
    index = scan(one)
    assert [(r.key, r.task, r.bucket) for r in index.records] == [
        ("0.tar/001", "ti2i", Bucket(64, 64)),
        ("0.tar/sub/002", "t2v", Bucket(64, 48, 9)),
    ]
    assert [r.key for r in scan(tmp_path / "shards").records] == ["0.tar/001", "0.tar/sub/002", "1.tar/001"]


def test_everything_that_can_be_wrong_is_counted(tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    picture(tmp_path / "small.png", 8, 8)
    picture(tmp_path / "long.png", 800, 64)
    picture(tmp_path / "silent.png")
    picture(tmp_path / "blank.png")
    picture(tmp_path / "list.png")
    (tmp_path / "noise.jpg").write_bytes(b"\xff\xd8\xff" + bytes(50))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not a picture")
    whole = clip(tmp_path / "cut.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    clip(tmp_path / "short.mp4", 3)
    for name in ("small", "long", "noise", "empty", "text", "cut", "short", "nothing"):
        (tmp_path / f"{name}.txt").write_text("words")
    record(tmp_path / "blank.json", caption=" ")
    (tmp_path / "list.json").write_text('["a"]')
    record(tmp_path / "out.json", caption="c", target="../00.png")
    record(tmp_path / "task.json", caption="c", target="00.png", task="t2v")
    record(tmp_path / "base.json", caption="c", target="00.png", images=["01.png"], base_image=True)
    record(tmp_path / "kind.json", caption="c", target="00.png", images=["short.mp4"])
    record(tmp_path / "shape.json", caption="c", target="00.png", images=["long.png"])
    picture(tmp_path / "two.png")
    picture(tmp_path / "two.jpg")
    (tmp_path / "two.txt").write_text("which")
    index = scan(tmp_path)
    assert [r.key for r in index.records] == ["00", "01"]
    assert index.report.skipped == {
        SMALL: 1, SHAPE: 1, CAPTION: 2, RECORD: 1, MEDIA: 4, SHORT: 1, MISSING: 1, UNSAFE: 1, TASK: 3, ALIGN: 1,
        TWICE: 1,
    }  # fmt: skip
    lines = index.report.lines()
    assert len(lines) == 11
    assert lines[0].startswith("skipped 4, media unreadable; first: cut: cut.mp4: ")
    assert len(index.report.examples[MEDIA]) == 3


def test_files_over_the_limit(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    picture(tmp_path / "big.png", 640, 640)
    (tmp_path / "big.txt").write_text("x")
    picture(tmp_path / "words.png")
    (tmp_path / "words.txt").write_text("x" * (2**20 + 1))
    limit = (tmp_path / "big.png").stat().st_size - 1
    index = open_dataset([tmp_path], SIZING, max_bytes=limit)
    assert index.report.skipped == {LARGE: 2}


def test_unsafe_and_repeated_names_in_a_tar(tmp_path: Path) -> None:
    good = [("a.png", png()), ("a.txt", b"a")]
    bad = [("../b.png", png()), ("/c.png", png()), ("a.png", png(8, 8))]
    index = scan(tar(tmp_path / "x.tar", good + bad))
    assert [(r.key, r.target.header.width) for r in index.records] == [("x.tar/a", 80)]
    assert index.report.skipped == {UNSAFE: 2, TWICE: 1}
    assert not (tmp_path.parent / "b.png").exists()


# Ends within a header, behind a header, within data; behind the last data, where only the end mark is missing.
@pytest.mark.parametrize(("cut", "kept"), [(88, "a"), (512, "a"), (600, "a"), (1024, "ab")])
def test_tar_cut_off_keeps_what_is_whole(tmp_path: Path, cut: int, kept: str) -> None:
    path = tar(tmp_path / "x.tar", {"a.txt": b"a", "a.png": png(), "b.txt": b"b", "b.png": png()})
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"b.png") + cut])
    index = scan(path)
    assert [r.key for r in index.records] == [f"x.tar/{key}" for key in kept]
    assert index.report.skipped[CUT] == 1
    assert index.report.examples[CUT][0].startswith("x.tar: ")


def test_tar_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"x" * 5000)
    with pytest.raises(InputError, match=r"nothing to train on .skipped 1, tar cut off or damaged"):
        scan(tmp_path / "x.tar")


def test_nothing_usable_names_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file of these kinds.*dataset\.jsonl, or pictures and videos"):
        scan(tmp_path)
    with pytest.raises(InputError, match="no path"):
        open_dataset([], SIZING)
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(b"broken")
        (tmp_path / f"{name}.txt").write_text("x")
    with pytest.raises(InputError, match=r"skipped 2, media unreadable; first: a: a\.png: is not a picture"):
        scan(tmp_path)


def test_paths_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"x")
    with pytest.raises(InputError, match="no folder and no uncompressed"):
        scan(tmp_path / "x.tar.gz")
    with pytest.raises(InputError, match="does not exist"):
        scan(tmp_path / "nowhere")


def test_headers_of_turned_pictures_and_of_gifs(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 160)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("P", (80, 80)).save(tmp_path / "still.gif")
    write_media(plain(9), tmp_path / "moving.gif", fps=8, metadata={}, overwrite=False)
    grey = [Image.new("L", (80, 80), 99 * number) for number in range(2)]
    grey[0].save(tmp_path / "animated.webp", save_all=True, append_images=grey[1:])
    for key in ("turned", "still", "moving", "animated"):
        (tmp_path / f"{key}.txt").write_text("x")
    index = scan(tmp_path)
    found = {r.key: r for r in index.records}
    assert (found["turned"].target.header.width, found["turned"].bucket) == (160, Bucket(96, 48))
    assert (found["still"].task, found["moving"].task) == ("t2i", "t2v")
    assert index.report.skipped == {MEDIA: 1}
    assert "an animation of 2 frames" in index.report.examples[MEDIA][0]


def test_what_is_no_file_or_no_unicode_is_not_opened(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    for name in ("a.png", "b.tar", "c.json"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "a.txt").write_text("a pipe")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_text("x")
    index = scan(tmp_path)
    assert index.report.skipped == {MISSING: 2, UNSAFE: 1}
    assert "\\udcff" in index.report.examples[UNSAFE][0]
    "".join(index.report.lines()).encode()


def test_order_does_not_depend_on_threads(tmp_path: Path) -> None:
    pictures(tmp_path, 20)
    runs = [open_dataset([tmp_path], SIZING, threads=threads) for threads in (1, 7)]
    assert runs[0] == runs[1]
