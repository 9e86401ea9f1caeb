"""Reading: every file a user may hand in comes back as the frames he sees, or as a MediaError that says why not."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.clips import plain, write_video
from vino_rt.errors import MediaError
from vino_rt.media import picture_frames, read_image
from vino_rt.media_video import probe_video


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")


def write_animation(path: Path, count: int = 3) -> Path:
    """The first frame is black."""
    frames = [Image.new("RGB", (9, 7), (80 * number, 0, 0)) for number in range(count)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


# Pictures


def test_rgb_is_read_exactly(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (35, 63, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.dtype == np.uint8
    assert np.array_equal(read, pixels)


def test_exif_orientation_is_honoured(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(plain(1)[0]).save(tmp_path / "a.jpg", quality=95, exif=exif)
    read = read_image(tmp_path / "a.jpg")
    assert read.shape == (64, 48, 3)
    assert read[:16, :, 0].min() > 240
    assert read[-16:, :, 0].max() < 60


def test_alpha_is_composited_on_white(tmp_path: Path) -> None:
    layer = np.zeros((4, 6, 4), np.uint8)
    layer[:, :2, 3], layer[:, 2:4, 3] = 255, 128
    Image.fromarray(layer).save(tmp_path / "rgba.png")
    read = read_image(tmp_path / "rgba.png")
    assert [int(read[0, x, 0]) for x in (0, 2, 5)] == [0, 127, 255]
    Image.fromarray(layer).convert("LA").save(tmp_path / "la.png")
    assert np.array_equal(read_image(tmp_path / "la.png"), read)


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (5, 3), 1)
    image.putpalette([9, 9, 9, 10, 20, 30])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "a.png", transparency=0)
    read = read_image(tmp_path / "a.png")
    assert read[0, 0].tolist() == [255, 255, 255]
    assert read[2, 4].tolist() == [10, 20, 30]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(np.array([[0, 128, 257, 32896, 65535]], np.uint16)).save(tmp_path / f"a.{suffix}")
    read = read_image(tmp_path / f"a.{suffix}")
    assert read[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert read.shape == (1, 5, 3)


@pytest.mark.parametrize(
    ("mode", "colour"), [("CMYK", (0, 255, 255, 0)), ("L", 77), ("1", 1), ("YCbCr", (76, 84, 255))]
)
def test_other_colour_models(tmp_path: Path, mode: str, colour: int | tuple[int, ...]) -> None:
    Image.new(mode, (7, 5), colour).save(tmp_path / "a.tif")
    expected = {"CMYK": (255, 0, 0), "L": (77, 77, 77), "1": (255, 255, 255), "YCbCr": (254, 0, 0)}[mode]
    assert tuple(read_image(tmp_path / "a.tif")[4, 6]) == expected


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animation_is_no_picture(tmp_path: Path, suffix: str) -> None:
    path = write_animation(tmp_path / f"a.{suffix}")
    way = "pass it as a video" if suffix != "webp" else "save it as GIF or MP4 and pass that as a video"
    with pytest.raises(MediaError, match=rf"a\.{suffix}: is an animation of 3 frames; {way}"):
        read_image(path)
    assert picture_frames(path) == 3
    if suffix == "webp":
        with pytest.raises(MediaError, match="HEIC and WebP are not read as videos"):
            probe_video(path)
    else:
        assert probe_video(path).frames == 3


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif", "mpo"])
def test_one_frame_previews_and_pages_are_a_picture(tmp_path: Path, suffix: str) -> None:
    path = write_animation(tmp_path / f"a.{suffix}", 2 if suffix in ("tif", "mpo") else 1)
    assert picture_frames(path) == 1
    assert read_image(path).max() < 8


def test_what_a_file_holds_is_seen_without_its_name(tmp_path: Path) -> None:
    assert picture_frames(write_animation(tmp_path / "a.png", 1).rename(tmp_path / "b.mp4")) == 1
    assert picture_frames(write_video(tmp_path / "a.mp4", plain(2)).rename(tmp_path / "b.png")) == 0
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(500))
    with pytest.raises(MediaError, match=r"a\.heic: HEIC and WebP are not read as videos"):
        probe_video(tmp_path / "a.heic")


@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (12_000, 9_000), (8_000, 8_001)])
def test_huge_picture_is_refused_from_its_header(tmp_path: Path, width: int, height: int) -> None:
    (tmp_path / "a.png").write_bytes(png_header(width, height))
    with pytest.raises(MediaError, match=rf"a\.png.*{width}x{height}.*limit is 64"):
        read_image(tmp_path / "a.png")


def test_float_picture_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((3, 3), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(MediaError, match="floating-point"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "tif"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_truncated_picture(tmp_path: Path, suffix: str, part: float) -> None:
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(2).integers(0, 256, (65, 63, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(MediaError, match=rf"a\.{suffix}: "):
        read_image(path)


# Both kinds


def bad_file(folder: Path, kind: str) -> Path:
    path = folder / "bad.mp4"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("Hello, this is no picture.\n" * 99)
    elif kind == "playlist":
        path.write_text("#EXTM3U\n#EXTINF:1,\n/etc/hostname\n")
    elif kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(3).bytes(5000))
    return path


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "playlist", "directory", "pipe", "noise"])
def test_what_is_no_media_says_so(tmp_path: Path, kind: str) -> None:
    path = bad_file(tmp_path, kind)
    reason = {"missing": "No such file", "empty": "empty", "directory": "directory", "pipe": "regular file"}.get(
        kind, "not"
    )
    with pytest.raises(MediaError, match=rf"bad\.mp4.*{reason}") as caught:
        read_image(path)
    assert str(caught.value).count("bad.mp4") == 1
    with pytest.raises(MediaError, match=rf"bad\.mp4.*{reason}"):
        probe_video(path)


def test_a_name_is_never_a_protocol() -> None:
    with pytest.raises(MediaError, match="cannot be opened"):
        probe_video("concat:a.mp4|b.mp4")
    with pytest.raises(MediaError, match="cannot be opened"):
        read_image("a\0b.png")


# Videos
