"""The runtime end to end on the tiny golden model: golden frames, every task, determinism, buckets, tiling."""

import dataclasses
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.parity.measure import PIPELINE
from tests.unit.models import BOTH, CLIP, COMPILES, EVERY, HAT, MAN, VIDEO, Built, Get, ask
from vino_rt import pipeline
from vino_rt.errors import EngineError, InputError
from vino_rt.model_dir import ModelDir
from vino_rt.noise import draw_noise
from vino_rt.progress import Progress
from vino_rt.request import Pixels, Reference, Request
from vino_rt.runtime import Runtime
from vino_rt.tiling import Tiling

ROOT = Path(__file__).parents[2]
GOLDEN = {
    "pipeline_t2i_cfg": Request(prompt="A cinematic photo of a baseball.", seed=666, steps=4),
    "pipeline_t2v_cfg": Request(
        prompt="A dynamic rally car speeding through a dense forest track.", frames=17, size=(48, 32), seed=666, steps=4
    ),
}


TASKS: dict[str, tuple[Request, tuple[int, int, int]]] = {
    "t2i": (ask(), (1, 48, 64)),
    "t2v": (VIDEO, (5, 16, 32)),
    "i2v": (ask(HAT, frames=5), (5, 48, 64)),
    "ti2v": (ask(HAT, MAN, frames=5, size=(32, 48)), (5, 48, 32)),
    "ti2i": (ask(HAT, MAN, base_image=True, image_guidance=3.0), (1, 96, 32)),
    "tv2v": (ask(CLIP), (9, 48, 64)),
    "tiv2v": (ask(MAN, CLIP, frames=5, image_guidance=2.0), (5, 48, 64)),
    "clone": (ask(HAT, CLIP, task="clone", frames=5), (5, 48, 64)),
}


@BOTH
@pytest.mark.parametrize("case", GOLDEN)
def test_golden_frames(get: Get, golden: Path, case: str, recipe: str) -> None:
    result = get(recipe).generate(GOLDEN[case])
    outputs = load_file(golden / case / "outputs.safetensors")
    assert result.frames.shape == outputs["frames_uint8"][0].shape
    assert result.frames.dtype == np.uint8
    # A byte is a truncated float: it may be another only where the golden float lies within the pipeline's limit of it.
    levels = outputs["video"][0].permute(1, 2, 3, 0).double().clamp(-1, 1) * 127.5 + 127.5
    least, most = ((levels + off).clamp(0, 255).floor().numpy() for off in (-127.5 * PIPELINE, 127.5 * PIPELINE))
    assert np.all(least <= result.frames)
    assert np.all(result.frames <= most)


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_noise(get: Get, golden: Path, case: str) -> None:
    settings = get("eager").generate(GOLDEN[case]).settings
    assert torch.equal(draw_noise(settings, 4), load_file(golden / case / "inputs.safetensors")["noise"][0])


@EVERY
@pytest.mark.parametrize("task", TASKS)
def test_every_task(get: Get, task: str, recipe: str) -> None:
    request, shape = TASKS[task]
    result = get(recipe).generate(request)
    assert result.frames.shape == (*shape, 3)
    assert result.frames.std() > 1
    assert result.settings.task == {"clone": "tiv2v"}.get(task, task)
    assert (result.settings.frames, result.settings.height, result.settings.width) == shape
    assert result.fps == (12.5 if request.video else 24)
    assert result.seed == result.settings.seed == 5
    assert set(result.timings) == {"prepare", "condition", "denoise", "decode"}
    assert min(result.timings.values()) > 0


@pytest.mark.parametrize("recipe", ["cpu", pytest.param("aotinductor", marks=COMPILES)])
def test_recipes_agree_within_one_level(get: Get, recipe: str) -> None:
    for request, _ in (TASKS["ti2i"], TASKS["t2v"]):
        one, two = (get(name).generate(request).frames.astype(int) for name in (recipe, "eager"))
        assert np.abs(one - two).max() <= 1


