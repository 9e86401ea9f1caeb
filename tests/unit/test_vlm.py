"""Our layers of the vision-language model against stock transformers, packed prompts, engines in modules' places."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.unit.models import Built
from vino_rt.backends.base import Backend, Engine
from vino_rt.backends.eager import EagerBackend
from vino_rt.backends.onnxruntime import OnnxRuntimeBackend
from vino_rt.backends.triton import TritonBackend
from vino_rt.cache import ContentCache
from vino_rt.engines import engine_key, kinds_of, layer_weights
from vino_rt.errors import ModelError
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.conditioner import Conditioner
from vino_rt.models.vino.prefill import decoder_layers, segments
from vino_rt.models.vino.prompt import ProcessedInput, VlmInput
from vino_rt.models.vino.tables import EMBEDDING, LM_HEAD
from vino_rt.models.vino.vlm import Vlm
from vino_rt.models.vino.vlm_config import VlmConfig
from vino_rt.models.vino.vlm_kinds import BLOCK, LAYER
from vino_rt.models.vino.vlm_ops import causal_attention

GOLDEN = Path(__file__).parents[1] / "golden" / "vino"
QWEN = GOLDEN / "e2e_ckpt" / "Qwen3-VL-tiny"
QUERIES = load_file(GOLDEN / "e2e_ckpt" / "vino.safetensors")["mm_encoder.metaquery"]
ROUNDING = 16 * 2.0**-23
"""Largest difference of values of size one, from matmuls that add up in another order."""


def noise(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def stock() -> nn.Module:
    """transformers' own model on the same weights."""
    from transformers import AutoConfig, Qwen3VLForConditionalGeneration

    config = AutoConfig.from_pretrained(QWEN)
    config._attn_implementation = "sdpa"
    model: nn.Module = Qwen3VLForConditionalGeneration(config).eval()
    weights = {name: tensor.float() for name, tensor in load_file(QWEN / "model.safetensors").items()}
    model.load_state_dict({LM_HEAD: weights[EMBEDDING], **weights})
    return model


@pytest.fixture(scope="module")
def ours(stock: nn.Module, tiny_model: ModelDir) -> Vlm:
    vlm = Vlm(tiny_model.vlm_config, tie=True)
    vlm.load_state_dict(stock.state_dict())
    return vlm.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def inputs(vlm: Conditioner) -> list[ProcessedInput]:
    """The branches of a request with two pictures and a clip: both prompts, and one of them without the pictures."""
    pictures, clip = (noise(48, 64, 3), noise(96, 32, 3)), noise(8, 45, 83, 3)
    shown = [VlmInput("Put the hat on.", pictures, clip), VlmInput("no hat", pictures, clip), VlmInput("", (), clip)]
    return [vlm.process(each) for each in shown]


def close(given: Tensor, expected: Tensor) -> bool:
    return bool((given - expected).abs().max() <= ROUNDING * expected.abs().max())


@torch.inference_mode()
def test_a_decoder_layer_is_the_librarys_bit_for_bit(stock: Any, ours: Vlm) -> None:
    rows, positions = torch.randn(1, 23, 32), torch.randint(0, 40, (3, 1, 23))
    cos, sin = stock.model.language_model.rotary_emb(rows, positions)
    half = cos.shape[-1] // 2
    for theirs, own in zip(stock.model.language_model.layers, ours.model.language_model.layers, strict=True):
        (expected,) = theirs(rows, position_embeddings=(cos, sin))
        assert torch.equal(own(rows[0], cos[0, :, :half], sin[0, :, :half], segments([23])), expected)


@torch.inference_mode()
def test_the_vision_tower_is_the_librarys_within_rounding(stock: Any, ours: Vlm) -> None:
    grids = ((1, 4, 6), (3, 4, 2), (1, 2, 2))
    rows = torch.randn(sum(t * h * w for t, h, w in grids), 3 * 2 * 16 * 16)
    theirs = stock.model.visual(rows, grid_thw=torch.tensor(grids))
    out, deepstack = ours.model.visual(rows, grids)
    assert close(out, theirs.pooler_output)
    assert len(deepstack) == len(theirs.deepstack_features) == 3
    assert all(map(close, deepstack, theirs.deepstack_features))


def test_names_and_their_order_are_the_librarys(stock: nn.Module, ours: Vlm) -> None:
    assert list(ours.state_dict()) == list(stock.state_dict())
    assert ours.lm_head.weight is ours.model.language_model.embed_tokens.weight


