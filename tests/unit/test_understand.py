"""Captions: greedy text equals the likeliest next token of the very states that condition, one at a time or many."""

import json
import signal
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.unit.clips import plain, write_video
from vino_rt.cli import main
from vino_rt.commands.report import Reporter
from vino_rt.errors import Cancelled, InputError, ModelError
from vino_rt.media_write import write_media
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.prompt import ProcessedInput, VlmInput
from vino_rt.models.vino.vlm import VlmParts
from vino_rt.progress import Progress
from vino_rt.request import Reference
from vino_rt.train.vlm_batch import collate, run_layers
from vino_rt.understand import Captioner, load_vlm

TOKENS = 5


def noise(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def captioner(tiny_model: ModelDir) -> Captioner:
    torch.set_num_threads(1)
    return Captioner.open(tiny_model)


@pytest.fixture(scope="module")
def inputs() -> list[VlmInput]:
    return [
        VlmInput("What is it?"),
        VlmInput("", (noise(64, 64, 3),)),
        VlmInput("And now both, in a longer question.", (noise(48, 64, 3), noise(96, 32, 3))),
        VlmInput("A clip.", (noise(32, 96, 3),), noise(8, 45, 83, 3)),
    ]


@torch.inference_mode()
def greedy(captioner: Captioner, given: ProcessedInput) -> list[int]:
    """Without a cache: the whole sequence again for every token, through our own layers."""
    parts = VlmParts.of_whole(load_vlm(captioner.model))
    found: list[int] = []
    for _ in range(TOKENS):
        ids = torch.cat((given.input_ids, torch.tensor(found, dtype=torch.int64)))
        whole = ProcessedInput(ids, given.pixel_values, given.image_grids, given.pixel_values_videos, given.video_grids)
        states = run_layers(parts, collate([whole], captioner.processor.tokenizer.vision))[0, -1]
        found.append(int(captioner.vlm.logits(states).argmax()))
    return found


def test_greedy_is_the_likeliest_token_of_our_own_states(captioner: Captioner, inputs: list[VlmInput]) -> None:
    together = captioner.describe_many(inputs, max_tokens=TOKENS)
    for given, said in zip(inputs, together, strict=True):
        tokens = greedy(captioner, captioner.processor(given))
        assert said == captioner.processor.tokenizer.decode(tokens).strip()
    assert together == [captioner.describe_many([each], max_tokens=TOKENS)[0] for each in inputs]
    assert together == captioner.describe_many(inputs, max_tokens=TOKENS, batch=3)
    assert captioner.describe_many([]) == []


def test_a_file_is_seen_as_its_pixels_are(captioner: Captioner, tmp_path: Path) -> None:
    Image.fromarray(noise(48, 64, 3)).save(tmp_path / "a.png")
    said = captioner.understand([Reference.image(tmp_path / "a.png")], max_tokens=TOKENS)
    assert said == captioner.understand([Reference.image(noise(48, 64, 3))], "Describe the image.", max_tokens=TOKENS)
    with pytest.raises(InputError, match="nothing to look at"):
        captioner.understand([])
    with pytest.raises(InputError, match="max_tokens is 0; legal are 1 to"):
        captioner.describe_many([], max_tokens=0)


def test_progress_is_complete_and_in_order(captioner: Captioner) -> None:
    told: list[Progress] = []
    captioner.understand([Reference.image(noise(48, 64, 3))], max_tokens=TOKENS, on_step=told.append)
    parts = 1 + captioner.vlm.config.text.num_hidden_layers
    read = [Progress("read", done, parts) for done in range(1, parts + 1)]
    answer = told[len(read) :]
    assert told[: len(read)] == read
    assert answer == [Progress("answer", done, TOKENS) for done in range(1, len(answer) + 1)]
    assert answer


@pytest.mark.parametrize(("stage", "done"), [("read", 1), ("read", 3), ("answer", 1)])
def test_cancel_ends_at_once(captioner: Captioner, stage: str, done: int) -> None:
    cancel, told = threading.Event(), list[Progress]()

    def hear(progress: Progress) -> None:
        told.append(progress)
        if (progress.stage, progress.done) == (stage, done):
            cancel.set()

    for _ in range(2):  # The second call finds the flag set.
        with pytest.raises(Cancelled):
            captioner.understand([Reference.image(noise(48, 64, 3))], max_tokens=TOKENS, on_step=hear, cancel=cancel)
        assert (told[-1].stage, told[-1].done) == (stage, done), "it went on after the flag was set"


def test_the_command_shows_progress_and_is_cancelled(
    captioner: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(noise(48, 64, 3)).save(tmp_path / "a.png")
    monkeypatch.setattr(Captioner, "open", lambda _: captioner)
    options = (tmp_path / "a.png", "--model", captioner.model.path, "--max-tokens", TOKENS)
    code, lines, err = command(capsys, *options)
    assert (code, len(lines)) == (0, 1)
    assert "read: 6 of 6" in err.splitlines()

    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Reporter, "_line", interrupt)
    code, lines, err = command(capsys, *options)
    assert (code, lines) == (130, [])
    assert err.startswith("cancelled")


def test_weights_of_another_config(tiny_model: ModelDir, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny_model.path, tmp_path / "model")
    file = tmp_path / "model" / "vlm" / "model.safetensors"
    weights = load_file(file)
    weights["other.weight"] = weights.pop("model.language_model.norm.weight")
    save_file(weights, file)
    broken = replace(tiny_model, path=tmp_path / "model")
    with pytest.raises(ModelError, match=r"model\.language_model\.norm\.weight"):
        load_vlm(broken)


def test_a_config_without_an_end(captioner: Captioner, tiny_model: ModelDir) -> None:
    text = {name: value for name, value in tiny_model.vlm["text_config"].items() if name != "eos_token_id"}
    model = replace(tiny_model, vlm={**tiny_model.vlm, "text_config": text})
    with pytest.raises(ModelError, match="both must be token ids"):
        Captioner(captioner.vlm, captioner.processor, model).describe_many([VlmInput("x")], max_tokens=1)


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str], str]:
    code = main(["understand", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


def test_command(tiny_model: ModelDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, clip = tmp_path / "a.png", tmp_path / "b.mp4"
    Image.fromarray(noise(48, 64, 3)).save(image)
    write_media(noise(9, 48, 64, 3), clip, fps=8, metadata={}, overwrite=False)
    options = ("--model", tiny_model.path, "--max-tokens", TOKENS)
    code, lines, _ = command(capsys, image, clip, *options)
    assert code == 0
    assert [line.partition(":")[0] for line in lines] == [str(image), str(clip)]
    code, lines, _ = command(capsys, image, clip, "--prompt", "Which one?", "--json", *options)
    *steps, event = map(json.loads, lines)
    assert code == 0
    assert {step["stage"] for step in steps} == {"read", "answer"}
    assert (event["event"], event["paths"], event["prompt"]) == ("answer", [str(image), str(clip)], "Which one?")
    references = [Reference.image(image), Reference.video(clip)]
    assert event["text"] == Captioner.open(tiny_model).understand(references, "Which one?", max_tokens=TOKENS)


def test_files_are_told_by_what_they_hold(
    tiny_model: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Videos of any container or name and animations are videos; one frame is a picture."""
    codecs = {"3gp": "libx264", "mpg": "mpeg1video", "wmv": "wmv2", "flv": "flv", "m2ts": "libx264"}
    for suffix, codec in codecs.items():
        write_video(tmp_path / f"a.{suffix}", plain(5), codec)
    write_video(tmp_path / "a.mp4", plain(5)).rename(tmp_path / "a")
    for suffix in ("gif", "png"):
        frames = [Image.fromarray(frame) for frame in plain(3)]
        frames[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=frames[1:])
        frames[0].save(tmp_path / f"still.{suffix}")
    asked: list[Reference] = []

    def answer(references: list[Reference], *_: object, **__: object) -> str:
        asked.extend(references)
        return "x"

    monkeypatch.setattr(Captioner, "open", lambda _: SimpleNamespace(understand=answer))
    assert command(capsys, *tmp_path.iterdir(), "--model", tiny_model.path)[0] == 0
    stills = {reference.path for reference in asked if reference.kind == "image"}
    assert stills == {tmp_path / "still.gif", tmp_path / "still.png"}
    assert len(asked) == 10


@pytest.mark.parametrize(
    ("files", "message", "code"),
    [
        (["none.png"], "none.png: cannot be opened", 3),
        (["text.png"], "is not a video, or is damaged or cut off", 3),
        (["moving.webp"], "HEIC and WebP are not read as videos; save it as MP4", 3),
        (["a.mp4", "a.mp4", "--prompt", "x"], "2 videos with one --prompt", 2),
        (["ok.png", "--prompt", "<|image_pad|>"], "which is reserved for references", 3),
    ],
)
def test_bad_files(
    files: list[str], message: str, code: int, tiny_model: ModelDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(noise(48, 64, 3)).save(tmp_path / "ok.png")
    Image.new("L", (9, 9)).save(tmp_path / "moving.webp", save_all=True, append_images=[Image.new("L", (9, 9), 99)])
    write_video(tmp_path / "a.mp4", plain(2))
    given = [str(tmp_path / name) if "." in name else name for name in files]
    found, _, err = command(capsys, *given, "--model", tiny_model.path)
    assert found == code
    assert message in err
