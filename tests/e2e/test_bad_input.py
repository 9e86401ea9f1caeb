"""Bad input through the real command line, in this process: exit code, a message without a traceback, nothing written.

No case gets as far as a model's engines, so none is built; that a good request runs is shown elsewhere.
"""

import hashlib
import json
import os
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from vino_rt.cli import main
from vino_rt.model_dir import bundled_model

RELEASE = Path(__file__).parents[1] / "golden" / "vino" / "e2e_ckpt"
RECIPE = ["--recipe", "eager"]
Prepare = Callable[[Path], None]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory of its own; the hook that `main` sets is taken back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    return tmp_path


def files() -> set[str]:
    """Everything below the current directory."""
    return {str(path) for path in Path().rglob("*")}


def refused(capsys: pytest.CaptureFixture[str], code: int, message: str, *arguments: str) -> None:
    """The command ends with `code` and says `message` on stderr, leaves stdout empty and makes no file."""
    before = files()
    assert main(arguments) == code
    told = capsys.readouterr()
    assert message in told.err
    assert "Traceback" not in told.err
    assert told.out == ""
    assert files() == before


def png_header(path: str, width: int, height: int) -> None:
    """A PNG of a few bytes that claims a size."""
    bodies = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0), b"IDAT", b"IEND")
    chunks = (struct.pack(">I", len(b) - 4) + b + struct.pack(">I", zlib.crc32(b)) for b in bodies)
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be opened"),
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIH", "damaged or cut off"),
        (b"plain text, no picture", "convert it to one"),
        (b"\0\0\0\x18ftypheic" + bytes(500), "convert it to one"),
    ],
)
def test_unusable_picture_is_refused_before_a_model_is_opened(
    content: bytes | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        Path("in.png").write_bytes(content)
    refused(capsys, 3, message, "generate", "x", "-o", "o.png", "--image", "in.png", "--model", "nowhere")


def test_small_file_with_a_huge_picture(capsys: pytest.CaptureFixture[str]) -> None:
    png_header("bomb.png", 50_000, 50_000)
    arguments = ("generate", "x", "-o", "o.png", "--image", "bomb.png", "--model", "nowhere")
    refused(capsys, 3, "50000x50000 = 2500 megapixels, the limit is 64", *arguments)


@pytest.mark.parametrize("content", [None, b"", b"noise" * 1000, b"\0\0\0\x18ftypmp42" + bytes(100)])
def test_unusable_video(content: bytes | None, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        Path("in.mp4").write_bytes(content)
    refused(capsys, 3, "in.mp4", "generate", "x", "-o", "o.gif", "--video", "in.mp4")


def test_picture_of_extreme_shape(capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (5000, 1)).save("line.png")
    refused(capsys, 3, "line.png: 5000x1", "inspect", "--plan", "--image", "line.png", *RECIPE)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--size", "9" * 5000 + "x64"], 3, "such as 640x640"),
        (["--size", "²x64"], 3, "such as 640x640"),
        (["--size", "0x64"], 3, "width is 0"),
        (["--seed", str(2**63)], 3, "seed is 9223372036854775808"),
        (["--guidance", "nan"], 3, "guidance is nan"),
        (["--threads", "9999999"], 2, "256"),
        (["--image-guidance", "2", "--guidance", "1"], 2, "image guidance 2.0 with guidance 1.0"),
        (["--base-image"], 2, "base image with 0 image references"),
    ],
)
def test_numbers(arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, code, message, "generate", "x", "-o", "o.png", *arguments)


def test_prompt_of_too_many_characters_or_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, 3, "100000 characters", "generate", "x" * 100_000, "-o", "o.png")
    refused(capsys, 3, "tokens; at most 20480 are legal", "inspect", "--plan", "--prompt", "😀" * 15_000, *RECIPE)


