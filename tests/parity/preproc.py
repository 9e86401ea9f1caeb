"""Cases of kind preproc: tables of sizes and frame choices, and pixels from a picture to the rows of the VLM."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.parity import readers
from tests.parity.case import BrokenCase, Case
from tests.parity.measure import Judge
from tests.parity.tables import Row, judge_rows
from vino_rt.models.vino import prepare
from vino_rt.models.vino.prepare import PixelRule
from vino_rt.models.vino.prompt import ProcessorConfig
from vino_rt.request import Request

AREA, UNIT = 480 * 848, 16
IMAGE = PixelRule(65536, 16777216, 3136, 12845056, 16, 2, 2, (0.5,) * 3, (0.5,) * 3)
VIDEO = dataclasses.replace(
    IMAGE, min_pixels=4096, max_pixels=25165824, fetch_min_pixels=262144, fetch_max_pixels=602112
)
"""Limits of the released processors, which the tables were made with (MODEL.md section 3)."""
CASE_FILES = ("meta.json", "config.json")
PICTURE = re.compile(r"(letterbox|vae_input|fetch_image|pixel_values|image_grid_thw)\.(\d+)")


def judge(case: Case, judge: Judge) -> None:
    """Judge every table beside the tensors, and every tensor made from an input `image.<i>`."""
    for path in sorted(case.path.glob("*.json")):
        if path.name not in CASE_FILES:
            _table(judge, path, case.json(path.name))
    pictures: dict[str, dict[str, Tensor]] = {}
    for name in case.outputs:
        if (match := PICTURE.fullmatch(name)) and f"image.{match[2]}" in case.inputs:
            if match[2] not in pictures:
                pictures[match[2]] = _picture(case, case.inputs[f"image.{match[2]}"])
            judge.exact(name, pictures[match[2]][match[1]])


def _picture(case: Case, image: Tensor) -> dict[str, Tensor]:
    """A picture uint8 [H, W, 3] through the whole preparation, by golden names."""
    said = str(case.meta.get("config", ""))
    area, unit, shortest = (
        _number(said, "max_area", AREA),
        _number(said, "unit", UNIT),
        _number(said, "shortest_edge", 0),
    )
    rule = ProcessorConfig.from_dir(case.qwen()).image
    if shortest:
        rule = dataclasses.replace(rule, min_pixels=shortest)
    box = prepare.letterbox_grid(image.shape[1], image.shape[0], area, unit)
    boxed = prepare.letterbox(image.numpy(), box)
    rows, grid = prepare.vlm_image(boxed, rule)
    return {
        "letterbox": torch.from_numpy(boxed),
        "vae_input": prepare.vae_pixels(boxed[None]),
        "fetch_image": torch.from_numpy(prepare.fetch_image(boxed, rule)),
        "pixel_values": rows,
        "image_grid_thw": torch.tensor([grid]),
    }


def _number(text: str, name: str, default: int) -> int:
    """`max_area 48*64, unit 16` -> the number behind a name."""
    match = re.search(rf"{name}\D*?(\d+)(?:\s*\*\s*(\d+))?", text)
    return int(match[1]) * int(match[2] or 1) if match else default


def _table(judge: Judge, path: Path, data: Any) -> None:
    """Judge one table file, in one of the three layouts: a list, an object with `rows`, an object of lists."""
    if path.stem not in TABLES:
        return judge.fail(path.name, f"no table of this name is known; known are {sorted(TABLES)}")
    given, compute = TABLES[path.stem]
    groups: Mapping[str, Any] = {"": data} if isinstance(data, list) else data
    lists = {name: rows for name, rows in groups.items() if isinstance(rows, list)}
    if not lists:
        raise BrokenCase(f"{path} holds no rows")
    for name, rows in lists.items():
        suffix = "" if name in ("", "rows") else f"[{name}]"
        run = _chain(name) if path.stem == "vlm_resize_chain" else compute
        judge_rows(judge, path.name + suffix, rows, frozenset(given), run)


def _letterbox(row: Row) -> dict[str, Any]:
    box = prepare.letterbox_grid(row["w"], row["h"], row.get("max_area", AREA), row.get("unit", UNIT))
    return {
        "h_box": box.height,
        "w_box": box.width,
        "h_rsz": box.inner_height,
        "w_rsz": box.inner_width,
        "paste_xy": [box.left, box.top],
    }


def _video_size(row: Row) -> dict[str, Any]:
    height, width = prepare.video_size(row["w"], row["h"], row.get("max_area", AREA))
    return {"h_new": height, "w_new": width, "cropped_hw": list(prepare.crop_size(height, width, UNIT))}


def _video_frames(row: Row) -> dict[str, Any]:
    sample = None if row.get("sample_fps", -1) == -1 else row["sample_fps"]
    indices = readers.frame_indices(row["num_frames"], row["video_len"], row.get("fps", 24.0), sample)
    # A single frame has no stride.
    stride = None if row.get("stride", 1) is None and len(indices) == 1 else indices.step
    return {"n_out": len(indices), "first": indices[0], "last": indices[-1], "stride": stride}


def _nframes(row: Row) -> dict[str, Any]:
    asked = row.get("ele", {})
    count = readers.smart_nframes(row["total_frames"], row["video_fps"], asked.get("fps", 2.0), asked.get("nframes"))
    return {"nframes": count}


def _smart_resize(row: Row) -> dict[str, Any]:
    height, width = prepare.smart_resize(row["h"], row["w"], row["factor"], row["min_pixels"], row["max_pixels"])
    return {"h_bar": height, "w_bar": width}


def _check_frames(row: Row) -> dict[str, Any]:
    Request(prompt="", frames=row["num_frames"])
    return {}


def _chain(kind: str) -> Callable[[Row], dict[str, Any]]:
    """Sizes of a picture or of a clip of 8 frames on its way to the VLM and to the autoencoder."""

    def image(row: Row) -> dict[str, Any]:
        width, height = row["src_wh"]
        box = prepare.letterbox_grid(width, height, AREA, UNIT)
        latent = [box.height // 8, box.width // 8]
        found = seen((box.height, box.width), 1, IMAGE, "fetch_image_wh")
        tokens = latent[0] // 2 * (latent[1] // 2)
        return {**found, "letterbox_wh": [box.width, box.height], "vae_latent_hw": latent, "mmdit_tokens": tokens}

    def video(row: Row) -> dict[str, Any]:
        width, height = row["src_wh"]
        cropped = prepare.crop_size(*prepare.video_size(width, height, AREA), UNIT)
        return {**seen((height, width), 8, VIDEO, "fetch_video_wh"), "vae_input_hw": list(cropped)}

    def seen(size: tuple[int, int], frames: int, rule: PixelRule, name: str) -> dict[str, Any]:
        first = prepare.fetch_size(*size, rule)
        second = prepare.processor_size(frames, *first, rule)
        grid = [(frames + 1) // 2, second[0] // rule.patch_size, second[1] // rule.patch_size]
        tokens = grid[0] * grid[1] * grid[2] // rule.merge_size**2
        return {name: first[::-1], "processor_wh": second[::-1], "grid_thw": grid, "vlm_tokens": tokens}

    def listed(row: Row) -> dict[str, Any]:
        found = (video if kind == "video" else image)(row)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    return listed


TABLES: Mapping[str, tuple[tuple[str, ...], Callable[[Row], dict[str, Any]]]] = {
    "letterbox_grid": (("w", "h", "max_area", "unit"), _letterbox),
    "calc_target_resolution": (("w", "h", "max_area"), _video_size),
    "video_frames": (("num_frames", "video_len", "fps", "sample_fps"), _video_frames),
    "decord_indices": (
        ("total_frames",),
        lambda row: {"idx": list(prepare.vlm_frame_indices(row["total_frames"]))},
    ),
    "smart_nframes": (("total_frames", "video_fps", "ele"), _nframes),
    "smart_resize": (("kind", "w", "h", "factor", "min_pixels", "max_pixels"), _smart_resize),
    "errors": (("num_frames",), _check_frames),
    "vlm_resize_chain": (("src_wh",), _chain("image")),
}
"""Table name -> its input columns, and how the others follow from them."""
