"""Cases of kind vlm: every state of the VLM and both connectors behind it, and tables of prompts and tokens."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.parity.case import BrokenCase, Case, all_ones, find_key, flat
from tests.parity.measure import BF16, VLM, Judge
from tests.parity.tables import Row, judge_rows
from vino_rt import media, media_video
from vino_rt.models.vino.conditioner import Conditioner
from vino_rt.models.vino.connector import Connector
from vino_rt.models.vino.prefill import run_layers
from vino_rt.models.vino.prepare import PixelRule, fetch_size, processor_size, vlm_frame_indices
from vino_rt.models.vino.prompt import (
    ProcessedInput,
    ProcessorConfig,
    PromptTokenizer,
    VlmInput,
    boundaries,
    position_ids,
    render,
)

QUIRK = "_invfreq_bf16"
CONNECTORS = {"prompt_embeds_vlm": "connector", "prompt_embeds_vae": "connector_vae_branch"}
PATCHED = "video_min_pixels_patched_to"
Named = dict[str, Tensor]


def processed(tensors: Mapping[str, Tensor]) -> ProcessedInput:
    """A released processor's output (input_ids [1, L], image_grid_thw [N, 3], ...); other names are ignored."""
    images, videos = (
        tuple(tuple(row) for row in tensors[name].tolist()) if name in tensors else ()
        for name in ("image_grid_thw", "video_grid_thw")
    )
    pixels, clips = tensors.get("pixel_values"), tensors.get("pixel_values_videos")
    return ProcessedInput(tensors["input_ids"].flatten(), pixels, images, clips, videos)


def judge(case: Case, judge: Judge) -> None:
    """Judge tensors where the case holds some, tables where it holds some; a case with neither is broken."""
    tables = [path.name for path in sorted(case.path.glob("*.json")) if path.name not in ("meta.json", "config.json")]
    if not tables and not case.outputs:
        raise BrokenCase(f"{case.path} holds neither outputs.safetensors nor a table")
    for name in tables:
        _table(case, judge, name)
    if case.outputs:
        _states(case, judge)


def _states(case: Case, judge: Judge) -> None:
    """All three runs the outputs name: float32, float32 with rounded rotary frequencies, bfloat16."""
    given = processed({name: case.inputs[name] for name in case.inputs})
    all_ones(case.inputs.get("attention_mask"), "attention_mask")
    suffixes = {name: QUIRK if name.endswith(QUIRK) else BF16 if name.endswith(BF16) else "" for name in case.outputs}
    runs = {suffix: run(case, given, suffix) for suffix in sorted(set(suffixes.values()) | {""})}
    for name, suffix in suffixes.items():
        ours = runs[suffix].get(name.removesuffix(suffix))
        if ours is None:
            continue
        if not case.outputs[name].is_floating_point():
            judge.exact(name, ours)
        elif suffix == BF16:
            judge.low_precision(name, ours)
        else:
            judge.close(name, ours, VLM)
    _positions(case, judge, given)
    _files(case, judge)


def run(case: Case, given: ProcessedInput, suffix: str) -> Named:
    """Every state by its golden name, in the precision that a suffix stands for."""
    queries = case.release_weights("mm_encoder.")["metaquery"]
    dtype = torch.bfloat16 if suffix == BF16 else torch.float32
    module = Conditioner.from_dir(case.qwen(), queries, dtype, rotary_bf16=bool(suffix), last_layer=True)
    with torch.inference_mode():
        found = trace(module, given)
        states = found["hidden_states_m2"]
        for name, branch in CONNECTORS.items():
            found[name] = connector(case, branch).to(dtype)(states)
    # Ours has no mask; the released one lets every token be seen.
    ones = torch.ones(len(states), dtype=torch.int64)
    return {**found, "prompt_attention_mask": ones, "full_attention_mask": ones}


def trace(module: Conditioner, given: VlmInput | ProcessedInput) -> Named:
    """Every intermediate of a call by its golden name, without a batch dimension.

    `hidden_states.<i>` includes what deepstack adds; `visual_out.<i>` is one run of the vision tower, images first.
    """
    embedded = module.embed(given)
    states = list(run_layers(module.parts, [embedded]))
    mask = torch.zeros(len(states[0]), dtype=torch.uint8).index_fill(0, embedded.visual_index.cpu(), 1)
    return {
        "inputs_embeds": embedded.rows,
        "position_ids": embedded.positions,
        "visual_pos_masks": mask,
        "hidden_states_m2": states[module.depth],
        **{f"hidden_states.{i}": state for i, state in enumerate(states)},
        **{f"visual_out.{i}": rows for i, rows in enumerate(embedded.visual_out)},
        **{f"deepstack.{i}": rows for i, rows in enumerate(embedded.deepstack)},
    }


def connector(case: Case, branch: str) -> Connector:
    """One of the release's connectors in float32."""
    weights = case.release_weights(f"mm_encoder.{branch}.")
    module = Connector(weights["mlp.0.weight"].shape[1], weights["mlp.2.weight"].shape[0])
    module.load_state_dict(weights)
    return module.eval().requires_grad_(False)


