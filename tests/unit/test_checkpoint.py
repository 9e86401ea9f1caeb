"""The import of a release: tensors arrive bitwise, a defect names itself and leaves nothing behind."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vino_rt.errors import InputError, ModelError, OutputError
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.checkpoint import import_release, release_settings

HUNYUAN, QWEN = "HunyuanVideo-tiny", "Qwen3-VL-tiny"
VAE_FILE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def release(tiny_release: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    copy = Path(shutil.copytree(tiny_release, tmp_path / "release"))
    for path in copy.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return copy


def run(release: Path, vino: str = "vino.safetensors", **options: Any) -> ModelDir:
    options = {"area": 48 * 64, "default_size": (48, 64), **options}
    return import_release(release / vino, release / HUNYUAN, release / QWEN, release.parent / "out", **options)


def refused(release: Path, message: str, error: type[BaseException] = ModelError, **options: Any) -> None:
    """The import fails with this message and leaves nothing beside the release."""
    before = sorted(path.name for path in release.parent.iterdir())
    with pytest.raises(error, match=message):
        run(release, **options)
    assert sorted(path.name for path in release.parent.iterdir()) == before


def change_tensors(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def replace(tensors: dict[str, Tensor], name: str, tensor: Tensor | None) -> None:
    tensors.pop(name, None)
    if tensor is not None:
        tensors[name] = tensor


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def stored(model: ModelDir, part: str) -> dict[str, Tensor]:
    weights = model.part(part)
    return weights.load(weights.names(), dtype=None)


def equal(given: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return set(given) == set(expected) and all(
        given[name].dtype == tensor.dtype and torch.equal(given[name], tensor) for name, tensor in expected.items()
    )


@pytest.mark.parametrize("form", ["ckpt", "safetensors", "shards", "directory", "wrapped"])
def test_every_tensor_arrives_bitwise(release: Path, form: str) -> None:
    tensors = load_file(release / "vino.safetensors")
    vino = "vino.safetensors"
    if form == "ckpt":
        vino = "vino.ckpt"
        torch.save(tensors, release / vino)
    elif form == "wrapped":
        vino = "vino.ckpt"
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}, release / vino)
    elif form in ("shards", "directory"):
        vino = "sharded" if form == "directory" else "sharded/model.safetensors.index.json"
        write_shards(release / "sharded", tensors)
    model = run(release, vino)
    model.verify()
    transformer = {n.removeprefix("transformer."): t for n, t in tensors.items() if n.startswith("transformer.")}
    connector = {n.removeprefix("mm_encoder."): t for n, t in tensors.items() if n.startswith("mm_encoder.")}
    assert len(transformer) + len(connector) == len(tensors) == 149
    assert equal(stored(model, "transformer"), transformer)
    assert equal(stored(model, "connector"), connector)
    assert equal(stored(model, "vae"), load_file(release / HUNYUAN / VAE_FILE))
    assert equal(stored(model, "vlm"), load_file(release / QWEN / "model.safetensors"))


def write_shards(directory: Path, tensors: dict[str, Tensor]) -> None:
    directory.mkdir()
    names = sorted(tensors)
    weight_map = {name: f"s{number % 3}.safetensors" for number, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_imported_model_says_what_it_is(release: Path, golden: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    model = run(release, on_progress=lambda name, done, total: seen.append((name, done, total)))
    assert asdict(model.connector) == {"num_queries": 6, "hidden_size": 32, "z_dim": 40, "hy_dim": 48}
    assert (model.settings.area, model.settings.default_size, model.transformer.width) == (3072, (48, 64), 48)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1][1] == seen[-1][2] == sum(part["bytes"] for part in model.describe()["parts"].values())
    defaults = json.loads((golden / "defaults.json").read_text())
    assert model.settings.steps == defaults.pop("num_inference_steps")
    assert {name: asdict(getattr(model.settings, name)) for name in ("image", "video")} == {
        name: defaults.pop(name) for name in ("image", "video")
    }
    assert defaults.pop("image_guidance") == 1.0, "the request's default, not the model's"
    full = release_settings()
    assert {name: getattr(full, name) for name in defaults} == defaults
    copied = ("config.json", "tokenizer.json", "merges.txt", "vocab.json", "tokenizer_config.json")
    for name in (*copied, "preprocessor_config.json", "video_preprocessor_config.json"):
        assert (model.path / "vlm" / name).read_bytes() == (release / QWEN / name).read_bytes()


def test_area_alone_gives_a_square() -> None:
    assert release_settings(area=10_000).default_size == (96, 96)
    assert release_settings().default_size == (848, 480)
    for area in (-5, 0, 5, 255, 16384**2 + 1):
        with pytest.raises(InputError, match=rf"area is {area}; give 256 \(16x16\) to 268435456 pixels"):
            release_settings(area=area)


@pytest.mark.parametrize(
    ("size", "told"),
    [((100, 100), "take 96x96"), ((0, 16), "take 16x16"), ((-16, 64), "take 16x64"), ((1600, 16), "about 10000")],
)
def test_a_default_size_that_the_area_does_not_take(size: tuple[int, int], told: str) -> None:
    with pytest.raises(InputError, match=f"size .*{told}"):
        release_settings(area=10_000, default_size=size)


def test_vlm_in_the_checkpoint_wins(release: Path) -> None:
    own = {name: -tensor for name, tensor in load_file(release / QWEN / "model.safetensors").items()}
    prefixed = {f"mm_encoder.mm_encoder.{name}": tensor for name, tensor in own.items()}
    change_tensors(release / "vino.safetensors", lambda tensors: tensors.update(prefixed))
    (release / QWEN / "model.safetensors").unlink()
    model = run(release)
    assert equal(stored(model, "vlm"), own)
    change_tensors(release / "vino.safetensors", lambda t: t.pop("mm_encoder.mm_encoder.model.visual.pos_embed.weight"))
    refused(release, r"\(VLM\): missing model\.visual\.pos_embed\.weight\.", error=ModelError, overwrite=True)


def test_tied_head_is_dropped_only_when_it_is_tied(release: Path) -> None:
    file = release / QWEN / "model.safetensors"
    embedding = load_file(file)["model.language_model.embed_tokens.weight"]
    change_tensors(file, lambda tensors: tensors.update({"lm_head.weight": embedding.clone()}))
    assert "lm_head.weight" not in run(release).part("vlm").names()
    change_tensors(file, lambda tensors: tensors.update({"lm_head.weight": embedding + 1}))
    refused(release, r"lm_head\.weight differs from", overwrite=True)
    change_json(release / QWEN / "config.json", tie_word_embeddings=False)
    assert "lm_head.weight" in run(release, overwrite=True).part("vlm").names()
    change_tensors(file, lambda tensors: tensors.pop("lm_head.weight"))
    refused(release, r"\(VLM\): missing lm_head\.weight", overwrite=True)


def test_older_transformer_config_lacks_one_field(release: Path) -> None:
    file = release / HUNYUAN / "transformer" / "config.json"
    data = json.loads(file.read_text())
    assert data.pop("image_condition_type") is None
    file.write_text(json.dumps(data))
    assert run(release).transformer.image_condition_type is None
    del data["rope_theta"]
    file.write_text(json.dumps(data))
    refused(release, r"missing fields \['rope_theta'\]", overwrite=True)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("transformer.proj_out.bias", None, r"\(transformer\): missing proj_out\.bias\."),
        ("mm_encoder.connector.norm_qwen.weight", None, r"\(connector\): missing connector\.norm_qwen\.weight"),
        ("mm_encoder.metaquery", None, r"mm_encoder\.metaquery missing; each must be a matrix"),
        ("mm_encoder.metaquery", torch.zeros(6), r"mm_encoder\.metaquery \(6,\); each must be a matrix"),
        (
            "mm_encoder.metaquery",
            torch.zeros(6, 30),
            "connector hidden_size and vlm text_config.hidden_size: 30 and 32",
        ),
        ("transformer.extra.weight", torch.zeros(2), r"\(transformer\): unknown extra\.weight"),
        ("optimizer.step", torch.zeros(2), r"unknown keys optimizer\.step; a VINO checkpoint has transformer\.\*"),
        ("mm_encoder.other", torch.zeros(2), r"unknown keys mm_encoder\.other"),
        ("transformer.proj_out.bias", torch.zeros(15), r"wrong shape proj_out\.bias \(15,\) instead of \(16,\)"),
        ("transformer.proj_out.bias", torch.full((16,), float("nan")), r"'transformer\.proj_out\.bias' holds NaN"),
        ("mm_encoder.metaquery", torch.full((6, 32), float("inf")), r"'mm_encoder\.metaquery' holds NaN or infinity"),
    ],
)
def test_bad_tensor_in_the_checkpoint(release: Path, name: str, tensor: Tensor | None, message: str) -> None:
    change_tensors(release / "vino.safetensors", lambda tensors: replace(tensors, name, tensor))
    refused(release, message)


@pytest.mark.parametrize(
    ("file", "name", "tensor", "message"),
    [
        (f"{HUNYUAN}/{VAE_FILE}", "quant_conv.bias", torch.full((8,), float("nan")), r"'quant_conv\.bias' holds NaN"),
        (f"{HUNYUAN}/{VAE_FILE}", "quant_conv.bias", None, r"vae: missing quant_conv\.bias"),
        (f"{QWEN}/model.safetensors", "surprise", torch.zeros(1), r"\(VLM\): unknown surprise"),
        (f"{QWEN}/model.safetensors", "model.visual.pos_embed.weight", torch.zeros(3, 3), r"wrong shape .*pos_embed"),
    ],
)
def test_bad_vae_and_vlm(release: Path, file: str, name: str, tensor: Tensor | None, message: str) -> None:
    change_tensors(release / file, lambda tensors: replace(tensors, name, tensor))
    refused(release, message)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (
            f"{HUNYUAN}/transformer/config.json",
            {"text_embed_dim": 41},
            "z_dim and transformer text_embed_dim: 40 and 41",
        ),
        (f"{HUNYUAN}/transformer/config.json", {"num_layers": 3}, r"missing transformer_blocks\.2\."),
        (
            f"{HUNYUAN}/vae/config.json",
            {"latent_channels": 8},
            "vae latent_channels and transformer in_channels: 8 and 4",
        ),
        (f"{HUNYUAN}/vae/config.json", {"colour": 1}, r"unknown fields \['colour'\]"),
        (f"{QWEN}/config.json", {"model_type": "llama"}, "model_type is 'llama', expected 'qwen3_vl'"),
        (f"{QWEN}/config.json", {"text_config": 3}, "hidden_size: 32 and None"),
    ],
)
def test_configs_that_do_not_fit(release: Path, file: str, values: dict[str, Any], message: str) -> None:
    change_json(release / file, **values)
    refused(release, message)


@pytest.mark.parametrize(
    "file",
    [
        "vino.safetensors",
        f"{HUNYUAN}/transformer/config.json",
        f"{HUNYUAN}/vae/config.json",
        f"{HUNYUAN}/{VAE_FILE}",
        f"{QWEN}/config.json",
        f"{QWEN}/model.safetensors",
        f"{QWEN}/tokenizer.json",
        f"{QWEN}/video_preprocessor_config.json",
    ],
)
def test_missing_and_truncated_files(release: Path, file: str) -> None:
    whole = (release / file).read_bytes()
    (release / file).write_bytes(whole[: len(whole) // 2])
    refused(release, Path(file).name.replace(".", r"\."))
    (release / file).unlink()
    refused(release, Path(file).name.replace(".", r"\."))


def test_nothing_is_written_over_or_left(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(name: str, done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt("stop")

    refused(release, "stop", error=KeyboardInterrupt, on_progress=stop)
    before = (run(release).path / "model.json").read_bytes()
    refused(release, "allow it to be overwritten", error=OutputError)
    refused(release, "stop", error=KeyboardInterrupt, on_progress=stop, overwrite=True)
    assert (release.parent / "out" / "model.json").read_bytes() == before
    monkeypatch.setattr("vino_rt.models.vino.checkpoint.check_space", lambda directory, needed: full(directory))
    refused(release, "GB free", error=OutputError, overwrite=True)


def full(directory: Path) -> None:
    raise OutputError(f"{directory} has 0.00 GB free")