@pytest.mark.parametrize("output", ["no/such/o.png", ".", "o", "o.webp", "/dev/full", "there.png", "x" * 300 + ".png"])
def test_outputs(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("there.png").write_bytes(b"keep me")
    refused(capsys, 3, "error: ", "generate", "x", "-o", output)
    assert Path("there.png").read_bytes() == b"keep me"


@pytest.mark.parametrize(
    ("text", "output", "message"),
    [
        ("[{", "out", "broken JSON at line 1"),
        ('[{"index": "../a", "task": "t2i", "caption": "x"}]', "out", "'../a'"),
        ('[{"index": "a", "task": "t2i", "caption": "x", "foo": 1}]', "out", "unknown field 'foo'"),
        ('[{"index": "a", "task": "t2i", "caption": "x"}]', "tasks.json", "names a directory"),
        ('[{"index": "a", "task": "t2i", "caption": "x"}]', "x" * 300, "File name too long"),
        ('[{"index": "a", "task": "t2i", "caption": "x"}]', "dangling", "with --tasks, -o names a directory"),
    ],
)
def test_task_files(text: str, output: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("tasks.json").write_text(text)
    os.symlink("nowhere", "dangling")
    refused(capsys, 3, message, "generate", "--tasks", "tasks.json", "-o", output)


def replace(directory: Path, name: str, content: bytes) -> None:
    """Change a file of a model directory together with what model.json says of it."""
    (directory / name).write_bytes(content)
    manifest = json.loads((directory / "model.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (directory / "model.json").write_text(json.dumps(manifest))


def with_blocks(directory: Path) -> None:
    """A config that asks for a thousand million blocks."""
    config = json.loads((directory / "transformer/config.json").read_text()) | {"num_layers": 10**9}
    replace(directory, "transformer/config.json", json.dumps(config).encode())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "vae/model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda d: os.truncate(d / "transformer/model.safetensors", 1000), "has 1000 bytes instead of"),
        (lambda d: replace(d, "transformer/model.safetensors", b"text" * 9), "not a readable safetensors file"),
        (lambda d: replace(d, "connector/config.json", b"[" * 100_000), "copy the file again"),
        (lambda d: replace(d, "transformer/model.safetensors", struct.pack("<Q", 10**5) + b"[" * 10**5), "copy"),
        (with_blocks, "num_layers is 1000000000, expected at most 1000"),
    ],
)
def test_model_directories(damage: Prepare, message: str, capsys: pytest.CaptureFixture[str], place: Path) -> None:
    shutil.copytree(bundled_model(), "model")
    damage(place / "model")
    refused(capsys, 4, message, "generate", "x", "-o", "o.png", "--model", "model", *RECIPE)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vlm/tokenizer.json", b"{}", "holds no tokenizer"),
        ("vlm/preprocessor_config.json", b"{}", "missing or unusable field"),
        ("vlm/preprocessor_config.json", b'{"patch_size": 0, "temporal_patch_size": 2, "merge_size": 2}', "below 1"),
    ],
)
def test_vlm_files(name: str, content: bytes, message: str, capsys: pytest.CaptureFixture[str], place: Path) -> None:
    shutil.copytree(bundled_model(), "model")
    replace(place / "model", name, content)
    refused(capsys, 4, message, "inspect", "--plan", "--model", "model", *RECIPE)


def test_nested_manifest_in_a_store_is_damaged_and_no_accident(capsys: pytest.CaptureFixture[str]) -> None:
    Path("store/patch-0").mkdir(parents=True)
    Path("store/patch-0/manifest.json").write_text("[" * 100_000)
    assert main(["inspect", "--store", "store"]) == 0
    assert "damaged: store/patch-0/manifest.json cannot be read" in capsys.readouterr().out


def test_import_names_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:

    torch.save({1: torch.zeros(1)}, "numbers.ckpt")
    shared = ("--hunyuan", str(RELEASE / "HunyuanVideo-tiny"), "--qwen", str(RELEASE / "Qwen3-VL-tiny"), "-o")
    refused(capsys, 4, "1 are no floating-point tensors", "import", "--vino", "numbers.ckpt", *shared, "out")
    refused(capsys, 3, "File name too long", "import", "--vino", "numbers.ckpt", *shared, "x" * 300)