def _positions(case: Case, judge: Judge, given: ProcessedInput) -> None:
    """Rows of the boundary tokens, which only `meta.json` records."""
    if "pos_vs" in case.meta:
        ids = PromptTokenizer.from_file(case.qwen() / "tokenizer.json").vision
        found = boundaries(given.input_ids, ids, len(given.image_grids))
        for name, ours in zip(("pos_vs", "pos_ve"), found, strict=True):
            judge.exact(f"meta.{name}", torch.tensor(ours), torch.tensor(flat(case.meta[name])))


def _files(case: Case, judge: Judge) -> None:
    """Tokens and rows made from the files beside the case, where they lie there; a clip's pixels are the decoder's."""
    names, video = case.meta.get("images") or [], case.meta.get("video")
    paths = [case.path / str(name) for name in [*names, *([video] if video else [])]]
    if "prompt" not in case.meta or not all(path.is_file() for path in paths):
        return
    queries = case.release_weights("mm_encoder.")["metaquery"]
    processor = Conditioner.from_dir(case.qwen(), queries).processor
    assert processor is not None, "from_dir reads the processor"
    processor.config = video_limits(processor.config, find_key(case.meta, PATCHED))
    images = tuple(media.read_image(path) for path in paths[: len(names)])
    frames = None
    if video:
        clips = media_video.read_video(paths[-1], first=1, size=lambda w, h: (w, h), picks=vlm_frame_indices)
        frames = clips.picked
    made = processor(VlmInput(case.meta["prompt"] or "", images, frames))
    judge.exact("files.input_ids", made.input_ids, case.input("input_ids"))
    if images:
        judge.exact("files.image_grid_thw", torch.tensor(made.image_grids), case.input("image_grid_thw"))
        judge.exact("files.pixel_values", made.pixel_values, case.input("pixel_values"))
    if video:
        judge.exact("files.video_grid_thw", torch.tensor(made.video_grids), case.input("video_grid_thw"))


def video_limits(config: ProcessorConfig, fetch_min_pixels: int | None) -> ProcessorConfig:
    """The processor with another least size of a clip's frames, as some cases were made to stay small."""
    if fetch_min_pixels is None:
        return config
    return dataclasses.replace(config, video=dataclasses.replace(config.video, fetch_min_pixels=fetch_min_pixels))


def _table(case: Case, judge: Judge, name: str) -> None:
    if name == "tokenizer_cases.json":
        tokenizer = PromptTokenizer.from_file(case.qwen() / "tokenizer.json")
        judge_rows(
            judge,
            name,
            case.json(name),
            frozenset({"text"}),
            lambda row: {"ids": tokenizer.tokenize(row["text"]).tolist()},
        )
    elif name == "prompts.json":
        prompts = Prompts(case)
        judge_rows(judge, name, case.json(name), Prompts.GIVEN, prompts)
    else:
        judge.fail(name, "no table of this name is known; known are prompts.json and tokenizer_cases.json")


class Prompts:
    """Rows of `prompts.json`: from prompt, number of images and a clip to text, tokens and positions."""

    GIVEN = frozenset({"prompt", "num_images", "video", "image_wh", "video_grid_thw", "videos_kwargs"})

    def __init__(self, case: Case) -> None:
        directory = case.qwen()
        self._tokenizer = PromptTokenizer.from_file(directory / "tokenizer.json")
        self._config = ProcessorConfig.from_dir(directory)
        self._queries = len(case.release_weights("mm_encoder.")["metaquery"])

    def __call__(self, row: Row) -> Mapping[str, Any]:
        """Every column but the given ones; the size of a clip is taken from the row, it was made smaller than real."""
        prompt, count, clips = row["prompt"] or "", row["num_images"], row.get("video_grid_thw") or []
        merged = self._config.image.merge_size**2
        grids = [_image_grid(row["image_wh"], self._config.image)] * count
        groups = [h * w // merged for t, h, w in clips for _ in range(t)]
        ids = self._tokenizer.encode(prompt, [t * h * w // merged for t, h, w in grids], groups)
        vision = self._tokenizer.vision
        videos = [(t, h, w) for t, h, w in clips]
        start, end = boundaries(ids, vision, count)
        # Before the processor a clip is one pad without a label of time.
        text = render(prompt, [1] * count, [1] if clips else []).replace("Video 1: <0.0 seconds>", "Video 1: ")
        return {
            "rendered_text": text,
            "input_ids": ids.tolist(),
            "image_grid_thw": [list(grid) for grid in grids] or None,
            "pos_vs": [list(start)],
            "pos_ve": [list(end)],
            "position_ids": position_ids(ids, vision, grids, videos, self._queries).tolist(),
        }


def _image_grid(size: tuple[int, int], rule: PixelRule) -> tuple[int, int, int]:
    width, height = size
    second = processor_size(1, *fetch_size(height, width, rule), rule)
    return 1, second[0] // rule.patch_size, second[1] // rule.patch_size
