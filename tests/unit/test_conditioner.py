"""States of the VLM against the released ones, against stock transformers for clips, and the loading of its weights."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.parity.vlm import processed, trace
from vino_rt.errors import InputError, ModelError
from vino_rt.models.vino.conditioner import Conditioner
from vino_rt.models.vino.connector import Connector
from vino_rt.models.vino.prefill import run_layers
from vino_rt.models.vino.prompt import ProcessedInput, VlmInput

GOLDEN = Path(__file__).parents[1] / "golden" / "vino"
QWEN = GOLDEN / "e2e_ckpt" / "Qwen3-VL-tiny"
LIMIT = 3e-5


def metaquery() -> Tensor:
    return load_file(GOLDEN / "e2e_ckpt" / "vino.safetensors")["mm_encoder.metaquery"]


def case(name: str) -> tuple[ProcessedInput, dict[str, Tensor]]:
    inputs = load_file(GOLDEN / name / "inputs.safetensors")
    return processed(inputs), load_file(GOLDEN / name / "outputs.safetensors")


def error(given: Tensor, expected: Tensor) -> float:
    return (given.float() - expected.float().reshape(given.shape)).abs().max().item()


def noise(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def vlm() -> Iterator[Conditioner]:
    """A conditioner with the last layer kept, so that every recorded state can be compared."""
    with torch.inference_mode():
        yield Conditioner.from_dir(QWEN, metaquery(), last_layer=True)


@pytest.fixture(scope="module")
def mixed(vlm: Conditioner) -> ProcessedInput:
    """Two images of different shapes and a clip."""
    assert vlm.processor is not None
    config = vlm.processor.config
    small = dataclasses.replace(config.video, fetch_min_pixels=3136, fetch_max_pixels=9408)
    vlm.processor.config = dataclasses.replace(config, video=small)
    return vlm.process(VlmInput("Put the hat on.", (noise(48, 64, 3), noise(96, 32, 3)), noise(8, 45, 83, 3)))


@pytest.mark.parametrize("name", ["vlm_text", "vlm_image1"])
def test_every_intermediate_equals_the_release(vlm: Conditioner, name: str) -> None:
    processed, expected = case(name)
    traced = trace(vlm, processed)
    compared = {key for key in expected if key in traced}
    assert {"position_ids", "hidden_states_m2", "inputs_embeds", "hidden_states.5"} <= compared
    assert ("deepstack.2" in compared) == ("visual_out.0" in compared) == (name == "vlm_image1")
    for key in compared:
        assert error(traced[key], expected[key]) <= LIMIT, key
    assert torch.equal(traced["position_ids"], expected["position_ids"].reshape(3, -1))


@pytest.mark.parametrize("name", ["vlm_text", "vlm_image1"])
@pytest.mark.parametrize(("bf16", "suffix"), [(True, "_invfreq_bf16"), (False, "")])
def test_states_and_connectors(name: str, bf16: bool, suffix: str) -> None:
    module = Conditioner.from_dir(QWEN, metaquery(), rotary_bf16=bf16)
    processed, expected = case(name)
    with torch.inference_mode():
        states = module(processed).states
        text, boundary = (connector(n, w)(states) for n, w in (("connector", 40), ("connector_vae_branch", 48)))
    assert len(module.layers) == 4
    assert error(states, expected[f"hidden_states_m2{suffix}"]) <= LIMIT
    assert error(text, expected[f"prompt_embeds_vlm{suffix}"]) <= LIMIT
    if not bf16:
        assert error(boundary, expected["prompt_embeds_vae"]) <= LIMIT
    other = "" if suffix else "_invfreq_bf16"
    assert error(states, expected[f"hidden_states_m2{other}"]) > 100 * LIMIT


def test_bfloat16_is_as_near_as_the_release() -> None:
    processed, expected = case("vlm_image1")
    module = Conditioner.from_dir(QWEN, metaquery(), torch.bfloat16, rotary_bf16=True)
    with torch.inference_mode():
        text = connector("connector", 40).bfloat16()(module(processed).states).float()
    exact, release = (expected[f"prompt_embeds_vlm{suffix}"][0] for suffix in ("", "_bf16"))
    assert (text - exact).norm() <= 2 * (release - exact).norm()


def connector(branch: str, width: int) -> Connector:
    prefix = f"mm_encoder.{branch}."
    weights = load_file(GOLDEN / "e2e_ckpt" / "vino.safetensors")
    module = Connector(32, width)
    module.load_state_dict({k.removeprefix(prefix): v.float() for k, v in weights.items() if k.startswith(prefix)})
    return module


def test_from_a_file_to_states(vlm: Conditioner) -> None:
    meta = json.loads((GOLDEN / "vlm_image1" / "meta.json").read_text())
    with Image.open(GOLDEN / "vlm_image1" / "img0.png") as file:
        image = np.array(file.convert("RGB"))
    processed, expected = case("vlm_image1")
    ours = vlm.process(VlmInput(meta["prompt"], (image,)))
    assert torch.equal(ours.input_ids, processed.input_ids)
    assert ours.image_grids == processed.image_grids
    assert ours.pixel_values is not None
    assert processed.pixel_values is not None
    assert torch.equal(ours.pixel_values, processed.pixel_values)
    found = vlm(VlmInput(meta["prompt"], (image,)))
    assert (found.vision_start, found.vision_end) == ((50,), (63,))
    assert error(found.states, expected["hidden_states_m2"]) <= LIMIT


def test_images_and_clip_equal_stock_transformers(vlm: Conditioner, mixed: ProcessedInput) -> None:
    from transformers import AutoConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

    config = AutoConfig.from_pretrained(QWEN)
    config._attn_implementation = "eager"
    stock = Qwen3VLModel(config).eval()
    weights = load_file(QWEN / "model.safetensors")
    stock.load_state_dict({k.removeprefix("model."): v.float() for k, v in weights.items()})
    caught: list[Tensor] = []
    stock.language_model.layers[-2].register_forward_hook(lambda module, given, out: caught.append(out))
    ids = mixed.input_ids[None]
    kinds = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
    stock(
        input_ids=ids,
        pixel_values=mixed.pixel_values,
        pixel_values_videos=mixed.pixel_values_videos,
        image_grid_thw=torch.tensor(mixed.image_grids),
        video_grid_thw=torch.tensor(mixed.video_grids),
        mm_token_type_ids=kinds,
    )
    positions, _ = stock.get_rope_index(ids, kinds, torch.tensor(mixed.image_grids), torch.tensor(mixed.video_grids))
    traced = trace(vlm, mixed)
    rows = ids.shape[1]
    assert torch.equal(traced["position_ids"][:, :rows], positions[:, 0])
    assert error(traced["hidden_states_m2"][:rows], caught[0]) <= LIMIT
    assert traced["hidden_states_m2"].shape[0] == rows + 6


def test_boundaries_of_images_and_clip(vlm: Conditioner, mixed: ProcessedInput) -> None:
    found = vlm(mixed)
    ids = mixed.input_ids
    assert len(found.vision_start) == len(found.vision_end) == 3
    assert [ids[i].item() for i in found.vision_start] == [489] * 3
    assert [ids[i].item() for i in found.vision_end] == [490] * 3
    assert (ids[found.vision_start[2] : found.vision_end[2]] == 493).sum() == 4 * 2 * 3
    assert found.vision_end[2] == (ids == 490).nonzero().max()


def test_a_wrong_position_or_missing_deepstack_shows(vlm: Conditioner, mixed: ProcessedInput) -> None:
    right = vlm(mixed).states
    embedded = vlm.embed(mixed)
    for wrong in (
        dataclasses.replace(embedded, deepstack=()),
        dataclasses.replace(embedded, positions=embedded.positions[[0, 2, 1]]),
        dataclasses.replace(embedded, deepstack=embedded.deepstack[::-1]),
    ):
        assert error(list(run_layers(vlm.parts, [wrong]))[vlm.depth], right) > 100 * LIMIT


def test_a_cast_does_not_round_the_frequencies() -> None:
    processed, _ = case("vlm_image1")
    loaded = Conditioner.from_dir(QWEN, metaquery(), torch.bfloat16)
    cast = Conditioner.from_dir(QWEN, metaquery()).to(torch.bfloat16)
    assert torch.equal(loaded(processed).states, cast(processed).states)


def test_the_full_size_mapping_is_complete() -> None:
    config = json.loads((GOLDEN / "keymap" / "configs.json").read_text())["qwen3_vl_4b"]
    shapes = json.loads((GOLDEN / "keymap" / "qwen3_vl_4b.json").read_text())
    module = Conditioner(config, 256)
    own = {k: list(v.shape) for k, v in module.state_dict().items()}
    assert own.pop("metaquery") == [256, 2560]
    named = {f"model.{k}" if k.startswith("visual.") else f"model.language_model.{k}": v for k, v in own.items()}
    unused = {k for k in shapes if k not in named}
    assert named == {k: v for k, v in shapes.items() if k in named}
    assert all(".layers.35." in k or k in ("lm_head.weight", "model.language_model.norm.weight") for k in unused)
    assert next(module.parameters()).device.type == "meta"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(QWEN, tmp_path / "vlm"))


def change(path: Path, **tensors: Tensor | None) -> None:
    """Replace, add or drop (None) tensors of a weights file."""
    weights = load_file(path) | {k.replace("__", "."): v for k, v in tensors.items()}
    path.chmod(0o644)
    save_file({k: v for k, v in weights.items() if v is not None}, path)


@pytest.mark.parametrize(
    ("tensor", "value", "message"),
    [
        ("model__visual__pos_embed__weight", None, r"missing model\.visual\.pos_embed\.weight"),
        ("model__visual__extra", torch.zeros(1), r"unknown model\.visual\.extra"),
        ("model__language_model__layers__0__extra", torch.zeros(1), r"unknown .*layers\.0\.extra"),
        ("model__visual__merger__norm__bias", torch.zeros(3), r"wrong shape .*norm\.bias \(3,\) instead of \(32,\)"),
        ("model__visual__merger__norm__bias", torch.full((32,), torch.nan), "holds NaN"),
    ],
)
def test_wrong_weights_name_themselves(copied: Path, tensor: str, value: Tensor | None, message: str) -> None:
    change(copied / "model.safetensors", **{tensor: value})
    with pytest.raises(ModelError, match=message):
        Conditioner.from_dir(copied, metaquery())


def test_parts_behind_the_states_may_be_there_or_not(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    gone = {k: None for k in weights if k.startswith(("model.language_model.layers.4.", "model.language_model.norm"))}
    change(copied / "model.safetensors", lm_head__weight=torch.zeros(496, 32), **gone)
    processed, expected = case("vlm_text")
    found = Conditioner.from_dir(copied, metaquery())(processed)
    assert error(found.states, expected["hidden_states_m2"]) <= LIMIT


def test_shards(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({k: weights[k] for k in keys}, copied / file)
    index = {"weight_map": {k: file for file, keys in parts.items() for k in keys}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    processed, expected = case("vlm_text")
    found = Conditioner.from_dir(copied, metaquery())(processed)
    assert error(found.states, expected["hidden_states_m2"]) <= LIMIT
    (copied / "b.safetensors").write_bytes((copied / "b.safetensors").read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"b\.safetensors"):
        Conditioner.from_dir(copied, metaquery())
    (copied / "b.safetensors").unlink()
    with pytest.raises(ModelError, match=r"b\.safetensors"):
        Conditioner.from_dir(copied, metaquery())


def test_wrong_configs_and_queries(copied: Path) -> None:
    with pytest.raises(ModelError, match=r"\(6, 31\).*\(6, 32\)"):
        Conditioner.from_dir(copied, metaquery()[:, :31])
    config = json.loads((copied / "config.json").read_text())
    for wrong, message in (
        (config | {"image_token_id": 491}, "vision tokens"),
        ({k: v for k, v in config.items() if k != "vision_config"}, "vision_config"),
        (config | {"text_config": config["text_config"] | {"num_hidden_layers": 1}}, "num_hidden_layers is 1"),
        (config | {"text_config": config["text_config"] | {"rope_scaling": {"rope_type": "yarn"}}}, "rotary"),
    ):
        (copied / "config.json").chmod(0o644)
        (copied / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(ModelError, match=message):
            Conditioner.from_dir(copied, metaquery())


def test_pixels_that_do_not_fit_their_grid() -> None:
    with pytest.raises(InputError, match="15 rows"):
        ProcessedInput(torch.zeros(3, dtype=torch.int64), torch.zeros(15, 1536), ((1, 4, 4),))
