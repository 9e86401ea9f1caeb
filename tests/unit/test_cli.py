"""The command line: what it refuses, what it says to people and machines, and how it ends; the runtime is a fake."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vino_rt import runtime
from vino_rt.build import BuildProgress
from vino_rt.cli import main
from vino_rt.errors import Cancelled, EngineMissing, InputError, ModelError, VinoError
from vino_rt.media_write import read_metadata, write_media
from vino_rt.model_settings import ModelSettings, Sampling
from vino_rt.progress import Progress
from vino_rt.request import Request
from vino_rt.result import Result
from vino_rt.settings import SourceSizes, resolve

MODEL = ModelSettings(
    name="fake", family="vino", area=64 * 48, unit=16, max_frames=9, fps=8.0, default_size=(64, 48), default_frames=5,
    steps=2, image=Sampling(5.0, 5.0), video=Sampling(7.0, 7.0), negative_prompt="", negative_prompt_video="",
)  # fmt: skip


@dataclass
class FakeRuntime:
    """Black frames of the size the request comes to; `during` runs at the first step and may raise."""

    requests: list[Request] = field(default_factory=list)
    opened: list[dict[str, Any]] = field(default_factory=list)
    during: Callable[[Request], None] = lambda _: None
    closed: int = 0

    def open(self, model: Path | None, **options: Any) -> "FakeRuntime":
        self.opened.append({"model": model, **options})
        options["on_build"](BuildProgress("patch", "export", 0, 1))
        return self

    def __enter__(self) -> "FakeRuntime":
        return self

    def __exit__(self, *_: object) -> None:
        self.closed += 1

    def generate(self, request: Request, *, on_step: Callable[[Progress], None], cancel: threading.Event) -> Result:
        self.requests.append(request)
        sizes = SourceSizes(((64, 48),) * len(request.images), (64, 48) if request.video else None, 9, 12.0)
        settings = resolve(request, MODEL, sizes)
        for step in range(settings.steps):
            on_step(Progress("denoise", step + 1, settings.steps))
            self.during(request)
            if cancel.is_set():
                raise Cancelled("cancelled; nothing was written")
        frames = np.zeros((settings.frames, settings.height, settings.width, 3), np.uint8)
        return Result(frames, settings.fps, settings.seed, {"denoise": 0.25}, settings)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRuntime:
    chosen = FakeRuntime()
    monkeypatch.setattr(runtime.Runtime, "open", chosen.open)
    monkeypatch.setattr("vino_rt.commands.opening.open_parts", lambda _: (None, None, None))
    monkeypatch.setattr("vino_rt.build.missing_kinds", lambda *_: ["patch"])
    monkeypatch.setattr("vino_rt.commands.outlook.foresee", lambda *_: {})
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    Image.new("RGB", (30, 40)).save(tmp_path / "b.png")
    return chosen


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def write_tasks(*entries: dict[str, Any]) -> str:
    Path("tasks.json").write_text(json.dumps(entries), encoding="utf-8")
    return "tasks.json"


def test_a_picture(fake: FakeRuntime, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a cat", "-o", "out.png", "--seed", "7"]) == 0
    assert read_metadata("out.png")["prompt"] == "a cat"
    assert capsys.readouterr().out.startswith("out.png: 1 x 64x48, seed 7,")
    assert (fake.opened[0]["model"], fake.opened[0]["recipe"], fake.opened[0]["build"]) == (None, "cpu", True)
    assert fake.closed == 1


@pytest.mark.parametrize(
    ("arguments", "task", "frames"),
    [
        (["-o", "out.mp4"], "t2v", 5),
        (["-o", "out.gif", "--frames", "9"], "t2v", 9),
        (["-o", "out.jpg"], "t2i", 1),
        (["-o", "out.png", "--image", "a.png", "--image", "b.png", "--base-image"], "ti2i", 1),
        (["-o", "out.mp4", "--image", "a.png"], "i2v", 5),
        (["-o", "out.mp4", "--image", "a.png", "--size", "48x64"], "ti2v", 5),
        (["-o", "out.mp4", "--image", "a.png", "--task", "ti2v"], "ti2v", 5),
        (["-o", "out.mp4", "--video", "a.png"], "tv2v", 5),
        (["-o", "out.png", "--video", "a.png", "--frames", "1"], "tv2v", 1),
        (["-o", "out.mp4", "--video", "a.png", "--image", "b.png", "--task", "clone"], "tiv2v", 5),
    ],
)
def test_the_suffix_decides_what_is_made(fake: FakeRuntime, arguments: list[str], task: str, frames: int) -> None:
    assert main(["generate", "x", *arguments]) == 0
    assert fake.requests[0].resolved_task == task
    path = arguments[1]
    assert read_metadata(path)["frames"] == str(frames)


def test_options_reach_the_request(fake: FakeRuntime) -> None:
    given = ["--steps", "3", "--guidance", "4", "--image-guidance", "2", "--negative", "", "--spatial-tiling"]
    assert main(["generate", "x", "--image", "a.png", "-o", "out.png", "--sample-posterior", *given]) == 0
    request = fake.requests[0]
    assert (request.steps, request.guidance, request.image_guidance, request.negative) == (3, 4.0, 2.0, "")
    assert (request.spatial_tiling, request.sample_posterior) == (True, True)


def test_options_reach_the_runtime(fake: FakeRuntime) -> None:
    given = ["--model", "m", "--store", "s", "--no-build", "--threads", "3", "--backend", "eager"]
    assert main(["generate", "x", "-o", "out.png", *given]) == 0
    opened = fake.opened[0]
    assert (opened["model"], opened["store"], opened["build"]) == (Path("m"), Path("s"), False)
    assert (opened["threads"], opened["recipe"]) == (3, "eager")


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        ([], 2, ""),
        (["-o", "out.png"], 2, "give a PROMPT"),
        (["x", "-o", "out.png", "--tasks", "tasks.json"], 2, "leave that out"),
        (["x", "-o", "out.png", "--frames", "5"], 2, "name a .mp4 or .gif"),
        (["x", "-o", "out.mp4", "--frames", "1"], 2, "name a .png or .jpg"),
        (["x", "-o", "out.png", "--video", "a.png"], 2, "--frames 1"),
        (["x", "-o", "out.png", "--task", "t2v"], 2, "makes a clip"),
        (["x", "-o", "out.mp4", "--task", "t2i"], 2, "makes one image"),
        (["x", "-o", "out.png", "--base-image", "--image", "a.png"], 2, "at least two"),
        (["x", "-o", "out.png", "--image-guidance", "2", "--guidance", "1"], 2, "guidance above 1"),
        (["x", "-o", "out.png", "--recipe", "cpu", "--backend", "eager"], 2, "give one of them"),
        (["x", "-o", "out.png", "--backend", "abacus"], 2, "eager, onnxruntime"),
        (["x", "-o", "out.png", "--steps", "many"], 2, "steps"),
        (["x", "-o", "out.png", "--steps", "0"], 3, "from 1 to 1000"),
        (["x", "-o", "out.png", "--size", "64"], 3, "width x height"),
        (["x", "-o", "out.png", "--size", "64x50"], 3, "multiples of 16"),
        (["x", "-o", "out.png", "--task", "v2v"], 3, "legal tasks"),
        (["x" * 100_000, "-o", "out.png"], 3, "100000 characters"),
        (["x", "-o", "out.txt"], 3, "out.txt"),
        (["x", "-o", "a.png"], 3, "exists already"),
        (["x", "-o", "no/out.png"], 3, "no directory"),
        (["x", "-o", "."], 3, "is a directory; name a file in it"),
        (["x", "-o", "out.png", "--image", "gone.png"], 3, "gone.png"),
        (["--tasks", "gone.json", "-o", "out"], 3, "cannot read task file"),
    ],
)
def test_refusals(
    fake: FakeRuntime, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, part: str
) -> None:
    before = sorted(Path().iterdir())
    assert main(["generate", *arguments]) == code
    said = capsys.readouterr()
    assert part in said.err
    assert said.out == ""
    assert "Traceback" not in said.err
    assert sorted(Path().iterdir()) == before


def test_a_source_too_fast_for_a_gif(fake: FakeRuntime, capsys: pytest.CaptureFixture[str]) -> None:
    write_media(np.zeros((5, 32, 48, 3), np.uint8), "fast.mp4", fps=60.0, metadata={}, overwrite=False)
    assert main(["generate", "x", "-o", "out.gif", "--video", "fast.mp4"]) == 3
    assert "runs at 60 frames per second, a GIF at 50 at most" in capsys.readouterr().err
    assert fake.opened == []


def test_overwriting_is_asked_for(fake: FakeRuntime) -> None:
    assert main(["generate", "x", "-o", "a.png", "--overwrite"]) == 0
    assert read_metadata("a.png")["prompt"] == "x"


def test_json_is_all_there_is_on_stdout(fake: FakeRuntime, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "x", "-o", "out.mp4", "--seed", "3", "--json"]) == 0
    events = lines(capsys.readouterr().out)
    build, *steps, result = events
    assert build == {
        "event": "build", "kind": "patch", "stage": "export", "done": 0, "total": 1, "reused": False,
    }  # fmt: skip
    assert steps == [{"event": "step", "stage": "denoise", "done": n, "total": 2} for n in (1, 2)]
    assert (result["event"], result["path"], result["seed"], result["timings"]) == (
        "result",
        "out.mp4",
        3,
        {"denoise": 0.25},
    )
    assert (result["settings"]["task"], result["settings"]["frames"]) == ("t2v", 5)


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_says_nothing(fake: FakeRuntime, capsys: pytest.CaptureFixture[str], quiet: bool) -> None:
    assert main(["generate", "x", "-o", "out.png", *(["--quiet"] if quiet else [])]) == 0
    said = capsys.readouterr()
    assert (said.out == "") == quiet
    assert ("denoise: 2 of 2" in said.err) != quiet


@pytest.mark.parametrize(
    ("error", "code"),
    [(InputError("i"), 3), (ModelError("m"), 4), (EngineMissing("e"), 4), (MemoryError(), 5), (Cancelled("c"), 130)],
)
def test_exit_codes_of_a_failing_run(
    fake: FakeRuntime, capsys: pytest.CaptureFixture[str], error: VinoError | MemoryError, code: int
) -> None:
    def fail(_: Request) -> None:
        raise error

    fake.during = fail
    assert main(["generate", "x", "-o", "out.png", "--json"]) == code
    said = capsys.readouterr()
    event = lines(said.out)[-1]
    assert (event["event"], event["exit_code"]) == ("error", code)
    assert event["type"] == ("OutOfMemory" if code == 5 else type(error).__name__)
    assert event["message"] in said.err
    assert "Traceback" not in said.err
    assert not Path("out.png").exists()


def test_ctrl_c_cancels_and_writes_nothing(fake: FakeRuntime, capsys: pytest.CaptureFixture[str]) -> None:
    fake.during = lambda _: os.kill(os.getpid(), signal.SIGINT)
    before = signal.getsignal(signal.SIGINT)
    assert main(["generate", "x", "-o", "out.png"]) == 130
    assert capsys.readouterr().err.endswith("cancelled; nothing was written\n")
    assert (Path("out.png").exists(), signal.getsignal(signal.SIGINT)) == (False, before)
    assert fake.closed == 1


def test_ctrl_c_before_the_run(fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime.Runtime, "open", interrupted)
    assert main(["generate", "x", "-o", "out.png"]) == 130


def test_a_task_file(fake: FakeRuntime, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tasks(
        {"index": "one", "task": "t2i", "caption": "x"},
        {"index": "two", "task": "i2v", "caption": "y", "ref_image_paths": ["a.png"]},
    )
    assert main(["generate", "--tasks", path, "-o", "made/here", "--frames", "9", "--json"]) == 0
    assert sorted(p.name for p in Path("made/here").iterdir()) == ["one.png", "two.mp4"]
    results = [e for e in lines(capsys.readouterr().out) if e["event"] == "result"]
    assert [(e["index"], e["settings"]["frames"]) for e in results] == [("one", 1), ("two", 9)]
    assert len(fake.opened) == 1


def test_a_failing_entry_does_not_stop_the_others(fake: FakeRuntime, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tasks(*({"index": f"e{n}", "task": "t2i", "caption": f"{n}"} for n in range(4)))
    Path("out").mkdir()
    Path("out/e2.png").write_bytes(b"mine")

    def fail(request: Request) -> None:
        if request.prompt == "0":
            raise ModelError("broken")

    fake.during = fail
    assert main(["generate", "--tasks", path, "-o", "out", "--json"]) == 3
    said = capsys.readouterr()
    errors = [e for e in lines(said.out) if e["event"] == "error"]
    assert [(e["index"], e["exit_code"]) for e in errors] == [("e2", 3), ("e0", 4)]
    assert sorted(p.name for p in Path("out").iterdir()) == ["e1.png", "e2.png", "e3.png"]
    assert Path("out/e2.png").read_bytes() == b"mine"
    assert "e0: error: broken" in said.err


def test_an_entry_a_setting_contradicts(fake: FakeRuntime) -> None:
    path = write_tasks({"index": "clip", "task": "t2v", "caption": "x"})
    assert main(["generate", "--tasks", path, "-o", "out", "--frames", "1"]) == 2
    assert (Path("out").exists(), fake.opened) == (False, [])


def test_cancelling_ends_the_whole_file(fake: FakeRuntime, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tasks(*({"index": f"e{n}", "task": "t2i", "caption": ""} for n in range(3)))
    fake.during = lambda _: os.kill(os.getpid(), signal.SIGINT) if len(fake.requests) == 2 else None
    assert main(["generate", "--tasks", path, "-o", "out"]) == 130
    assert [p.name for p in Path("out").iterdir()] == ["e0.png"]
    assert "cancelled in entry e1; 1 of 3 were tried before it" in capsys.readouterr().err


def test_an_output_directory_that_is_a_file(fake: FakeRuntime, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tasks({"index": "e", "task": "t2i", "caption": ""})
    assert main(["generate", "--tasks", path, "-o", "a.png"]) == 3
    assert "a.png is a file" in capsys.readouterr().err
