"""References as the model wants them: letterboxed images, a video's first frames and VLM frames, file or memory."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.clips import write_video
from vino_rt import media_video
from vino_rt.errors import InputError, MediaError
from vino_rt.model_settings import ModelSettings
from vino_rt.models.vino.checkpoint import release_settings
from vino_rt.models.vino.prepare import vlm_frame_indices
from vino_rt.request import Pixels, Reference, Request
from vino_rt.settings import SourceSizes, resolve
from vino_rt.sources import Sources, load_sources


def noise(*shape: int) -> Pixels:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def defaults() -> ModelSettings:
    return release_settings(48 * 64, (64, 48))


def load(defaults: ModelSettings, *references: Reference, frames: int | None = None) -> Sources:
    return load_sources(Request(prompt="x", references=references, frames=frames), defaults)


def test_without_references(defaults: ModelSettings) -> None:
    sources = load(defaults)
    assert sources.sizes == SourceSizes()
    assert sources.images == ()
    assert sources.clip is None
    assert sources.vlm_frames is None


def test_images_keep_their_order_and_shape(defaults: ModelSettings, tmp_path: Path) -> None:
    wide, tall = noise(53, 171, 3), noise(201, 40, 3)
    Image.fromarray(tall).save(tmp_path / "tall.png")
    sources = load(defaults, Reference.image(wide), Reference.image(tmp_path / "tall.png"))
    assert sources.sizes.images == ((171, 53), (40, 201))
    assert [image.dtype for image in sources.images] == [np.uint8] * 2
    first, second = (image.shape for image in sources.images)
    assert first[1] > 2 * first[0]
    assert second[0] >= 3 * second[1]
    for height, width, channels in (first, second):
        assert (height % 16, width % 16, channels) == (0, 0, 3)
    swapped = load(defaults, Reference.image(tmp_path / "tall.png"), Reference.image(wide))
    assert [np.array_equal(a, b) for a, b in zip(sources.images, swapped.images[::-1], strict=True)] == [True, True]


def test_an_image_of_the_right_size_is_left_as_it_is(defaults: ModelSettings) -> None:
    image = noise(48, 64, 3)
    assert np.array_equal(load(defaults, Reference.image(image)).images[0], image)


@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_image_file_equals_memory(defaults: ModelSettings, tmp_path: Path, suffix: str) -> None:
    image = noise(97, 61, 3)
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(image).save(path)
    one, two = (load(defaults, Reference.image(source)) for source in (path, image))
    assert one.sizes == two.sizes
    assert np.array_equal(one.images[0], two.images[0])


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (Reference.image, (20_000, 20_000, 3), "the image in memory: the picture is 20000x20000 = 400 megapixels"),
        (Reference.video, (5, 20_000, 20_000, 3), "the video in memory: the video is 20000x20000 = 400 megapixels"),
    ],
)
def test_pixels_in_memory_have_the_limits_of_files(
    defaults: ModelSettings, make: Callable[[Pixels], Reference], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(MediaError, match=message):
        load(defaults, make(np.broadcast_to(np.zeros(1, np.uint8), shape)))


@pytest.mark.parametrize(
    ("available", "frames", "used"), [(9, None, 9), (11, None, 9), (12, 5, 5), (30, 17, 17), (30, 89, 29), (1, 1, 1)]
)
def test_video_in_memory(defaults: ModelSettings, available: int, frames: int | None, used: int) -> None:
    video = noise(available, 53, 71, 3)
    sources = load(defaults, Reference.video(video, fps=12.0), frames=frames)
    assert sources.sizes == SourceSizes((), (71, 53), available, 12.0)
    assert sources.clip is not None
    assert sources.clip.shape == (used, 48, 64, 3)
    assert sources.clip.flags.c_contiguous
    assert sources.vlm_frames is not None
    assert np.array_equal(sources.vlm_frames, video[list(vlm_frame_indices(available))])


def test_video_file_and_memory(defaults: ModelSettings, golden: Path) -> None:
    path = golden / "vlm_prompts" / "video.mp4"
    info = media_video.read_video(path, first=1, size=lambda w, h: (w, h), picks=lambda _: [0]).info
    whole = media_video.read_video(path, first=info.frames, size=lambda w, h: (w, h), picks=lambda _: [0]).head
    one, two = load(defaults, Reference.video(path)), load(defaults, Reference.video(whole, fps=info.fps))
    assert whole.shape == (info.frames, info.height, info.width, 3)
    assert one.sizes == two.sizes
    assert one.vlm_frames is not None
    assert two.vlm_frames is not None
    assert np.array_equal(one.vlm_frames, two.vlm_frames)
    assert one.clip is not None
    assert two.clip is not None
    # A file's frames are scaled by the decoder's filter, as in the release; those in memory by another bicubic one.
    assert one.clip.shape == two.clip.shape
    apart = np.abs(one.clip[:, None].astype(int) - two.clip[None].astype(int)).mean((2, 3, 4))
    assert apart.argmin(1).tolist() == list(range(9))
    assert apart.diagonal().max() < 4


def test_what_is_loaded_is_what_settings_promise(defaults: ModelSettings) -> None:
    for size in ((53, 71), (211, 40), (16, 16), (31, 300)):
        for frames in (None, 5):
            request = Request(prompt="x", references=(Reference.video(noise(9, *size, 3)),), frames=frames)
            sources = load_sources(request, defaults)
            settings = resolve(request, defaults, sources.sizes)
            assert sources.clip is not None
            assert sources.clip.shape == (settings.frames, settings.height, settings.width, 3)
            request = Request(prompt="x", references=(Reference.image(noise(*size, 3)),))
            sources = load_sources(request, defaults)
            settings = resolve(request, defaults, sources.sizes)
            assert sources.images[0].shape == (settings.height, settings.width, 3)


def test_the_area_decides_the_size(defaults: ModelSettings) -> None:
    reference = Reference.image(noise(300, 300, 3))
    small, large = (load(replace(defaults, area=area), reference).images[0] for area in (1024, 16384))
    assert small.shape == (32, 32, 3)
    assert large.shape == (128, 128, 3)


def test_too_many_frames_are_refused_before_a_file_is_opened(defaults: ModelSettings, tmp_path: Path) -> None:
    most = defaults.max_frames
    with pytest.raises(InputError, match=f"frames is 100001; this model makes at most {most}"):
        load(defaults, Reference.video(tmp_path / "absent.mp4"), frames=100_001)


def test_what_cannot_be_read_is_named(defaults: ModelSettings, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "text.mp4").write_text("no video")
    good = Reference.image(noise(32, 32, 3))
    for bad in ("absent.png", "text.png"):
        with pytest.raises(MediaError, match=bad):
            load(defaults, good, Reference.image(tmp_path / bad))
    for bad in ("absent.mp4", "text.mp4"):
        with pytest.raises(MediaError, match=bad):
            load(defaults, good, Reference.video(tmp_path / bad))


@pytest.mark.parametrize(("width", "height"), [(640, 16), (16, 640)])
def test_a_reference_too_long_is_named_with_its_own_size(
    defaults: ModelSettings, tmp_path: Path, width: int, height: int
) -> None:
    told = rf": {width}x{height} is 40\.0:1; at most 12:1 is legal: crop it"
    Image.fromarray(noise(height, width, 3)).save(tmp_path / "long.png")
    write_video(tmp_path / "long.mp4", noise(9, height, width, 3))
    for reference, name in (
        (Reference.image(tmp_path / "long.png"), r"long\.png"),
        (Reference.video(tmp_path / "long.mp4"), r"long\.mp4"),
        (Reference.image(noise(height, width, 3)), "the image in memory"),
        (Reference.video(noise(9, height, width, 3)), "the video in memory"),
    ):
        with pytest.raises(InputError, match=name + told):
            load(defaults, reference)
