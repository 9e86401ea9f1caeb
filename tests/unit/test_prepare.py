"""Sizes, frame choices and pixels of the preparation against the released tables and the libraries behind them."""

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vino_rt.errors import InputError, ModelError
from vino_rt.models.vino import prepare
from vino_rt.models.vino.prepare import PixelRule
from vino_rt.models.vino.prompt import ProcessorConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "vino"
QWEN = GOLDEN / "e2e_ckpt" / "Qwen3-VL-tiny"
REAL_IMAGE = PixelRule(65536, 16777216, 3136, 12845056, 16, 2, 2, (0.5,) * 3, (0.5,) * 3)
REAL_VIDEO = dataclasses.replace(
    REAL_IMAGE, min_pixels=4096, max_pixels=25165824, fetch_min_pixels=262144, fetch_max_pixels=602112
)


def table(name: str) -> Any:
    data = json.loads((GOLDEN / "preproc" / f"{name}.json").read_text())
    return data["rows"] if isinstance(data, dict) and "rows" in data else data


def noise(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def test_video_size_table() -> None:
    for row in table("calc_target_resolution"):
        height, width = prepare.video_size(row["w"], row["h"], row["max_area"])
        assert (height, width) == (row["h_new"], row["w_new"])
        assert list(prepare.crop_size(height, width, 16)) == row["cropped_hw"]


def test_letterbox_table() -> None:
    for row in table("letterbox_grid"):
        box = prepare.letterbox_grid(row["w"], row["h"], row["max_area"], row["unit"])
        assert (box.height, box.width) == (row["h_box"], row["w_box"])
        assert (box.inner_height, box.inner_width) == (row["h_rsz"], row["w_rsz"])
        assert [box.left, box.top] == row["paste_xy"]


@pytest.mark.parametrize(
    ("width", "height", "canvas"),
    [(1920, 1080, (480, 848)), (3000, 4000, (736, 560)), (772, 3295, (1344, 304)), (537, 1528, (1056, 384))],
)
def test_letterbox_grid_looks_far_from_the_ideal_height(width: int, height: int, canvas: tuple[int, int]) -> None:
    box = prepare.letterbox_grid(width, height, 407040, 16)
    assert (box.height, box.width) == canvas


@pytest.mark.parametrize(("width", "height"), [(1, 100000), (100000, 1), (17, 1)])
def test_letterbox_of_extreme_shapes_stays_inside(width: int, height: int) -> None:
    box = prepare.letterbox_grid(width, height, 3072, 16)
    assert 1 <= box.inner_height <= box.height
    assert 1 <= box.inner_width <= box.width


@pytest.mark.parametrize(
    ("size", "area", "most"),
    [((20, 3000), 4096, 16), ((3000, 20), 4096, 16), ((13, 160), 3072, 12), ((20, 4001), 407040, 200)],
)
def test_a_reference_too_long_is_refused_by_its_own_shape(size: tuple[int, int], area: int, most: int) -> None:
    aspect = max(size) / min(size)
    told = rf"a\.x: {size[0]}x{size[1]} is {aspect:.1f}:1; at most {most}:1 is legal: crop it"
    for limited in (prepare.reference_box, prepare.reference_clip):
        with pytest.raises(InputError, match=told):
            limited("a.x", *size, area, 16)


@pytest.mark.parametrize(("long", "area"), [(320, 4096), (240, 3072), (4000, 407040)])
def test_the_longest_references(long: int, area: int) -> None:
    for size in ((20, long), (long, 20)):
        box = prepare.reference_box("a.x", *size, area, 16)
        assert min(box.inner_width, box.inner_height) >= 16
        assert min(prepare.reference_clip("a.x", *size, area, 16)) >= 16


def test_a_canvas_longer_than_its_image_is_refused() -> None:
    with pytest.raises(InputError, match=r"a\.x: the canvas of 10x1500: 16x4000 is 250\.0:1; at most 200:1"):
        prepare.reference_box("a.x", 10, 1500, 250 * 256, 16)


def test_vlm_frame_table() -> None:
    for row in table("decord_indices"):
        assert list(prepare.vlm_frame_indices(row["total_frames"])) == row["idx"]


def test_video_frame_table() -> None:
    for row in table("video_frames"):
        assert prepare.frame_count(row["num_frames"], row["video_len"]) == row["n_out"]


def test_smart_resize_table() -> None:
    for row in table("smart_resize"):
        arguments = (row["h"], row["w"], row["factor"], row["min_pixels"], row["max_pixels"])
        if "error" in row:
            with pytest.raises(InputError, match=r"250\.0"):
                prepare.smart_resize(*arguments)
        else:
            assert prepare.smart_resize(*arguments) == (row["h_bar"], row["w_bar"])


def test_resize_chain_table() -> None:
    chains = table("vlm_resize_chain")
    for row in chains["image"]:
        width, height = row["src_wh"]
        box = prepare.letterbox_grid(width, height, 407040, 16)
        assert [box.width, box.height] == row["letterbox_wh"]
        check_chain((box.height, box.width), 1, REAL_IMAGE, row, row.get("fetch_image_wh"))
    for row in chains["video"]:
        check_chain((row["src_wh"][1], row["src_wh"][0]), 8, REAL_VIDEO, row, row["fetch_video_wh"])


def check_chain(size: tuple[int, int], frames: int, rule: PixelRule, row: dict[str, Any], fetched: Any) -> None:
    if "error" in row:
        with pytest.raises(InputError, match=r"250\.0"):
            prepare.fetch_size(*size, rule)
        return
    first = prepare.fetch_size(*size, rule)
    second = prepare.processor_size(frames, *first, rule)
    assert [first[1], first[0]] == fetched
    assert [second[1], second[0]] == row["processor_wh"]
    assert [(frames + 1) // 2, second[0] // 16, second[1] // 16] == row["grid_thw"]


def test_pixels_equal_the_release() -> None:
    given = load_file(GOLDEN / "preproc_pixels" / "inputs.safetensors")
    expected = load_file(GOLDEN / "preproc_pixels" / "outputs.safetensors")
    rule = ProcessorConfig.from_dir(QWEN).image
    for i in range(len(given)):
        image = given[f"image.{i}"].numpy()
        boxed = prepare.letterbox(image, prepare.letterbox_grid(image.shape[1], image.shape[0], 48 * 64, 16))
        assert np.array_equal(boxed, expected[f"letterbox.{i}"].numpy())
        assert torch.equal(prepare.vae_pixels(boxed[None]), expected[f"vae_input.{i}"])
        assert np.array_equal(prepare.fetch_image(boxed, rule), expected[f"fetch_image.{i}"].numpy())
        rows, grid = prepare.vlm_image(boxed, rule)
        assert [list(grid)] == expected[f"image_grid_thw.{i}"].tolist()
        assert torch.equal(rows, expected[f"pixel_values.{i}"])


@pytest.mark.parametrize(("frames", "size"), [(8, (45, 83)), (8, (64, 64)), (3, (130, 70))])
def test_video_equals_torchvision_and_transformers(frames: int, size: tuple[int, int]) -> None:
    try:
        functional = importlib.import_module("torchvision.transforms.functional")
    except (
        ImportError,
        RuntimeError,
    ) as error:  # a torchvision of another torch build fails while it registers operators
        pytest.skip(f"torchvision cannot be used: {error}")
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    rule = dataclasses.replace(ProcessorConfig.from_dir(QWEN).video, fetch_min_pixels=3136)
    clip = noise(frames, *size, 3)
    planes = torch.from_numpy(clip).permute(0, 3, 1, 2)
    bicubic = functional.InterpolationMode.BICUBIC
    fetched = functional.resize(planes, list(prepare.fetch_size(*size, rule)), interpolation=bicubic, antialias=True)
    limits = {"shortest_edge": rule.min_pixels, "longest_edge": rule.max_pixels}
    processor = Qwen3VLVideoProcessor(size=limits, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    batch = processor(videos=[fetched.float()], do_sample_frames=False, cap_pixels_per_frame=False, return_tensors="pt")
    rows, grid = prepare.vlm_video(clip, rule)
    assert [list(grid)] == batch["video_grid_thw"].tolist()
    assert torch.equal(rows, batch["pixel_values_videos"])


def test_video_equals_recorded_values() -> None:
    """A few numbers torchvision 0.28.0 and transformers 5.23.0 gave for this clip, for machines without them."""
    rule = dataclasses.replace(ProcessorConfig.from_dir(QWEN).video, fetch_min_pixels=3136)
    clip = np.random.default_rng(8).integers(0, 256, (8, 45, 83, 3), dtype=np.uint8)
    rows, grid = prepare.vlm_video(clip, rule)
    assert (grid, rows.shape) == ((4, 4, 6), (96, 1536))
    expected = [1.0022761, 0.5611265, -0.5761945, 0.1024173, 0.3114144, -0.4745331, 0.7676445]
    assert [rows[i * 7, i * 211].item() for i in range(7)] == pytest.approx(expected, abs=1e-6)
    assert rows.double().abs().mean().item() == pytest.approx(0.34431209359734494, abs=1e-7)


def test_video_rows_hold_frame_pairs() -> None:
    rule = ProcessorConfig.from_dir(QWEN).video
    clip = np.repeat(np.arange(8, dtype=np.uint8)[:, None, None, None] * 30, 512, axis=1).repeat(512, 2).repeat(3, 3)
    rows, grid = prepare.vlm_video(clip, rule)
    assert grid == (4, 34, 34)
    pairs = rows.reshape(4, -1, 3, 2, 256)
    expected = (torch.arange(8.0) * 30 - 127.5) / 127.5
    assert torch.allclose(pairs.mean(dim=(1, 2, 4)).flatten(), expected, atol=1e-4)


def test_crop_and_vae_pixels() -> None:
    clip = noise(5, 35, 50, 3)
    cropped = prepare.crop_to_unit(clip, 16)
    assert cropped.shape == (5, 32, 48, 3)
    assert np.array_equal(cropped, clip[:, :32, :48])
    pixels = prepare.vae_pixels(cropped)
    assert pixels.shape == (1, 3, 5, 32, 48)
    assert pixels[0, 2, 4, 31, 47] == pytest.approx((float(clip[4, 31, 47, 2]) - 127.5) / 127.5)
    with pytest.raises(InputError, match="15x40"):
        prepare.crop_to_unit(noise(1, 40, 15, 3), 16)


@pytest.mark.parametrize("pixels", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8), noise(4, 4)])
def test_pixels_of_another_kind_are_refused(pixels: Any) -> None:
    with pytest.raises(InputError, match="expected uint8"):
        prepare.fetch_image(pixels, REAL_IMAGE)


def test_processor_config(tmp_path: Path) -> None:
    config = ProcessorConfig.from_dir(QWEN)
    assert (config.image.min_pixels, config.image.max_pixels, config.image.factor) == (4096, 16777216, 32)
    assert (config.video.fetch_min_pixels, config.video.fetch_max_pixels) == (262144, 602112)
    with pytest.raises(ModelError, match=r"preprocessor_config\.json"):
        ProcessorConfig.from_dir(tmp_path)
    own = json.loads((QWEN / "video_preprocessor_config.json").read_text())
    own["fetch_size"] = {"shortest_edge": 784, "longest_edge": 9408}
    (tmp_path / "preprocessor_config.json").write_text((QWEN / "preprocessor_config.json").read_text())
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(own))
    assert ProcessorConfig.from_dir(tmp_path).video.fetch_max_pixels == 9408
    del own["size"]
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(own))
    with pytest.raises(ModelError, match="size"):
        ProcessorConfig.from_dir(tmp_path)
