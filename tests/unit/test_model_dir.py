"""Opening model directories: the bundled one is whole, every damage names itself, hashes follow the content."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vino_rt.errors import ModelError, OutputError
from vino_rt.model_dir import ModelDir, bundled_model
from vino_rt.model_draft import new_model_dir
from vino_rt.model_settings import ModelSettings
from vino_rt.models.vino.checkpoint import release_settings


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundled_model(), tmp_path / "model"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_bundled_model_is_whole() -> None:
    model = ModelDir.open(bundled_model())
    model.verify()
    settings = model.settings
    assert (settings.name, settings.family, settings.area, settings.unit) == ("vino-mini", "vino", 64 * 64, 16)
    assert (settings.default_size, settings.default_frames, settings.steps, settings.fps) == ((64, 64), 17, 20, 8.0)
    assert (settings.image.guidance, settings.video.shift) == (3.0, 3.0)
    assert model.transformer.width == model.connector.hy_dim == 192
    assert sum(record.bytes for record in model.files.values()) <= 40_000_000


def test_open_loads_no_model_library() -> None:
    code = (
        "import sys; from vino_rt.model_dir import ModelDir, bundled_model; ModelDir.open(bundled_model()).describe();"
        "print(*[n for n in ('transformers', 'diffusers', 'tokenizers', 'onnxruntime') if n in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_describe_counts() -> None:
    model = ModelDir.open(bundled_model())
    told = model.describe()
    assert told["parts"]["transformer"]["dtypes"] == ["bfloat16"]
    assert sum(part["parameters"] for part in told["parts"].values()) == 14_053_235
    assert told["config_hash"] == model.config_hash
    assert len(model.weights_hash) == 64
    json.dumps(told)


def test_part_reads_weights() -> None:
    part = ModelDir.open(bundled_model()).part("connector")
    assert part.load(["metaquery"])["metaquery"].shape == part.shape("metaquery") == (8, 128)


@pytest.mark.parametrize(
    "name", ["transformer/model.safetensors", "vae/config.json", "vlm/tokenizer.json", "vlm/model.safetensors"]
)
def test_missing_and_shortened_file(copy: Path, name: str) -> None:
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(whole[:-1])
    with pytest.raises(ModelError, match=rf"{name} has {len(whole) - 1} bytes instead of {len(whole)}; copy it again"):
        ModelDir.open(copy)
    (copy / name).unlink()
    with pytest.raises(ModelError, match=rf"{name} is missing; copy it again"):
        ModelDir.open(copy)


def test_no_model_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a directory.*vino-rt import"):
        ModelDir.open(tmp_path / "none")
    with pytest.raises(ModelError, match=r"holds no model\.json"):
        ModelDir.open(tmp_path)
    for text in ("", "{", "[]", '{"format": 1}'):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(ModelError, match=r"model\.json"):
            ModelDir.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2, this version reads 1"),
        ({"format": None}, "has format None"),
        ({"family": "other"}, r"family is 'other', expected one of \['vino'\]"),
        ({"area": -5}, "area is -5, expected a whole number from 1 to"),
        ({"area": True}, "area is True"),
        ({"fps": "24"}, "fps is '24', expected a number above 0"),
        ({"fps": 10**400}, "fps is 10.*, expected a number above 0, at most 240"),
        ({"image": {"guidance": 10**400, "shift": 5}}, "image.guidance is 10.*, expected a number above 0, at most"),
        ({"area": 10**400}, "area is 10.*, expected a whole number from 1 to 268435456"),
        ({"steps": 0}, "steps is 0"),
        ({"max_frames": 50}, r"max_frames is 50, expected 1, 5, 9"),
        ({"default_frames": 53}, "default_frames is 53, expected at most max_frames, 49"),
        ({"default_size": [64, 60]}, r"default_size is \(64, 60\), expected two multiples of 16"),
        ({"default_size": 64}, "default_size is 64"),
        ({"image": {"guidance": 3}}, r"image: missing fields \['shift'\]"),
        ({"video": {"guidance": 3, "shift": float("nan")}}, r"video\.shift is nan"),
        ({"video": 7}, "video is 7"),
        ({"negative_prompt": None}, "negative_prompt is None, expected a text"),
        ({"surprise": 1}, r"unknown fields \['surprise'\]"),
        ({"files": {"../x": {"sha256": "", "bytes": 1}}}, r"'\.\./x'.*no file inside the model directory"),
        ({"files": {"vae/config.json": {"bytes": 1}}}, r"missing fields \['sha256'\]"),
        ({"files": {}}, r"does not list transformer/config\.json"),
        ({"files": 3}, "files is 3, expected an object"),
    ],
)
def test_manifest_values(copy: Path, change: dict[str, Any], message: str) -> None:
    edit(copy / "model.json", lambda data: data.update(change))
    with pytest.raises(ModelError, match=message):
        ModelDir.open(copy)


def reseal(model: Path) -> None:
    """Write the sizes that files have now into model.json, as a careless editor of a model would."""
    edit(
        model / "model.json",
        lambda data: [record.update(bytes=(model / name).stat().st_size) for name, record in data["files"].items()],
    )


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("connector", {"z_dim": 96}, "connector z_dim and transformer text_embed_dim: 96 and 192"),
        ("connector", {"num_queries": 17}, r"wrong shape metaquery \(8, 128\) instead of \(17, 128\)"),
        ("transformer", {"num_layers": 3}, r"missing transformer_blocks\.2\.attn.* and \d+ more"),
        ("transformer", {"num_single_layers": 3}, r"unknown single_transformer_blocks\.3\."),
        ("vae", {"latent_channels": 8}, "vae latent_channels and transformer in_channels: 8 and 16"),
        (
            "vlm",
            {"text_config": {"hidden_size": 64}},
            "connector hidden_size and vlm text_config.hidden_size: 128 and 64",
        ),
        ("vlm", {"text_config": None}, "128 and None"),
    ],
)
def test_configs_that_do_not_fit(copy: Path, part: str, change: dict[str, Any], message: str) -> None:
    edit(copy / part / "config.json", lambda data: data.update(change))
    reseal(copy)
    with pytest.raises(ModelError, match=message):
        ModelDir.open(copy)


def test_verify_finds_a_changed_byte(copy: Path) -> None:
    file = copy / "vae" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    model = ModelDir.open(copy)
    seen: list[tuple[str, int, int]] = []
    with pytest.raises(ModelError, match=r"vae/model\.safetensors changed since"):
        model.verify(lambda name, done, total: seen.append((name, done, total)))
    assert seen[-1][1] == seen[-1][2] == sum(record.bytes for record in model.files.values())


def test_hashes_follow_content_only(copy: Path) -> None:
    before = ModelDir.open(copy)
    edit(copy / "transformer" / "config.json", lambda data: data.update(rope_theta=data.pop("rope_theta")))
    reseal(copy)
    assert ModelDir.open(copy).config_hash == before.config_hash
    edit(copy / "transformer" / "config.json", lambda data: data.update(rope_theta=255.0))
    edit(copy / "model.json", lambda data: data["files"]["vae/model.safetensors"].update(sha256="0" * 64))
    reseal(copy)
    after = ModelDir.open(copy)
    assert after.config_hash != before.config_hash
    assert after.weights_hash != before.weights_hash


def test_settings_survive_json() -> None:
    settings = release_settings()
    assert ModelSettings.from_json(json.loads(json.dumps(settings.to_json())), "x") == settings


def test_new_model_dir_replaces_models_only(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(OutputError, match="allow it to be overwritten"), new_model_dir(copy, release_settings()):
        pass
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("x")
    with (
        pytest.raises(OutputError, match=r"holds no model\.json"),
        new_model_dir(tmp_path / "photos", release_settings(), overwrite=True),
    ):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "photos"]