@torch.inference_mode()
def test_packed_prompts_have_the_states_they_have_alone(vlm: Conditioner, inputs: list[ProcessedInput]) -> None:
    for given, found in zip(inputs, vlm.prefill(inputs), strict=True):
        alone = vlm(given)
        assert close(found.states, alone.states)
        assert (found.vision_start, found.vision_end) == (alone.vision_start, alone.vision_end)
    again = vlm.prefill(inputs[::-1])[::-1]
    assert all(close(a.states, b.states) for a, b in zip(again, vlm.prefill(inputs), strict=True))


class Stop(Exception):
    """What a caller's checkpoint raises."""


@torch.inference_mode()
def test_attention_reads_its_bounds_once_for_all_layers(vlm: Conditioner) -> None:
    """Offsets without values stand for offsets on a GPU, which the host would have to wait for."""
    lengths, width = [3, 2], vlm.config.text.hidden_size
    q = torch.randn(sum(lengths), 2, width // 2)
    expected, calls = causal_attention(q, q, q, segments(lengths)), list[Tensor]()

    def layer(rows: Tensor, cos: Tensor, sin: Tensor, offsets: Tensor) -> Tensor:
        calls.append(causal_attention(q, q, q, offsets.to("meta")))
        return rows

    parts = replace(vlm.parts, layers=(layer, layer))
    positions = torch.arange(sum(lengths)).expand(3, -1)
    for _ in decoder_layers(parts, torch.randn(sum(lengths), width), positions, segments(lengths), []):
        # Between layers, a caller's own attention has bounds of its own.
        assert causal_attention(q[:1], q[:1], q[:1], segments([1])).shape == (1, 2, width // 2)
    assert len(calls) == 2
    assert all(torch.equal(call, expected) for call in calls)


def test_a_call_can_be_stopped_before_any_layer(vlm: Conditioner, inputs: list[ProcessedInput]) -> None:
    expected = vlm.prefill(inputs)
    for last in range(len(vlm.layers)):
        left = iter(range(last))

        def stop(_: int, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise Stop

        with pytest.raises(Stop):
            vlm.prefill(inputs, on_part=stop)
    for one, two in zip(vlm.prefill(inputs), expected, strict=True):
        assert torch.equal(one.states, two.states)


@torch.inference_mode()
def test_the_vision_tower_looks_once_at_the_same_pixels(
    vlm: Conditioner, inputs: list[ProcessedInput], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    forward = type(vlm.visual).forward

    def count(tower: Any, rows: Tensor, grids: Any) -> Any:
        looks.append(len(rows))
        return forward(tower, rows, grids)

    monkeypatch.setattr(type(vlm.visual), "forward", count)
    expected, cache = vlm.prefill(inputs), ContentCache(1 << 20)
    assert len(looks) == 2, "the pictures once, the clip once"
    for _ in range(2):
        for one, two in zip(vlm.prefill(inputs, cache), expected, strict=True):
            assert torch.equal(one.states, two.states)
    assert len(looks) == 4


@pytest.fixture(scope="module")
def engines(tiny_model: ModelDir, built: Built) -> dict[str, dict[str, list[Engine]]]:
    """Engines of both kinds, one a layer, by backend."""
    kinds = {name: kinds_of(tiny_model)[name] for name in (LAYER, BLOCK)}
    backends: list[Backend] = [EagerBackend(), TritonBackend(), OnnxRuntimeBackend(1)]
    weights = {name: [layer_weights(tiny_model, kind, i) for i in range(kind.layers)] for name, kind in kinds.items()}
    keys = {name: engine_key(tiny_model, built.recipe, kind, backends[-1]) for name, kind in kinds.items()}
    return {
        each.name: {n: each.open(kind, built.store.find(keys[n])[1], weights[n]) for n, kind in kinds.items()}
        for each in backends
    }


@torch.inference_mode()
def test_engines_in_the_place_of_our_modules(
    vlm: Conditioner, inputs: list[ProcessedInput], engines: dict[str, dict[str, list[Engine]]]
) -> None:
    expected = vlm.prefill(inputs)
    for name, opened in engines.items():
        module = Conditioner.from_dir(QWEN, QUERIES, engines=opened)
        assert not [key for key in module.state_dict() if key.startswith(("layers.", "visual.blocks."))]
        found = module.prefill(inputs)
        assert [each.states.shape for each in found] == [each.states.shape for each in expected]
        for one, two, again in zip(found, expected, module.prefill(inputs), strict=True):
            assert close(one.states, two.states) if name == "onnxruntime" else torch.equal(one.states, two.states)
            assert torch.equal(one.states, again.states)


@pytest.mark.parametrize("backend", ["eager", "triton", "onnxruntime"])
def test_rows_of_a_prompt_see_those_before_them_and_no_others(
    tiny_model: ModelDir, engines: dict[str, dict[str, list[Engine]]], backend: str
) -> None:
    engine, example = engines[backend][LAYER][0], kinds_of(tiny_model)[LAYER].examples()[0]
    (before,) = engine.run(**example)
    start, end = example["offsets"][1:3].tolist()
    for row in (start, start + 5, end - 1):
        changed = {**example, "rows": example["rows"].clone()}
        changed["rows"][row] = torch.randn(changed["rows"].shape[1])
        moved = (before != engine.run(**changed)[0]).any(-1)
        assert moved.nonzero().flatten().tolist() == list(range(row, end))
    alone = {name: example[name][start:end] for name in ("rows", "cos", "sin")}
    (apart,) = engine.run(**alone, offsets=segments([end - start]))
    assert close(apart, before[start:end])


@pytest.mark.parametrize("backend", ["eager", "triton", "onnxruntime"])
def test_frames_see_nothing_of_each_other(
    tiny_model: ModelDir, engines: dict[str, dict[str, list[Engine]]], backend: str
) -> None:
    engine, example = engines[backend][BLOCK][0], kinds_of(tiny_model)[BLOCK].examples()[0]
    changed = {**example, "frames": example["frames"].clone()}
    changed["frames"][1, 2] = torch.randn(changed["frames"].shape[2])
    moved = (engine.run(**example)[0] != engine.run(**changed)[0]).any(-1)
    assert moved.all(1).tolist() == moved.any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("lengths", [(3, 3, 3), (5, 2, 2, 7, 1), (4,), (2, 0, 3)])
@pytest.mark.parametrize("keys", [4, 2])
def test_causal_attention_is_a_mask_written_out(lengths: tuple[int, ...], keys: int) -> None:
    total = sum(lengths) + 2
    q, k, v = (torch.randn(total, heads, 8) for heads in (4, keys, keys))
    offsets = torch.cat((segments(lengths)[:-1], torch.tensor([total], dtype=torch.int32)))
    found = causal_attention(q, k, v, offsets)
    prompt = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    row = torch.arange(total - 2)
    seen = (prompt[:, None] == prompt) & (row[:, None] >= row)
    own_k, own_v = (x[:-2].repeat_interleave(4 // keys, dim=1) for x in (k, v))
    scores = torch.einsum("ihc,jhc->hij", q[:-2], own_k) * 8**-0.5
    expected = torch.einsum("hij,jhc->ihc", scores.masked_fill(~seen, float("-inf")).softmax(-1), own_v)
    assert close(found[:-2], expected)
    assert not found[-2:].any()


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("text_config", {"hidden_act": "gelu"}, r"text_config has \{'hidden_act': 'gelu'\}"),
        ("text_config", {"rms_norm_eps": 1e-5}, "rms_norm_eps"),
        ("text_config", {"head_dim": 18}, "mrope_section"),
        ("text_config", {"num_key_value_heads": 3}, "num_key_value_heads"),
        ("text_config", {"hidden_size": "32"}, "hidden_size is '32'"),
        ("text_config", {"rope_theta": None}, "rope_theta is None"),
        ("vision_config", {"deepstack_visual_indexes": [4]}, "deepstack_visual_indexes"),
        ("vision_config", {"num_position_embeddings": 35}, "a square"),
        ("vision_config", {"out_hidden_size": 16}, r"\(16, 32\); they must be equal"),
        ("vision_config", {"hidden_act": "gelu"}, "vision_config has"),
    ],
)
def test_configs_that_are_not_ours_to_run(
    tiny_model: ModelDir, part: str, change: dict[str, Any], message: str
) -> None:
    config = {**tiny_model.vlm, part: {**tiny_model.vlm[part], **change}}
    with pytest.raises(ModelError, match=message):
        VlmConfig.from_json(config)
