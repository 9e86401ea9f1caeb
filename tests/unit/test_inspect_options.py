"""`vino-rt inspect`: options that belong together, the settings of a file, and how much a plan needs."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vino_rt.backends.recipe import BACKENDS
from vino_rt.cli import main
from vino_rt.commands.base import engine_columns
from vino_rt.commands.inspect import shown_count
from vino_rt.engines import kinds_of
from vino_rt.media_write import write_media
from vino_rt.model_dir import ModelDir, bundled_model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30)).save("a.png")
    return tmp_path


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--size", "63x63"], "--size belongs to --plan; add --plan, or leave it out"),
        (["--steps", "0"], "--steps belongs to --plan"),
        (["--prompt", ""], "--prompt belongs to --plan"),
        (["--image", "a.png", "--spatial-tiling"], "--image, --spatial-tiling belong to --plan; add --plan, or leave"),
        (["a.png", "--size", "48x48"], "--size belongs to --plan"),
        (["a.png", "--verify"], "FILE and --verify ask for different things"),
    ],
)
def test_options_of_a_request_need_a_plan(
    folder: Path, given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", *given]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    ("recipe", "found", "warned"),
    [
        ("cpu-bf16", {"avx2": True, "avx512_bf16": False}, True),
        ("cpu-bf16", {"avx512_bf16": True}, False),
        ("cpu-bf16", {"amx_bf16": True}, False),
        ("cpu-bf16", {"architecture": "arm64", "bf16": True}, False),
        ("cpu", {}, False),
        ("cuda", {}, False),
    ],
)
def test_bfloat16_without_instructions_for_it_is_warned_of(
    folder: Path,
    recipe: str,
    found: dict[str, Any],
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    monkeypatch.setattr("vino_rt.commands.machine.describe_machine", dict)
    monkeypatch.setattr("vino_rt.commands.inspect._show_machine", lambda *_: None)
    assert main(["inspect", "--recipe", recipe, "--store", "s"]) == 0
    said = capsys.readouterr().err
    assert said.count("recipe 'cpu-bf16' computes in bfloat16, which this processor has no instructions for") == warned
    assert main(["inspect", "--recipe", recipe, "--store", "s", "--json"]) == 0
    assert [e["event"] for e in lines(capsys.readouterr().out)].count("warning") == warned
    assert main(["inspect", "--recipe", recipe, "--store", "s", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_settings_of_a_file_have_types_for_machines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {"prompt": "7", "steps": "20", "guidance": "5.0", "base_image": "False"}
    write_media(np.zeros((1, 30, 40, 3), np.uint8), "out.png", fps=24.0, metadata=texts, overwrite=False)
    assert main(["inspect", "out.png", "--json"]) == 0
    (event,) = lines(capsys.readouterr().out)
    assert event["settings"] == {"prompt": "7", "steps": 20, "guidance": 5.0, "base_image": False}


def test_columns_hold_the_longest_names() -> None:
    kinds, backends = kinds_of(ModelDir.open(bundled_model())), BACKENDS
    assert "vlm_vision_block" in kinds
    assert len({len(engine_columns(kind, backend)) for kind in kinds for backend in backends}) == 1


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0"), (999, "999"), (1600, "1.6 k"), (2_345_678, "2.3 M"), (17 * 10**9, "17.0 G"), (10**16, "10000.0 T")],
)
def test_counts_are_shown_in_a_unit_that_tells_them(count: int, shown: str) -> None:
    assert shown_count(count) == shown
