"""Writing: what goes in comes out, twice gives the same bytes, and a failure leaves the directory as it was."""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vino_rt import media_write
from vino_rt.errors import InputError, MediaError, OutputError, UsageError
from vino_rt.media import read_image
from vino_rt.media_video import read_video
from vino_rt.media_write import check_output, read_metadata, write_media

SETTINGS = {"prompt": 'a "cat"\nüber 日本 \U0001f600', "seed": "7", "negative": ""}


def smooth(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    frame = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=-1)
    return np.stack([np.roll(frame, 3 * index, axis=1) for index in range(count)]).astype(np.uint8)


def write(path: Path, frames: np.ndarray, *, fps: float = 24, overwrite: bool = False) -> Path:
    write_media(frames, path, fps=fps, metadata=SETTINGS, overwrite=overwrite)
    return path


def read_all(path: Path, count: int) -> np.ndarray:
    return read_video(path, first=count, size=lambda w, h: (w, h), picks=range).picked


@pytest.mark.parametrize(("suffix", "loss"), [(".png", 0), (".jpg", 12), (".JPEG", 12)])
def test_picture_round_trip(tmp_path: Path, suffix: str, loss: int) -> None:
    frames = smooth(1, 35, 63)
    path = write(tmp_path / f"a{suffix}", frames)
    assert np.abs(read_image(path).astype(int) - frames[0]).max() <= loss
    assert read_metadata(path) == SETTINGS


@pytest.mark.parametrize(("suffix", "loss"), [(".mp4", 4), (".gif", 10)])
def test_clip_round_trip(tmp_path: Path, suffix: str, loss: float) -> None:
    frames = smooth(9)
    path = write(tmp_path / f"a{suffix}", frames)
    read = read_all(path, 9)
    assert read.shape == frames.shape
    assert np.abs(read.astype(int) - frames).mean() < loss
    assert read_metadata(path) == SETTINGS


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".mp4", ".gif"])
def test_long_settings_survive(tmp_path: Path, suffix: str) -> None:
    settings = {"prompt": "ä日" * 30_000}
    path = tmp_path / f"a{suffix}"
    write_media(smooth(1 if suffix in (".png", ".jpg") else 2), path, fps=24, metadata=settings, overwrite=False)
    assert read_metadata(path) == settings


def test_other_programs_read_the_comment(tmp_path: Path) -> None:
    with av.open(str(write(tmp_path / "a.mp4", smooth(2)))) as container:
        assert container.metadata["comment"].startswith('{"negative": ""')
    with Image.open(write(tmp_path / "a.jpg", smooth(1))) as image:
        assert bytes(image.info["comment"]).startswith(b'{"negative": ""')


def test_foreign_files_have_no_settings(tmp_path: Path) -> None:
    Image.new("RGB", (3, 3)).save(tmp_path / "a.jpg", comment=b"made by hand")
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png")
    assert read_metadata(tmp_path / "a.jpg") == {}
    assert read_metadata(tmp_path / "a.png") == {}
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(MediaError, match=r"a\.txt"):
        read_metadata(tmp_path / "a.txt")
    with pytest.raises(MediaError, match=r"name one that vino-rt wrote \(\.png, \.jpg, \.jpeg, \.mp4, \.gif\)"):
        read_metadata(tmp_path / "a.txt")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".mp4", ".gif"])
def test_same_frames_give_same_bytes(tmp_path: Path, suffix: str) -> None:
    frames = smooth(1 if suffix in (".png", ".jpg") else 7)
    first = write(tmp_path / f"a{suffix}", frames).read_bytes()
    assert write(tmp_path / f"b{suffix}", frames).read_bytes() == first