CHANGES: dict[str, Request] = {
    "prompt": ask(HAT, MAN, prompt="a cat"), "seed": ask(HAT, MAN, seed=6), "steps": ask(HAT, MAN, steps=3),
    "guidance": ask(HAT, MAN, guidance=2.0), "unguided": ask(HAT, MAN, guidance=1.0), "order": ask(MAN, HAT),
    "image_guidance": ask(HAT, MAN, image_guidance=2.5), "negative": ask(HAT, MAN, negative="a dog"),
    "sampled": ask(HAT, MAN, sample_posterior=True), "fewer": ask(MAN),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_everything_that_is_asked_for_matters(get: Get, change: str) -> None:
    plain, changed = (get("cpu").generate(request).frames for request in (ask(HAT, MAN), CHANGES[change]))
    assert plain.shape != changed.shape or (plain != changed).mean() > 0.01


@EVERY
def test_same_bytes_twice_and_from_two_threads(get: Get, recipe: str) -> None:
    requests = [ask(HAT, MAN, image_guidance=2.0, sample_posterior=True), VIDEO, ask(CLIP)]
    alone = [get(recipe).generate(request).frames for request in requests]
    results: dict[int, list[Pixels]] = {0: [], 1: []}

    def run(thread: int) -> None:
        for request in requests[::-1] if thread else requests:
            results[thread].append(get(recipe).generate(request).frames)

    threads = [threading.Thread(target=run, args=(number,)) for number in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for frames in (results[0], results[1][::-1]):
        assert [one.tobytes() for one in frames] == [one.tobytes() for one in alone]


def test_sampled_references_follow_the_seed(get: Get) -> None:
    def run(seed: int) -> bytes:
        return get("cpu").generate(ask(HAT, seed=seed, sample_posterior=True)).frames.tobytes()

    assert run(5) == run(5)
    assert run(5) != run(6)


def test_references_in_memory_equal_files(get: Get, golden: Path) -> None:
    path = golden / "pipeline_ti2i_dualcfg" / "img0.png"
    pixels = np.asarray(Image.open(path).convert("RGB"))
    one, two = (get("cpu").generate(ask(Reference.image(source))).frames for source in (path, pixels))
    assert np.array_equal(one, two)


def test_spatial_tiling(monkeypatch: pytest.MonkeyPatch, get: Get) -> None:
    def small(spatial: bool) -> Tiling:
        return Tiling(spatial=spatial, size=32, stride=24)

    plain, same = get("cpu").generate(ask(HAT)).frames, get("cpu").generate(ask(HAT, spatial_tiling=True)).frames
    assert np.array_equal(plain, same), "frames smaller than a tile are not cut"
    monkeypatch.setattr(pipeline, "Tiling", small)
    told: list[Progress] = []
    tiled = get("cpu").generate(ask(HAT, spatial_tiling=True), on_step=told.append).frames
    assert tiled.shape == plain.shape
    assert not np.array_equal(tiled, plain)
    assert told[-1] == Progress("decode", 6, 6)
    assert np.array_equal(get("cpu").generate(ask(HAT)).frames, plain)


BUCKET = "[[bucket]]\nframes = {}\nheight = 48\nwidth = 64\nreferences = {}\ntext_tokens = {}\nbranches = {}\n"
HEAD = (
    'description = "x"\ndevice = "cpu"\nprecision = "float32"\nbackend = "onnxruntime"\n[kinds]\nmodulation = "eager"\n'
)


def test_padding_to_a_bucket_changes_nothing(tiny_model: ModelDir, built: Built, tmp_path: Path, get: Get) -> None:
    path = tmp_path / "buckets.toml"
    path.write_text(HEAD + BUCKET.format(1, 0, 311, 2) + BUCKET.format(1, 17, 401, 2) + BUCKET.format(5, 40, 500, 3))
    with Runtime.open(tiny_model.path, recipe=path, store=built.store.path, threads=1) as runtime:
        for request in (GOLDEN["pipeline_t2i_cfg"], ask(HAT)):
            padded, exact = runtime.generate(request).frames.astype(int), get("cpu").generate(request).frames
            assert np.abs(padded - exact).max() <= 1
        with pytest.raises(InputError, match="no bucket for 1 frames of 32x32"):
            runtime.generate(ask(size=(32, 32)))
        with pytest.raises(InputError, match=r"needs 56 reference and 321 text rows in its 2 branches together"):
            runtime.generate(ask(MAN, HAT))
    path.write_text(HEAD + BUCKET.format(1, 0, 311, 2) + "colour = 3\n")
    with pytest.raises(EngineError, match="unknown fields: colour; the fields are frames"):
        Runtime.open(tiny_model.path, recipe=path, store=built.store.path)


def test_result_is_saved_with_its_settings(get: Get, tmp_path: Path) -> None:
    result = get("cpu").generate(ask())
    path = result.save(tmp_path / "out.png")
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), result.frames[0])
        text = str(getattr(image, "text", {}))
    assert "'5'" in text or "5" in text
    assert "a hat" in text


def test_short_and_long_sequences_give_the_same_picture(cpu: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pack_rows` of a recipe decides how branches share sequences, not what comes out beyond rounding."""
    request = ask(MAN, image_guidance=3.0)
    pictures = []
    for rows in (None, 1):
        monkeypatch.setattr(cpu, "recipe", dataclasses.replace(cpu.recipe, pack_rows=rows))
        pictures.append(cpu.generate(request).frames.astype(int))
    assert abs(pictures[0] - pictures[1]).max() <= 1


def test_a_picture_needs_no_slow_import(tiny_model: ModelDir, built: Built) -> None:
    slow = {"diffusers", "transformers", "onnx", "torch._dynamo", "torch._inductor"}
    program = (
        "import sys; from vino_rt.request import Request; from vino_rt.runtime import Runtime\n"
        f"with Runtime.open({str(tiny_model.path)!r}, store={str(built.store.path)!r}, threads=1) as runtime:\n"
        "    runtime.generate(Request(prompt='x', steps=1, seed=0))\n"
        f"print(sorted({slow!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
