"""Samples from disk: decoded pixels, aligned pairs, broken files replaced, and the same batches in any process."""

import itertools
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.clips import number, plain, write_video
from tests.unit.datasets import SIZING, clip, config, picture, pictures, record, tar
from vino_rt.errors import InputError, VinoError
from vino_rt.train.data import Bucket, DiskData, Sizing
from vino_rt.train.data.assemble import count_rows
from vino_rt.train.data.decode import cover_size, fit_picture
from vino_rt.train.sample import Loaded, Sample
from vino_rt.train.workers import ordered


def same(one: Sample, two: Sample) -> bool:
    parts = [(one.target, two.target), (one.video, two.video), (one.vlm_frames, two.vlm_frames)]
    parts += list(zip(one.images, two.images, strict=True))
    words = (one.key, one.task, one.caption) == (two.key, two.task, two.caption)
    return words and all(np.array_equal(a, b) if a is not None and b is not None else a is b for a, b in parts)


def counted(data: DiskData, loaded: Loaded) -> tuple[Sample, ...]:
    """What the training process makes of a batch, wherever it was loaded."""
    data.count(loaded.faults)
    return loaded.samples


def batch(data: DiskData, index: int) -> tuple[Sample, ...]:
    return counted(data, data.load(index))


def only(root: Path, **changes: object) -> Sample:
    data = DiskData(config(root, **changes))
    (sample,) = batch(data, 0)
    clips = [image[None].shape[:3] for image in sample.images]
    clips += [] if sample.video is None else [sample.video.shape[:3]]
    rows = count_rows(tuple(clips), sample.target.shape[:3], data.config.sizing.unit)
    assert rows == data.index.records[0].rows
    return sample


def test_picture_is_cropped_to_its_bucket(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 240, 100)
    (tmp_path / "a.txt").write_text("a gradient")
    sample = only(tmp_path)
    assert (sample.key, sample.task, sample.caption) == ("a", "t2i", "a gradient")
    assert sample.target.shape == (1, 48, 96, 3)
    # 240x100 keeps 200 columns, 20 to 220, of a red ramp over 240.
    red = sample.target[0, 20, :, 0].astype(float)
    assert abs(red[0] - 255 * 21 / 239) < 2
    assert abs(red[-1] - 255 * 218 / 239) < 2
    assert sample.images == ()
    assert sample.video is None


@pytest.mark.parametrize("size", [(97, 61), (64, 64), (1001, 64), (333, 1000)])
def test_fit_keeps_the_centre(size: tuple[int, int]) -> None:
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, size[0] // 2 :] = 255
    fitted = fit_picture(pixels, 64, 48)
    assert fitted.shape == (48, 64, 3)
    assert fitted[:, :30].max() < 30
    assert fitted[:, 34:].min() > 225


@pytest.mark.parametrize("size", [(64, 48), (1280, 720), (67, 49), (48, 641), (4096, 3072)])
def test_cover_touches_one_side(size: tuple[int, int]) -> None:
    width, height = cover_size(*size, Bucket(64, 48, 5))
    assert width >= 64
    assert height >= 48
    assert width == 64 or height == 48


def test_edit_pair_stays_aligned(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 170, 90)
    Image.open(tmp_path / "a.png").resize((340, 180), Image.Resampling.NEAREST).save(tmp_path / "a.source.png")
    picture(tmp_path / "a.ref0.png", 50, 100)
    record(tmp_path / "a.json", caption="edit")
    sample = only(tmp_path)
    reference, base = sample.images
    assert base.shape == sample.target[0].shape == (48, 96, 3)
    assert np.abs(base.astype(int) - sample.target[0].astype(int)).max() <= 3
    # The runtime's letterbox of 1:2 at an area of 4096: white bars left and right.
    assert reference.shape == (80, 48, 3)
    assert (reference[:, 0] == 255).all()


