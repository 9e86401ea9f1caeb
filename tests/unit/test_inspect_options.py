"""`vino-rt inspect`: options that belong together, the settings of a file, and how much a plan needs."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vino_rt.cli import main


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
