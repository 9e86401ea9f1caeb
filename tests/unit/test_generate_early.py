"""What `vino-rt generate` says before it builds engines, on the bundled model and an empty store."""

import json
from pathlib import Path

import pytest
from PIL import Image

from vino_rt import runtime
from vino_rt.cli import main


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["x", "--size", "640x640"], "size 640x640 has"),
        (["x", "--frames", "53"], "frames is 53"),
        (["<|image_pad|>"], "reserved for references"),
        (["x", "--image", "cut.png"], "cut.png"),
    ],
)
def test_what_the_model_refuses_is_refused_before_engines_are_built(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], part: str
) -> None:
    opened: list[object] = []
    monkeypatch.setattr(runtime.Runtime, "open", lambda *_, **__: opened.append(1))
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((40, 30), 50).save("whole.png")
    Path("cut.png").write_bytes(Path("whole.png").read_bytes()[:600])
    output = "a.mp4" if "--frames" in arguments else "a.png"
    assert main(["generate", "-o", output, "--store", "empty", *arguments]) == 3
    assert part in capsys.readouterr().err
    assert opened == []


def test_entries_are_refused_one_by_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    opened: list[object] = []
    monkeypatch.setattr(runtime.Runtime, "open", lambda *_, **__: opened.append(1))
    monkeypatch.chdir(tmp_path)
    entries = [{"index": name, "task": "t2i", "caption": "<|image_pad|>"} for name in ("first", "second")]
    Path("tasks.json").write_text(json.dumps(entries))
    assert main(["generate", "--tasks", "tasks.json", "-o", "out", "--store", "empty"]) == 3
    told = capsys.readouterr().err
    assert told.count("reserved for references") == 2
    assert all(f"{name}: error" in told for name in ("first", "second"))
    assert opened == []