def test_clips_are_cut_alike(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", 12)
    (tmp_path / "a.source.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    record(tmp_path / "a.json", caption={"long": "l", "short": "s"}, task="tv2v")
    sample = only(tmp_path, long_share=0.0)
    assert sample.caption == "s"
    assert sample.video is not None
    assert sample.vlm_frames is not None
    assert sample.target.shape == sample.video.shape == (9, 48, 64, 3)
    assert np.array_equal(sample.target, sample.video)
    assert [number(frame) for frame in sample.target] == list(range(9))
    assert sample.vlm_frames.shape == (8, 60, 80, 3)
    assert [number(frame) for frame in sample.vlm_frames] == [0, 2, 3, 5, 6, 8, 9, 11]


def test_still_first_frame_of_a_clip(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", 9, 96, 72)
    Image.fromarray(plain(1, 72, 96)[0]).save(tmp_path / "a.source.png")
    record(tmp_path / "a.json", caption="go")
    sample = only(tmp_path)
    assert sample.task == "i2v"
    assert sample.images[0].shape == sample.target.shape[1:]
    assert np.abs(sample.images[0].astype(int) - sample.target[0].astype(int)).mean() < 3


def test_tar_and_folder_give_the_same_samples(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "f", 5)
    clip(folder / "05.mp4")
    (folder / "05.txt").write_text("clip")
    shard = tar(tmp_path / "s.tar", {path.name: path.read_bytes() for path in sorted(folder.iterdir())})
    one, two = DiskData(config(folder)), DiskData(config(shard))
    for index in range(6):
        for a, b in zip(batch(one, index), batch(two, index), strict=True):
            assert b.key == f"s.tar/{a.key}"
            assert np.array_equal(a.target, b.target)
    assert not one.faults


def break_off(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def test_broken_files_are_replaced_and_counted(tmp_path: Path) -> None:
    for n in range(12):
        picture(tmp_path / f"{n:02}.jpg", 160, 160, n)
        (tmp_path / f"{n:02}.txt").write_text(f"picture {n}")
    for n in (3, 4):
        break_off(tmp_path / f"{n:02}.jpg")
    data = DiskData(config(tmp_path, max_broken=0.2))
    keys = [data.index.records[r].key for i in range(3) for r in data.order[i]]
    assert sorted(keys) == [f"{n:02}" for n in range(12)]
    samples = [sample for i in range(3) for sample in batch(data, i)]
    expected = ["05" if key in ("03", "04") else key for key in keys]
    assert [sample.key for sample in samples] == expected
    assert [sample.caption for sample in samples] == [f"picture {int(key)}" for key in expected]
    assert sorted(data.faults) == ["03", "04"]
    assert data.faults["03"].startswith("03.jpg: the picture is damaged or cut off")
    assert "broken while decoding: 2; first: 0" in data.describe()
    strict = DiskData(config(tmp_path, max_broken=0.1))
    with pytest.raises(InputError, match=r"2 of 12 records cannot be decoded, max_broken 0\.1 allows 1"):
        [batch(strict, index) for index in range(3)]


def test_broken_member_of_a_tar_names_the_member(tmp_path: Path) -> None:
    whole = picture(tmp_path / "whole.png", 300, 300).read_bytes()
    broken = whole[: len(whole) // 2]
    members = {"a.txt": b"a", "a.png": whole, "b.txt": b"b", "b.png": broken}
    data = DiskData(config(tar(tmp_path / "s.tar", members), max_broken=0.5))
    assert [sample.key for sample in batch(data, 0)] == ["s.tar/a"] * 2
    assert data.faults["s.tar/b"].startswith("s.tar/b.png: the picture is damaged")


def test_a_pool_of_broken_files_only(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", 160, 160)
    (tmp_path / "a.txt").write_text("a")
    break_off(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"not one record like a .t2i, 1x64x64. can be decoded; the last: a\.jpg"):
        batch(DiskData(config(tmp_path, max_broken=1.0)), 0)


def test_a_file_that_vanishes_and_a_clip_shorter_than_it_says(tmp_path: Path) -> None:
    for key, frames in (("a", 9), ("b", 9), ("c", 9)):
        write_video(tmp_path / f"{key}.mp4", plain(frames, 60, 80))
        (tmp_path / f"{key}.txt").write_text(key)
    data = DiskData(config(tmp_path, max_broken=1.0, tokens_per_batch=108))
    clip(tmp_path / "a.mp4", 5)
    (tmp_path / "b.mp4").unlink()
    assert [sample.key for sample in batch(data, 0)] == ["c", "c", "c"]
    assert "has 5 frames, its header promised 9 and its bucket takes 9" in data.faults["a"]
    assert "b.mp4: cannot be opened" in data.faults["b"]


def test_description(tmp_path: Path) -> None:
    pictures(tmp_path, 5)
    picture(tmp_path / "small.png", 20, 20)
    (tmp_path / "small.txt").write_text("x")
    assert DiskData(config(tmp_path)).describe().splitlines() == [
        "5 records; 1.25 batches in an epoch",
        "  t2i 1x64x64: 5 records, 4 in a batch of 64 rows, 1.25 batches in an epoch",
        "  skipped 1, smaller than every bucket; first: small: 20x20; the smallest bucket is 64x64",
    ]


@pytest.mark.parametrize("name", ["long_share", "max_broken"])
def test_shares(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{name} is 1.5"):
        config(tmp_path, **{name: 1.5})


def test_workers_give_what_one_process_gives(tmp_path: Path) -> None:
    for n in range(8):
        picture(tmp_path / f"{n}.jpg", 160, 160, n)
        record(tmp_path / f"{n}.json", caption=[f"a {n}", f"b {n}", f"c {n}"])
    break_off(tmp_path / "5.jpg")
    runs = []
    for workers in (0, 2):
        data = DiskData(config(tmp_path, max_broken=0.5))
        loaded = [each for each in ordered(data.load, range(3, 12), workers) if isinstance(each, Loaded)]
        runs.append(([counted(data, each) for each in loaded], data.faults))
    assert len(runs[0][0]) == len(runs[1][0]) == 9
    assert runs[0][1] == runs[1][1]
    assert set(runs[0][1]) == {"5"}
    for one, two in zip(runs[0][0], runs[1][0], strict=True):
        assert all(same(a, b) for a, b in zip(one, two, strict=True))
    # A run resumed at batch 7 goes on as the uncut one.
    again = DiskData(config(tmp_path, max_broken=0.5))
    resumed = [batch(again, index) for index in range(7, 12)]
    assert all(
        same(a, b) for one, two in zip(resumed, runs[0][0][4:], strict=True) for a, b in zip(one, two, strict=True)
    )


def test_samples_fit_a_larger_model(tmp_path: Path) -> None:
    pictures(tmp_path, 1, 900, 500)
    sizing = Sizing(buckets=(Bucket(848, 480),), area=480 * 848)
    assert only(tmp_path, sizing=sizing, tokens_per_batch=2000).target.shape == (1, 480, 848, 3)
    assert SIZING.unit == 16


class Clumsy:
    """Dies at its third index: the first time only, or each time."""

    def __init__(self, once: Path | None) -> None:
        self.once = once

    def __call__(self, index: int) -> int:
        if index == 5:
            raise InputError("five")
        if index == 3 and (self.once is None or not self.once.exists()):
            if self.once is not None:
                self.once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return index * index


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    results = list(ordered(Clumsy(tmp_path / "died"), range(1, 8), 2))
    assert [r if isinstance(r, int) else str(r) for r in results] == [1, 4, 9, 16, "five", 36, 49]
    assert (tmp_path / "died").exists()


def test_a_worker_that_dies_again_ends_it() -> None:
    stream = ordered(Clumsy(None), itertools.count(2), 2)
    assert next(stream) == 4
    with pytest.raises(VinoError, match=r"died twice over micro-batch 3 \(exit code -9"):
        next(stream)
