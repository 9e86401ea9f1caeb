"""Reading: every file a user may hand in comes back as the frames he sees, or as a MediaError that says why not."""

import os
import struct
import wave
import zlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vino_rt import media
from vino_rt.errors import MediaError
from vino_rt.media import probe_video, read_image, read_video

GOLDEN = Path(__file__).parents[1] / "golden" / "vino"


def plain(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """[F,H,W,3]: left half red, right half grey with a level that tells the frame's number."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[:, :, : width // 2] = (255, 0, 0)
    for index in range(count):
        frames[index, :, width // 2 :] = 8 * index + 40
    return frames


def number(frame: np.ndarray) -> int:
    return round((float(frame[:, -8:].mean()) - 40) / 8)


def write_video(
    path: Path, frames: np.ndarray, codec: str = "libx264", pixels: str = "yuv420p", times: Sequence[int] | None = None
) -> Path:
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream(codec, rate=24, options={"bf": "2"} if codec == "libx264" else {})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], pixels
        stream.codec_context.thread_count = 1
        source = "rgba" if frames.shape[3] == 4 else "rgb24"
        for index, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format=source).reformat(format=pixels)
            frame.pts, frame.time_base = times[index] if times else index, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def same_size(width: int, height: int) -> tuple[int, int]:
    return width, height


def all_frames(frames: int) -> range:
    return range(frames)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")


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
def test_animation_gives_its_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("black", "white")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / f"a.{suffix}").max() < 8


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
    with pytest.raises(MediaError, match=rf"bad\.mp4.*{reason}"):
        read_image(path)
    with pytest.raises(MediaError, match=rf"bad\.mp4.*{reason}"):
        probe_video(path)


def test_a_name_is_never_a_protocol() -> None:
    with pytest.raises(MediaError, match="cannot be opened"):
        probe_video("concat:a.mp4|b.mp4")
    with pytest.raises(MediaError, match="cannot be opened"):
        read_image("a\0b.png")


# Videos


def test_head_is_scaled_and_picks_are_not(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", plain(12))
    clips = read_video(path, first=5, size=lambda w, h: (w // 2, h // 2 + 1), picks=lambda n: [0, 0, n // 2, n - 1])
    assert (clips.info.width, clips.info.height, clips.info.frames, clips.info.fps) == (64, 48, 12, 24.0)
    assert clips.head.shape == (5, 25, 32, 3)
    assert clips.picked.shape == (4, 48, 64, 3)
    assert clips.head.dtype == clips.picked.dtype == np.uint8
    assert [number(frame) for frame in clips.head] == [0, 1, 2, 3, 4]
    assert [number(frame) for frame in clips.picked] == [0, 0, 6, 11]
    assert probe_video(path) == clips.info


def test_colours_survive(tmp_path: Path) -> None:
    clips = read_video(write_video(tmp_path / "a.mp4", plain(2)), first=0, size=same_size, picks=all_frames)
    assert clips.head.shape == (0, 48, 64, 3)
    assert np.abs(clips.picked[0, :, :16].astype(int) - (255, 0, 0)).max() <= 6


@pytest.mark.skipif(not (GOLDEN / "vlm_prompts" / "video.mp4").exists(), reason="this golden case is not copied")
def test_golden_video() -> None:
    clips = read_video(GOLDEN / "vlm_prompts" / "video.mp4", first=17, size=same_size, picks=all_frames)
    assert (clips.info.width, clips.info.height, clips.info.frames) == (64, 64, 9)
    assert clips.head.shape == clips.picked.shape == (9, 64, 64, 3)


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        ((0, 1, -1, 0), (0, 0)),
        ((-1, 0, 0, -1), (0, 63)),
        ((0, -1, 1, 0), (63, 0)),
        ((-1, 0, 0, 1), (0, 63)),
    ],
    ids=["clockwise", "half", "counterclockwise", "mirror"],
)
def test_display_matrix(tmp_path: Path, matrix: tuple[int, int, int, int], corner: tuple[int, int]) -> None:
    """The red half lies left in the file; `corner` is a pixel that shows it afterwards."""
    path = write_video(tmp_path / "a.mp4", plain(3))
    data = bytearray(path.read_bytes())
    # Track header, version 0: the matrix starts 40 bytes after the box's payload does.
    start = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    clips = read_video(path, first=2, size=lambda w, h: (w // 2, h // 2), picks=lambda n: [n - 1])
    turned = matrix[0] == 0
    assert (clips.info.width, clips.info.height) == ((48, 64) if turned else (64, 48))
    assert clips.picked.shape == ((1, 64, 48, 3) if turned else (1, 48, 64, 3))
    assert clips.head.shape == ((2, 32, 24, 3) if turned else (2, 24, 32, 3))
    y, x = corner
    assert clips.picked[0, y, x, 0] > 200
    assert clips.picked[0, y, x, 1] < 60
    assert clips.head[0, min(y, clips.head.shape[1] - 1), min(x, clips.head.shape[2] - 1), 1] < 60
    opposite = clips.picked[0, -1 - y if turned else y, x if turned else -1 - x]
    assert int(opposite.max()) - int(opposite.min()) < 12


def test_variable_rate_keeps_every_frame_in_order(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", plain(6), times=[0, 1, 7, 8, 30, 31])
    clips = read_video(path, first=6, size=same_size, picks=all_frames)
    assert [number(frame) for frame in clips.head] == list(range(6))
    assert clips.info.fps == pytest.approx(5 / (31 / 24))


@pytest.mark.parametrize(
    ("name", "codec", "pixels"), [("a.mkv", "ffv1", "bgr0"), ("a.mov", "qtrle", "rgb24"), ("a.avi", "png", "rgb24")]
)
def test_odd_sizes(tmp_path: Path, name: str, codec: str, pixels: str) -> None:
    frames = np.random.default_rng(4).integers(0, 256, (3, 35, 63, 3), dtype=np.uint8)
    clips = read_video(write_video(tmp_path / name, frames, codec, pixels), first=1, size=same_size, picks=all_frames)
    assert np.array_equal(clips.picked, frames)
    assert clips.head.shape == (1, 35, 63, 3)


def test_alpha_of_a_video_is_composited_on_white(tmp_path: Path) -> None:
    frames = np.zeros((2, 35, 63, 4), np.uint8)
    frames[:, :20, :, 3] = 255
    clips = read_video(
        write_video(tmp_path / "a.mov", frames, "png", "rgba"), first=2, size=same_size, picks=all_frames
    )
    assert clips.picked[:, :20].max() == 0
    assert clips.picked[:, 20:].min() == 255
    assert np.array_equal(clips.head, clips.picked)


def test_gif_is_a_video(tmp_path: Path) -> None:
    frames = [Image.fromarray(frame) for frame in plain(4, 21, 31)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    clips = read_video(tmp_path / "a.gif", first=9, size=same_size, picks=all_frames)
    assert (clips.info.frames, clips.info.fps) == (4, 10.0)
    assert [number(frame) for frame in clips.head] == [0, 1, 2, 3]


def test_one_frame_is_enough(tmp_path: Path) -> None:
    clips = read_video(write_video(tmp_path / "a.mp4", plain(1)), first=5, size=same_size, picks=lambda n: [0] * 8)
    assert clips.info.frames == 1
    assert clips.head.shape[0] == 1
    assert clips.picked.shape[0] == 8


def test_sound_only(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    with pytest.raises(MediaError, match=r"a\.wav: holds no video \(audio only\)"):
        probe_video(tmp_path / "a.wav")


def test_picture_is_no_video(tmp_path: Path) -> None:
    Image.fromarray(plain(1)[0]).save(tmp_path / "a.jpg")
    with pytest.raises(MediaError, match="pass a still picture as an image"):
        probe_video(tmp_path / "a.jpg")


def noise_video(path: Path) -> bytes:
    noise = np.random.default_rng(5).integers(0, 256, (30, 96, 128, 3), dtype=np.uint8)
    return write_video(path, noise).read_bytes()


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_cut_off_mp4(tmp_path: Path, part: float) -> None:
    path = tmp_path / "a.mp4"
    data = noise_video(path)
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(MediaError, match=r"a\.mp4: .*cut off"):
        read_video(path, first=1, size=same_size, picks=lambda n: [0])


def test_damage_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    data = bytearray(noise_video(path))
    middle = len(data) // 2
    data[middle : middle + 6000] = bytes(6000)
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"a\.mp4: .*damaged"):
        probe_video(path)


def test_cut_off_stream_without_index_is_the_shorter_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", plain(12), "ffv1", "bgr0")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    clips = read_video(path, first=99, size=same_size, picks=all_frames)
    assert 1 <= clips.info.frames < 12
    assert [number(frame) for frame in clips.head] == list(range(clips.info.frames))


def test_no_decodable_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    data = bytearray(noise_video(path))
    start = data.index(b"mdat") + 4
    data[start:] = bytes(len(data) - start)
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"a\.mp4"):
        probe_video(path)


def test_limits_end_a_long_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mkv", plain(12), "ffv1", "bgr0")
    monkeypatch.setattr(media, "MAX_VIDEO_FRAMES", 11)
    with pytest.raises(MediaError, match="longer than 11 frames"):
        probe_video(path)
    monkeypatch.setattr(media, "MAX_VIDEO_FRAMES", 12)
    assert probe_video(path).frames == 12
    monkeypatch.setattr(media, "MAX_VIDEO_SECONDS", 0.3)
    with pytest.raises(MediaError, match="limits are"):
        probe_video(path)


def test_limits_on_frame_and_file_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", plain(2))
    monkeypatch.setattr(media, "MAX_VIDEO_PIXELS", 64 * 48 - 1)
    with pytest.raises(MediaError, match="the video is 64x48"):
        probe_video(path)
    monkeypatch.setattr(media, "MAX_VIDEO_BYTES", 99)
    with pytest.raises(MediaError, match="limit is 99"):
        probe_video(path)
