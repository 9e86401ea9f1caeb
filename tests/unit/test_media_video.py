"""Reading videos: every file a user may hand in comes back as the frames he sees, or as an error that says why."""

import hashlib
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.clips import all_frames, number, plain, same_size, write_video
from vino_rt import media_video
from vino_rt.errors import MediaError
from vino_rt.media_video import probe_video, read_video

GOLDEN = Path(__file__).parents[1] / "golden" / "vino"


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


def test_golden_video() -> None:
    clips = read_video(GOLDEN / "vlm_prompts" / "video.mp4", first=17, size=same_size, picks=all_frames)
    assert (clips.info.width, clips.info.height, clips.info.frames) == (64, 64, 9)
    assert clips.head.shape == clips.picked.shape == (9, 64, 64, 3)


def test_pixels_are_those_of_the_released_reader() -> None:
    """Hashes of what decord 0.6.0, which the released pipeline reads with, gives for this file at these sizes."""
    clips = read_video(GOLDEN / "vlm_prompts" / "video.mp4", first=9, size=lambda w, h: (55, 55), picks=all_frames)
    assert hashlib.sha256(clips.head.tobytes()).hexdigest() == (
        "5f2dd0f482008163195566803ec651de0edd482f82410781a6711cdf845909d9"
    )
    assert hashlib.sha256(clips.picked.tobytes()).hexdigest() == (
        "e8be7caffe11be3ed86786892329919a26eba7e282a0965504f950fc5175e307"
    )


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
    monkeypatch.setattr(media_video, "MAX_VIDEO_FRAMES", 11)
    with pytest.raises(MediaError, match="longer than 11 frames"):
        probe_video(path)
    monkeypatch.setattr(media_video, "MAX_VIDEO_FRAMES", 12)
    assert probe_video(path).frames == 12
    monkeypatch.setattr(media_video, "MAX_VIDEO_SECONDS", 0.3)
    with pytest.raises(MediaError, match="limits are"):
        probe_video(path)


def test_limits_on_frame_and_file_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", plain(2))
    monkeypatch.setattr(media_video, "MAX_VIDEO_PIXELS", 64 * 48 - 1)
    with pytest.raises(MediaError, match="the video is 64x48"):
        probe_video(path)
    monkeypatch.setattr(media_video, "MAX_VIDEO_BYTES", 99)
    with pytest.raises(MediaError, match="limit is 99"):
        probe_video(path)
