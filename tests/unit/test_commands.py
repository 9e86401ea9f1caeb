"""The subcommands besides generate, on the bundled model, a small release and an empty store; tracebacks."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vino_rt.bucket import Bucket
from vino_rt.cli import main
from vino_rt.commands.base import install_hook
from vino_rt.commands.generate import GenerateOptions
from vino_rt.commands.inspect import InspectOptions
from vino_rt.commands.request_options import RequestOptions
from vino_rt.media_write import write_media


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.chdir(tmp_path)
    for name, size in (("a.png", (40, 30)), ("b.png", (30, 40))):
        Image.new("RGB", size).save(name)
    return tmp_path


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_inspect_shows_what_was_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = np.zeros((1, 30, 40, 3), np.uint8)
    write_media(frame, "out.png", fps=24.0, metadata={"prompt": "a cat"}, overwrite=False)
    assert main(["inspect", "out.png"]) == 0
    assert "a cat" in capsys.readouterr().out
    assert main(["inspect", "a.png", "--json"]) == 0
    assert lines(capsys.readouterr().out) == [{"event": "file", "path": "a.png", "settings": {}}]
    assert main(["inspect", "gone.png"]) == 3
    assert main(["inspect", "a.png", "--plan"]) == 2


def test_inspect_machine_model_and_store(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("store/broken-0").mkdir(parents=True)
    Path("store/broken-0/manifest.json").write_text("{")
    assert main(["inspect", "--store", "store", "--json"]) == 0
    events = {event["event"]: event for event in lines(capsys.readouterr().out)}
    assert set(events) == {"machine", "model", "memory", "engine", "store"}
    assert events["machine"]["cores"] >= 1
    assert events["model"]["parts"]["transformer"]["parameters"] > 1000
    assert "manifest.json" in events["engine"]["problem"]
    assert "dual_block" in events["store"]["missing"]
    assert main(["inspect", "--store", "store"]) == 0
    said = capsys.readouterr().out
    assert "build with: vino-rt build --store store\n" in said
    assert "damaged" in said


def test_inspect_says_why_a_recipe_does_not_run_here(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["inspect", "--recipe", "tensorrt", "--store", "store"]) == 0
    said = capsys.readouterr().out
    assert "recipe 'tensorrt' runs on an NVIDIA GPU and torch" in said
    assert "build with" not in said
    assert "store     store" in said
    assert main(["inspect", "--recipe", "tensorrt", "--store", "store", "--json"]) == 0
    (event,) = (e for e in lines(capsys.readouterr().out) if e["event"] == "store")
    assert event["problem"].startswith("recipe 'tensorrt' runs on an NVIDIA GPU")
    assert "missing" not in event


def test_inspect_shows_how_far_it_has_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--preset", "mini", "-o", "model"]) == 0
    capsys.readouterr()
    assert main(["inspect", "--model", "model", "--store", "s", "--verify", "--plan"]) == 0
    told = capsys.readouterr()
    (complete,) = (line for line in told.err.splitlines() if line.startswith("MB: "))
    _, done, _, total = complete.split()
    assert done == total
    assert "are what was written" in told.out
    assert main(["inspect", "--model", "model", "--store", "s", "--verify", "--plan", "--json"]) == 0
    progress = [event for event in lines(capsys.readouterr().out) if event["event"] == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"] > 0
    assert {event["file"] for event in progress} >= {"vlm/config.json", "vae/model.safetensors"}


def test_inspect_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = ["--image", "a.png", "--image", "b.png", "--image-guidance", "2", "--base-image", "--prompt", "x"]
    assert main(["inspect", "--plan", "--json", *request]) == 0
    (plan,) = lines(capsys.readouterr().out)
    assert plan["branches"] == ["prompt", "negative", "negative_no_images"]
    shown = [[s["what"] for s in plan["segments"] if s["branch"] == b] for b in range(3)]
    assert shown[0] == ["reference 1", "reference 2", "target", "text"]
    assert shown[2] == ["reference 2", "target", "text"]
    assert plan["image_tokens"] + plan["text_tokens"] == sum(s["rows"] for s in plan["segments"])
    assert main(["inspect", "--plan", *request]) == 0
    assert "memory of the decode" in capsys.readouterr().out
    assert main(["inspect", "--plan", "--size", "7x7"]) == 3


def test_inspect_plan_takes_what_generate_takes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    requests = {f.name for f in fields(RequestOptions)}
    assert requests <= {f.name for f in fields(InspectOptions)} & {f.name for f in fields(GenerateOptions)}
    given = ["--prompt", "x", "--negative", "a much longer text of what is not wanted", "--steps", "3", "--seed", "7"]
    assert main(["inspect", "--plan", "--json", *given]) == 0
    assert main(["inspect", "--plan", "--json", "--prompt", "x"]) == 0
    long, plain = lines(capsys.readouterr().out)
    assert (long["settings"]["steps"], long["settings"]["seed"]) == (3, 7)
    assert long["text_tokens"] > plain["text_tokens"]


def test_columns_of_memory_are_told_apart(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--store", "s"]) == 0
    (header,) = (line for line in capsys.readouterr().out.splitlines() if "frames, size" in line)
    names = [name.strip() for name in header.split("  ") if name.strip()]
    assert len(set(names)) == len(names)
    assert {"decode", "decode (tiled)", "total", "total (tiled)", "measured"} <= set(names)


@pytest.mark.parametrize("command", ["generate", "build", "import", "init", "inspect", "train", "understand"])
def test_help_ends_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"Example: vino-rt {command} " in capsys.readouterr().out


def test_a_store_that_cannot_be_written_is_a_warning_where_nothing_is_built(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vino_rt.footprint_measured.measure", lambda *_: {(1, 64, 64): 1000})
    Path("s").write_text("in the way")
    assert main(["build", "--backend", "eager", "--store", "s"]) == 0
    told = capsys.readouterr()
    assert told.err.startswith("warning: what was measured is not kept: ")
    assert "1.0 kB measured" in told.out


@pytest.mark.parametrize(
    "error", [RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), MemoryError()]
)
def test_exhausted_memory_has_its_own_exit_code(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("vino_rt.models.vino.preset.init_preset", fail)
    assert main(["init", "--preset", "mini", "-o", "model"]) == 5
    assert capsys.readouterr().err.startswith("error: memory ran out; stop other processes")
    monkeypatch.setattr("vino_rt.models.vino.preset.init_preset", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["init", "--preset", "mini", "-o", "model"])


def test_recipes_that_cannot_run_here_are_refused_before_anything_is_built(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["inspect", "--recipe", "cuda", "--store", "s"]) == 0
    assert "cannot run here: recipe 'cuda' runs on an NVIDIA GPU" in capsys.readouterr().out
    assert main(["build", "--recipe", "cuda", "--store", "s", "--no-measure"]) == 4
    assert "recipe 'cuda' runs on an NVIDIA GPU" in capsys.readouterr().err
    assert not Path("s").exists()


def test_init_writes_a_model_and_inspect_knows_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--preset", "mini", "-o", "model", "--seed", "3", "--json"]) == 0
    (made,) = lines(capsys.readouterr().out)
    assert main(["inspect", "--model", "model", "--store", "s", "--json"]) == 0
    model = next(e for e in lines(capsys.readouterr().out) if e["event"] == "model")
    assert model["weights_hash"] == made["weights_hash"]
    assert main(["init", "--preset", "mini", "-o", "model"]) == 3
    assert main(["init", "--preset", "huge", "-o", "other"]) == 2
    assert main(["inspect", "--model", "nowhere"]) == 4


def test_import_of_the_small_release(folder: Path, tiny_release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = ["--hunyuan", f"{tiny_release / 'HunyuanVideo-tiny'}", "--qwen", f"{tiny_release / 'Qwen3-VL-tiny'}"]
    arguments = ["import", "--vino", f"{tiny_release / 'vino.safetensors'}", *parts, "-o", "model"]
    assert main([*arguments, "--area", "3072", "--default-size", "64x48", "--json"]) == 0
    *progress, result = lines(capsys.readouterr().out)
    assert progress[-1]["done"] == progress[-1]["total"] > 0
    assert result["path"] == "model"
    assert main(arguments) == 3
    assert main([*arguments[:2], "gone.ckpt", *parts, "-o", "other"]) == 4
    capsys.readouterr()
    for place, name in ((-5, "hunyuan"), (-3, "qwen")):
        wrong = [*arguments[:-1], "other"]
        wrong[place] = "gone"
        assert main(wrong) == 4
        assert f"there is no directory gone; {name} names the released one" in capsys.readouterr().err
    assert not Path("other").exists()
    assert main([*arguments[:-1], "my model", "--area", "3072"]) == 0
    assert capsys.readouterr().out.endswith("next: vino-rt build --model 'my model'\n")


# A process that imports everything and runs the bundled model: seconds on an idle machine.
@pytest.mark.timeout(600)
def test_build_of_a_recipe_without_artefacts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = ["build", "--backend", "eager", "--store", "s", "--json"]
    assert main([*build, "--no-measure"]) == 0
    memory, result = lines(capsys.readouterr().out)
    assert result["engines"] == []
    assert main(build) == 0
    _, *measured, _ = lines(capsys.readouterr().out)
    assert [event["clip"] for event in measured] == [[1, 64, 64], [17, 64, 64]]
    assert [event["predicted"] for event in measured] == [size["peak"] for size in memory["sizes"]]
    weights = sum(memory["weights"].values())
    # Most of so small a prediction is the allowance for libraries.
    assert all(weights < event["measured"] <= event["predicted"] < 6 * event["measured"] for event in measured)
    assert main(build) == 0, "what was measured once is kept"
    known, _ = lines(capsys.readouterr().out)
    assert main(["inspect", *build[1:]]) == 0
    shown = next(event for event in lines(capsys.readouterr().out) if event["event"] == "memory")
    assert known == shown
    assert [size["measured"] for size in shown["sizes"]] == [event["measured"] for event in measured]


BUCKETS = """
description = "the judge at two sizes"
device = "cpu"
precision = "float32"
backend = "eager"
bucket = [
    { frames = 1, width = 64, height = 64, references = 0, text_tokens = 64, branches = 2 },
    { frames = 1, width = 64, height = 64, references = 99, text_tokens = 64, branches = 2 },
    { frames = 5, width = 64, height = 64, references = 0, text_tokens = 64, branches = 3 },
    { frames = 9, width = 64, height = 64, references = 0, text_tokens = 64, branches = 2 },
]
"""


def test_build_measures_every_bucket_that_has_room(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("two.toml").write_text(BUCKETS)
    asked = []

    def measure(model: Any, recipe: str, store: Any, buckets: list[Bucket]) -> dict[Bucket, int]:
        asked.append((recipe, buckets))
        return {bucket: 1000 + bucket.references for bucket in buckets if bucket.frames < 9}

    monkeypatch.setattr("vino_rt.footprint_measured.measure", measure)
    command = ["build", "--recipe", "two.toml", "--store", "s"]
    monkeypatch.setattr("vino_rt.memory.available_bytes", lambda: 1000)
    assert main(command) == 0
    assert capsys.readouterr().out.count("not measured") == 4
    monkeypatch.setattr("vino_rt.memory.available_bytes", lambda: 10**12)
    assert main(command) == 0
    ((recipe, buckets),) = asked
    assert recipe == "two.toml"
    assert sorted((b.frames, b.references) for b in buckets) == [(1, 0), (1, 99), (5, 0), (9, 0)]
    said = capsys.readouterr().out
    assert "memory at 1 x 64x64 (2 branches, 0 reference and 64 text rows each): 1.0 kB measured, at most" in said
    assert said.count("not measured") == 1
    assert main(["inspect", "--recipe", "two.toml", "--store", "s", "--json"]) == 0
    shown = next(event for event in lines(capsys.readouterr().out) if event["event"] == "memory")
    told = {(size["bucket"]["frames"], size["bucket"]["references"]): size["measured"] for size in shown["sizes"]}
    assert told == {(1, 0): 1000, (1, 99): 1099, (5, 0): 1000, (9, 0): None}


def test_debug_shows_the_traceback(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, shown in (([], False), (["--debug"], True)):
        assert main(["inspect", "gone.png", *options]) == 3
        assert ("Traceback" in capsys.readouterr().err) == shown


def test_a_mistake_of_ours_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install_hook(json=True)
    sys.excepthook(KeyError, KeyError("x"), None)
    said = capsys.readouterr()
    assert lines(said.out)[0]["exit_code"] == 1
    assert "run again with --debug" in said.err


def test_version_and_help_load_no_torch() -> None:
    program = (
        "import sys; from vino_rt.cli import main; code = main([sys.argv[1]]); "
        "print(); print(code, sorted({'torch', 'av', 'onnxruntime', 'transformers'} & set(sys.modules)))"
    )
    for option, word in (("--version", "vino-rt "), ("--help", "generate")):
        done = subprocess.run([sys.executable, "-c", program, option], capture_output=True, text=True, check=True)
        assert word in done.stdout
        assert done.stdout.splitlines()[-1] == "0 []"
