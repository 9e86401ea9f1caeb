"""Presets: the same seed gives the same bytes, every part runs, and a random model is neither silent nor saturated."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from vino_rt.config import read_json
from vino_rt.errors import OutputError, UsageError
from vino_rt.model_dir import MANIFEST, PARTS, ModelDir, bundled_model
from vino_rt.models.vino.prepare import patch_rows, vlm_image, vlm_video
from vino_rt.models.vino.preset import init_preset, random_tensor
from vino_rt.models.vino.preset_tokenizer import SPECIAL_TOKENS, WORDS, corpus, template_tokens
from vino_rt.models.vino.prompt import ProcessorConfig, render
from vino_rt.models.vino.vae import VaeDecoder, VaeEncoder
from vino_rt.world.examples import KINDS, all_kinds, make


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> ModelDir:
    return init_preset("mini", tmp_path_factory.mktemp("preset") / "mini")


def hashes(model: ModelDir) -> dict[str, str]:
    return {name: record.sha256 for name, record in model.files.items()}


def test_same_seed_same_bytes(mini: ModelDir, tmp_path: Path) -> None:
    again = init_preset("mini", tmp_path / "again")
    assert (again.path / MANIFEST).read_bytes() == (mini.path / MANIFEST).read_bytes()
    again.verify()


def test_other_seed_other_weights_same_rest(mini: ModelDir, tmp_path: Path) -> None:
    other = hashes(init_preset("mini", tmp_path / "other", seed=7))
    changed = {name for name, digest in hashes(mini).items() if other[name] != digest}
    assert changed == {f"{part}/model.safetensors" for part in ("transformer", "connector", "vae", "vlm")}


def test_bundled_configs_are_the_preset(mini: ModelDir) -> None:
    """Weights and scale of latents of the bundled model come from training; its shape and its tokens may not differ."""
    bundled = ModelDir.open(bundled_model())
    assert bundled.settings.to_json() == mini.settings.to_json()
    for part in PARTS:
        configs = [read_json(model.path / part / "config.json") for model in (bundled, mini)]
        assert {**configs[0], "scaling_factor": 0} == {**configs[1], "scaling_factor": 0}, part
    vocabularies = [Tokenizer.from_file(str(m.path / "vlm" / "tokenizer.json")).get_vocab() for m in (bundled, mini)]
    assert vocabularies[0] == vocabularies[1]


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="preset is 'maxi'; choose one of mini"):
        init_preset("maxi", tmp_path / "x")
    with pytest.raises(UsageError, match="seed is -1"):
        init_preset("mini", tmp_path / "x", seed=-1)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="name another directory"):
            init_preset("mini", tmp_path / "x", overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def tokenizer_of(model: ModelDir) -> Tokenizer:
    return Tokenizer.from_file(str(model.path / "vlm" / "tokenizer.json"))


def test_tokenizer_covers_any_text_and_its_ids_are_the_config(mini: ModelDir) -> None:
    tokenizer, size = tokenizer_of(mini), mini.vlm["text_config"]["vocab_size"]
    assert tokenizer.get_vocab_size() == size == 768
    for text in ("A red circle moves left.", "zürich 東京 🙂", "  spaces\n\n", "Make it RED", ""):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text.lower()
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(size - 14, size))
    for field, token in (("image_token_id", "<|image_pad|>"), ("vision_end_token_id", "<|vision_end|>")):
        assert tokenizer.encode(token).ids == [mini.vlm[field]]
    assert mini.vlm["text_config"]["eos_token_id"] == tokenizer.token_to_id("<|im_end|>")


def test_what_every_prompt_repeats_is_one_token(mini: ModelDir) -> None:
    tokenizer = tokenizer_of(mini)
    for run in template_tokens():
        assert len(tokenizer.encode(run).ids) == 1, run
    text = render("A red circle moves to the left.", [4, 4], [4, 4, 4, 4])
    ids = tokenizer.encode(text).ids
    assert len(ids) == 1 + 2 * (1 + 6) + 4 * (1 + 6) + 8 + 1
    assert tokenizer.decode(ids, skip_special_tokens=False) == text.replace("A red", "a red")


def test_every_word_of_the_world_is_one_token(mini: ModelDir) -> None:
    tokenizer = tokenizer_of(mini)
    assert all(len(tokenizer.encode(form).ids) == 1 for form in corpus())
    assert len(set(WORDS.split())) == len(WORDS.split())
    for task in KINDS:
        for kind in all_kinds(task):
            for seed in range(15):
                prompt = make(task, seed, split="train", kind=kind).prompt
                pieces = re.findall(r"[a-z]+|[0-9]|[^a-z0-9 ]", prompt)
                # A number is split off its space, as Qwen's rule has it.
                digits = sum(piece.isdigit() for piece in pieces)
                assert len(tokenizer.encode(prompt).ids) == len(pieces) + digits, prompt


@pytest.mark.parametrize(
    ("height", "width", "grid"), [(64, 64, (1, 4, 4)), (48, 80, (1, 4, 4)), (80, 48, (1, 4, 4)), (48, 96, (1, 4, 6))]
)
def test_pictures_reach_the_vlm_as_few_tokens(
    mini: ModelDir, height: int, width: int, grid: tuple[int, int, int]
) -> None:
    config = ProcessorConfig.from_dir(mini.path / "vlm")
    frames = np.random.default_rng(0).integers(0, 256, (8, height, width, 3), dtype=np.uint8)
    rows, found = vlm_image(frames[0], config.image)
    clip_rows, clip_grid = vlm_video(frames, config.video)
    assert found == grid
    assert clip_grid == (4, *grid[1:])
    if height == width:
        # No resize on the way: at this size a blurred edge would cost a shape.
        planes = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
        assert torch.equal(rows, patch_rows(planes[:1], config.image)[0])
        assert torch.equal(clip_rows, patch_rows(planes, config.video)[0])


def test_random_tensor_has_the_stated_spread() -> None:
    weight = random_tensor("proj.weight", (128, 256), [0, 1]).float()
    assert weight.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert abs(weight.mean().item()) < 1e-3
    assert random_tensor("norm.weight", (512,), [0, 1]).float().mean().item() == pytest.approx(1, abs=0.01)
    assert random_tensor("proj.bias", (512,), [0, 1]).float().abs().max().item() < 0.04
    assert not torch.equal(random_tensor("proj.weight", (128, 256), [0, 2]).float(), weight)


def test_random_latents_decode_to_varied_pixels(mini: ModelDir) -> None:
    part = mini.part("vae")
    weights = part.load(part.names())
    decoder, encoder = VaeDecoder(mini.vae).eval(), VaeEncoder(mini.vae).eval()
    for module in (decoder, encoder):
        module.load_state_dict({name: weights[name] for name in module.state_dict()})
    with torch.inference_mode():
        pixels = decoder(torch.randn(1, 16, 2, 6, 5))
        moments = encoder(pixels.clamp(-1, 1))
    assert pixels.shape == (1, 3, 5, 48, 40)
    assert moments.shape == (1, 32, 2, 6, 5)
    assert pixels.isfinite().all()
    assert moments.isfinite().all()
    assert 0.2 < pixels.std().item() < 0.8
    assert (pixels.abs() > 1).float().mean().item() < 0.1


def test_preset_file_names_every_part() -> None:
    import vino_rt.models.vino.preset as preset

    data = json.loads((Path(preset.__file__).parent / "presets" / "mini.json").read_text())
    assert {"settings", "transformer", "connector", "vae", "vlm", "image_processor", "video_processor"} == set(data)