def test_mp4_is_what_players_expect(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", smooth(13), fps=24000 / 1001)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate is not None
        assert stream.duration is not None
        assert stream.time_base is not None
        assert (stream.codec_context.name, stream.pix_fmt, stream.frames) == ("h264", "yuv420p", 13)
        assert (stream.average_rate.numerator, stream.average_rate.denominator) == (24000, 1001)
        assert stream.codec_context.colorspace == 1
        assert float(stream.duration * stream.time_base) == pytest.approx(13 * 1001 / 24000, abs=1e-3)


@pytest.mark.parametrize("fps", [24, 7.5, 50])
def test_gif_times_do_not_drift(tmp_path: Path, fps: float) -> None:
    path = write(tmp_path / "a.gif", smooth(25, 21, 31), fps=fps)
    with Image.open(path) as image:
        assert image.info["loop"] == 0
        times = []
        for index in range(25):
            image.seek(index)
            times.append(image.info["duration"])
    assert sum(times) == pytest.approx(25_000 / fps, abs=5.01)
    assert max(times) - min(times) <= 10


def test_gif_keeps_equal_frames(tmp_path: Path) -> None:
    assert len(read_all(write(tmp_path / "a.gif", np.full((5, 21, 31, 3), 99, np.uint8)), 5)) == 5


@pytest.mark.parametrize(("name", "count"), [("a.png", 5), ("a.jpg", 2), ("a.mp4", 1), ("a.gif", 1)])
def test_suffix_must_fit_the_frames(tmp_path: Path, name: str, count: int) -> None:
    legal = ".png, .jpg, .jpeg" if count == 1 else ".mp4, .gif"
    with pytest.raises(UsageError, match=legal):
        write(tmp_path / name, smooth(count))
    with pytest.raises(UsageError, match=legal):
        check_output(tmp_path / name, overwrite=False, frames=count)
    check_output(tmp_path / name, overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        (smooth(2, 35, 64), 24, "even sizes.*64x35"),
        (smooth(2), 0, "above 0"),
        (smooth(2), float("nan"), "nan frames"),
        (smooth(2), 1000, "at most 240"),
        (smooth(2).astype(np.float32), 24, "float32"),
        (smooth(2)[0], 24, "uint8"),
        (smooth(2)[:0], 24, "none 0"),
    ],
)
def test_frames_that_cannot_be_written(tmp_path: Path, frames: np.ndarray, fps: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write(tmp_path / "a.mp4", frames, fps=fps)
    assert list(tmp_path.iterdir()) == []


def test_paths_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "old.png").write_bytes(b"old")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    quoted = re.escape(f"(mkdir -p '{tmp_path}/a b; c')")
    for name, overwrite, message in [
        ("old.png", False, r"exists already.*\(--overwrite; in a program: overwrite=True\)$"),
        ("folder.png", True, "is a directory"),
        ("pipe.png", True, "not a regular file"),
        ("no/where/a.png", False, "mkdir -p"),
        ("a b; c/a.png", False, quoted),
        ("old.png/a.png", False, "no directory"),
        ("a.bmp", False, r"\.png, \.jpg, \.jpeg.*\.mp4, \.gif"),
        ("a", False, "suffix"),
        ("n" * 300 + ".png", False, "cannot be written"),
        ("a\0.png", False, "zero byte"),
    ]:
        with pytest.raises(OutputError, match=message):
            check_output(tmp_path / name, overwrite=overwrite)
    check_output(tmp_path / "old.png", overwrite=True)
    check_output(tmp_path / "new.png", overwrite=False)
    assert (tmp_path / "old.png").read_bytes() == b"old"


def test_directory_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="not writable"):
        check_output(tmp_path / "a.png", overwrite=False)


def test_overwrite_replaces_the_file_and_keeps_the_link(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(b"old")
    (tmp_path / "link.png").symlink_to("real.png")
    with pytest.raises(OutputError, match="exists already"):
        write(tmp_path / "link.png", smooth(1))
    write(tmp_path / "link.png", smooth(1), overwrite=True)
    assert (tmp_path / "link.png").is_symlink()
    assert read_image(tmp_path / "real.png").shape == (48, 64, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.png", "real.png"]


def test_files_follow_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    assert write(tmp_path / "a.png", smooth(1)).stat().st_mode == (tmp_path / "plain").stat().st_mode


def fail_with(error: BaseException) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.mp4", "a.gif"])
def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, overwrite: bool) -> None:
    if overwrite:
        (tmp_path / name).write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail_with(OSError(errno.ENOSPC, "No space left on device")))
    frames = smooth(1 if name in ("a.png", "a.jpg") else 3)
    with pytest.raises(OutputError, match=r"no room: \d+ bytes needed, \d+ free"):
        write(tmp_path / name, frames, overwrite=overwrite)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([b"old"] if overwrite else [])


@pytest.mark.parametrize("place", ["fsync", "link"])
def test_ctrl_c_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setattr(os, place, fail_with(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.png", smooth(1))
    assert list(tmp_path.iterdir()) == []


def test_other_failures_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", fail_with(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OutputError, match="Input/output error"):
        write(tmp_path / "a.png", smooth(1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("links", [True, False])
def test_file_that_appears_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    encode = media_write._png

    def slow(frame: np.ndarray, comment: str) -> bytes:
        (tmp_path / "a.png").write_bytes(b"other")
        return encode(frame, comment)

    monkeypatch.setattr(media_write, "_png", slow)
    if not links:
        monkeypatch.setattr(os, "link", fail_with(OSError(errno.EPERM, "no links here")))
    with pytest.raises(OutputError, match="appeared meanwhile"):
        write(tmp_path / "a.png", smooth(1))
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"other"]


def test_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", fail_with(OSError(errno.EPERM, "no links here")))
    write(tmp_path / "a.png", smooth(1))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    monkeypatch.setattr(os, "replace", fail_with(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OutputError, match="Input/output error"):
        write(tmp_path / "b.png", smooth(1))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
