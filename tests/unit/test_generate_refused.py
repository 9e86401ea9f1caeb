"""What `vino-rt generate` refuses or warns of before a model is opened, and that the advice it gives works."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vino_rt.cli import main
from vino_rt.errors import UsageError
from vino_rt.media_write import write_media
from vino_rt.runtime import Runtime


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30)).save("a.png")
    return tmp_path


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (2, "name a .mp4 or .gif and ask for 5 frames\n"),
        (5, "leave --frames out, or name a .mp4 or .gif\n"),
        (6, "leave --frames out, or name a .mp4 or .gif and ask for 5 or 9 frames\n"),
        (0, "frames is 0; it must be a whole number from 1"),
    ],
)
def test_frames_of_a_picture(folder: Path, frames: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "x", "-o", "x.png", "--frames", str(frames)]) in (2, 3)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["generate", "x", "-o", ""], "--output"),
        (["generate", "", "-o", "x.png", "--image", "a.png", "--image", ""], "--image"),
        (["understand", "a.png", ""], "FILE"),
        (["inspect", "--store", ""], "--store"),
    ],
)
def test_an_empty_path_is_named(
    folder: Path, arguments: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "it is empty; name a file or directory" in said
    assert option in said


def test_a_video_of_one_frame_is_named_with_a_way_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_media(np.zeros((2, 32, 48, 3), np.uint8), "one.gif", fps=8.0, metadata={}, overwrite=False)
    opened: list[object] = []

    def refuse(*_: object, **__: object) -> None:
        opened.append(None)
        raise UsageError("opened")

    monkeypatch.setattr(Runtime, "open", refuse)
    given = ["generate", "x", "--video", "one.gif", "--store", "s"]
    assert main([*given, "-o", "x.mp4"]) == 3
    said = capsys.readouterr().err
    assert "one.gif: the video has 2 frames, a clip needs at least 5" in said
    assert "--frames 1" in said
    assert not opened
    assert main([*given, "-o", "x.png", "--frames", "1"]) == 2
    assert capsys.readouterr().err == "error: opened\n"


def test_emulation_is_warned_of_once_before_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UsageError("opened")

    monkeypatch.setattr(Runtime, "open", refuse)
    monkeypatch.setattr("vino_rt.build.build", refuse)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    for command in (["generate", "x", "-o", "x.png"], ["build", "--no-measure"]):
        assert main([*command, "--recipe", "cpu-bf16", "--store", "s"]) == 2
        warning, error = capsys.readouterr().err.splitlines()
        assert warning.startswith("warning: recipe 'cpu-bf16' computes in bfloat16")
        assert error == "error: opened"
