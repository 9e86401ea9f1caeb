"""Chat text, token ids, positions and boundary tokens against the released ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vino_rt.errors import InputError, ModelError
from vino_rt.models.vino.prompt import PromptTokenizer, boundaries, check_prompt, position_ids, render
from vino_rt.request import MAX_PROMPT

GOLDEN = Path(__file__).parents[1] / "golden" / "vino"
TOKENIZER = PromptTokenizer.from_file(GOLDEN / "e2e_ckpt" / "Qwen3-VL-tiny" / "tokenizer.json")
CASES = json.loads((GOLDEN / "vlm_prompts" / "prompts.json").read_text())


def tokens(grids: list[list[int]] | None) -> list[int]:
    """Visual tokens of each image or frame pair."""
    return [h * w // 4 for t, h, w in grids or [] for _ in range(t)]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['num_images']}{'v' if c['video'] else ''}")
def test_equals_the_release(case: dict[str, Any]) -> None:
    prompt, images, videos = case["prompt"] or "", case["image_grid_thw"], case["video_grid_thw"]
    if not videos:
        assert render(prompt, [1] * case["num_images"]) == case["rendered_text"]
    ids = TOKENIZER.encode(prompt, tokens(images), tokens(videos))
    assert ids.tolist() == case["input_ids"]
    queries = len(case["position_ids"][0]) - len(ids)
    positions = position_ids(ids, TOKENIZER.vision, images or [], videos or [], queries)
    assert positions.tolist() == case["position_ids"]
    start, end = boundaries(ids, TOKENIZER.vision, case["num_images"])
    assert ([list(start)], [list(end)]) == (case["pos_vs"], case["pos_ve"])


def test_tokenizer_cases() -> None:
    for case in json.loads((GOLDEN / "vlm_prompts" / "tokenizer_cases.json").read_text()):
        assert TOKENIZER.tokenize(case["text"]).tolist() == case["ids"]


def test_rendered_image_case() -> None:
    meta = json.loads((GOLDEN / "vlm_image1" / "meta.json").read_text())
    assert render(meta["prompt"], [12]) == meta["expanded_text"]


def test_positions_of_a_wide_and_a_tall_picture() -> None:
    ids = TOKENIZER.encode("x", [2 * 5, 3 * 1])
    positions = position_ids(ids, TOKENIZER.vision, [(1, 4, 10), (1, 6, 2)], (), 3)
    starts = (ids == TOKENIZER.vision.start).nonzero().flatten().tolist()
    wide = positions[:, starts[0] + 1 : starts[0] + 11] - positions[:, starts[0] : starts[0] + 1] - 1
    assert wide.tolist() == [[0] * 10, [0] * 5 + [1] * 5, [0, 1, 2, 3, 4] * 2]
    assert positions[0, starts[0] + 11] == positions[0, starts[0]] + 1 + 5
    assert positions[0, starts[1] + 4] == positions[0, starts[1]] + 1 + 3
    assert torch.equal(positions[:, -3], positions[:, -4])


def test_grids_that_do_not_fit_are_refused() -> None:
    ids = TOKENIZER.encode("x", [4])
    with pytest.raises(InputError, match="grid of 2x3"):
        position_ids(ids, TOKENIZER.vision, [(1, 4, 6)])
    with pytest.raises(InputError, match="4 visual tokens"):
        position_ids(ids, TOKENIZER.vision)
    with pytest.raises(InputError, match="room for fewer"):
        position_ids(ids, TOKENIZER.vision, [(1, 4, 4), (1, 4, 4)])


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"])
def test_a_prompt_cannot_place_pictures(token: str) -> None:
    with pytest.raises(InputError, match="reserved"):
        TOKENIZER.encode(f"a cat {token} in a hat", [4])


def test_prompt_length_and_encoding() -> None:
    assert check_prompt("") == ""
    assert check_prompt("é" * MAX_PROMPT)
    with pytest.raises(InputError, match=f"100000 characters; at most {MAX_PROMPT}"):
        render("a" * 100_000)
    with pytest.raises(InputError, match="character 2"):
        render("ab\udcff")


def test_foreign_tokenizers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ModelError, match="cannot read"):
        PromptTokenizer.from_file(path)
    whole = (GOLDEN / "e2e_ckpt" / "Qwen3-VL-tiny" / "tokenizer.json").read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot read"):
        PromptTokenizer.from_file(path)
    data = json.loads(whole)
    data["added_tokens"] = []
    path.write_text(json.dumps(data))
    with pytest.raises(ModelError, match="lacks"):
        PromptTokenizer.from_file(path)
    path.write_text(json.dumps(json.loads(whole) | {"model": {"type": "none that exists"}}))
    with pytest.raises(ModelError, match=r"tokenizer\.json holds no tokenizer that can be read"):
        PromptTokenizer.from_file(path)
