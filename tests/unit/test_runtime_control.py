"""The runtime under its caller's hand: progress, cancel, failures, close, memory over many requests."""

import gc
import resource
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.models import BOTH, HAT, MAN, VIDEO, Get, ask, noise
from vino_rt.backends.base import Engine
from vino_rt.engines import kinds_of
from vino_rt.errors import Cancelled, InputError, MediaError, OutOfMemory, UsageError
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.conditioner import Conditioner
from vino_rt.progress import Progress
from vino_rt.request import Reference, Request
from vino_rt.result import Result
from vino_rt.runtime import Runtime, on_device


@BOTH
def test_progress_is_complete_and_in_order(get: Get, recipe: str) -> None:
    told: list[Progress] = []
    where: list[int] = []

    def hear(progress: Progress) -> None:
        told.append(progress)
        where.append(threading.get_ident())

    get(recipe).generate(
        ask(HAT, MAN, base_image=True, image_guidance=2.0, steps=3, frames=17, task="ti2v"), on_step=hear
    )
    layers, references = get(recipe).model.vlm_config.text.num_hidden_layers - 1, 2
    stages = {"prepare": 1, "condition": 1 + layers + 1 + references, "denoise": 3, "decode": 2}
    expected = [Progress(name, done, total) for name, total in stages.items() for done in range(total + 1)]
    assert told == [progress for progress in expected if progress != Progress("decode", 0, 2)]
    assert set(where) == {threading.get_ident()}


@BOTH
@pytest.mark.parametrize(
    ("stage", "done"),
    [
        ("prepare", 0),
        ("condition", 0),
        ("condition", 2),
        ("condition", 4),
        ("denoise", 0),
        ("denoise", 2),
        ("decode", 1),
    ],
)
def test_cancel_ends_at_once(get: Get, stage: str, done: int, recipe: str) -> None:
    cancel, told = threading.Event(), list[Progress]()

    def hear(progress: Progress) -> None:
        told.append(progress)
        if (progress.stage, progress.done) == (stage, done):
            cancel.set()

    with pytest.raises(Cancelled):
        get(recipe).generate(ask(prompt=f"until {stage} {done}", steps=4), on_step=hear, cancel=cancel)
    assert (told[-1].stage, told[-1].done) == (stage, done), "it went on after the flag was set"
    assert get(recipe).generate(ask()).frames.shape == (1, 48, 64, 3)


def test_cancel_from_another_thread_ends_within_a_step(get: Get) -> None:
    cancel, started, told = threading.Event(), threading.Event(), list[Progress]()

    def hear(progress: Progress) -> None:
        told.append(progress)
        if progress == Progress("denoise", 1, 1000):
            started.set()

    def stop() -> None:
        assert started.wait(60)
        cancel.set()

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(Cancelled):
        get("cpu").generate(ask(steps=1000), on_step=hear, cancel=cancel)
    assert told[-1].stage == "denoise"
    assert told[-1].done < 200


def test_cancel_before_it_starts_and_while_waiting(get: Get) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Cancelled):
        get("cpu").generate(ask(), cancel=cancelled)
    inside, release = threading.Event(), threading.Event()
    done: list[Result] = []

    def hold(progress: Progress) -> None:
        if progress.stage == "denoise":
            inside.set()
            assert release.wait(60)

    holder = threading.Thread(target=lambda: done.append(get("cpu").generate(ask(), on_step=hold)))
    holder.start()
    assert inside.wait(60)
    try:
        cancel, told = threading.Event(), list[Progress]()
        threading.Timer(0.1, cancel.set).start()
        start = time.monotonic()
        with pytest.raises(Cancelled):
            get("cpu").generate(ask(), on_step=told.append, cancel=cancel)
        assert time.monotonic() - start < 10
        assert told == []
    finally:
        release.set()
        holder.join(60)
    assert done[0].frames.tobytes() == get("cpu").generate(ask()).frames.tobytes()


class Stop(Exception):
    """What a callback of ours raises."""


@BOTH
def test_failures_leave_the_runtime_usable(get: Get, recipe: str, tmp_path: Path) -> None:
    before = get(recipe).generate(ask()).frames

    def fail(progress: Progress) -> None:
        if progress.stage == "denoise":
            raise Stop

    with pytest.raises(Stop):
        get(recipe).generate(ask(), on_step=fail)
    for request, error in (
        (ask(Reference.image(tmp_path / "absent.png")), MediaError),
        (ask(Reference.video(noise(3, 32, 32, 3))), InputError),
        (ask(size=(63, 48)), InputError),
        (ask(frames=93, size=(64, 48)), InputError),
    ):
        with pytest.raises(error):
            get(recipe).generate(request)
    assert np.array_equal(get(recipe).generate(ask()).frames, before)


def test_weights_that_do_not_fit_are_told(tiny_model: ModelDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 26.00 GiB")

    monkeypatch.setattr("vino_rt.runtime.open_engines", full)
    with pytest.raises(OutOfMemory, match="memory ran out; take a recipe of fewer bits"):
        Runtime.open(tiny_model.path, recipe="eager")


def test_a_request_s_thread_gets_the_gpu_of_the_runtime(tiny_model: ModelDir, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[object] = []

    class Chosen:
        def __init__(self, device: object) -> None:
            chosen.append(device)

        def __enter__(self) -> None:
            raise UsageError("it was chosen")

        def __exit__(self, *_: object) -> None:
            pytest.fail("never entered")

    with Runtime.open(tiny_model.path, recipe="eager") as runtime:
        monkeypatch.setattr(torch.cuda, "device", Chosen)
        with pytest.raises(UsageError, match="it was chosen"):
            runtime.generate(Request(prompt=""))
        with pytest.raises(UsageError, match="it was chosen"), on_device(torch.device("cuda", 3)):
            pytest.fail("never entered")
    assert chosen == [-1, torch.device("cuda", 3)]


def test_closed(tiny_model: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[Any]] = []
    for owner in (Engine, Conditioner):
        begin = owner.__init__

        def remember(self: Any, *given: Any, _begin: Any = begin, **named: Any) -> None:
            _begin(self, *given, **named)
            held.append(weakref.ref(self))

        monkeypatch.setattr(owner, "__init__", remember)
    with Runtime.open(tiny_model.path, recipe="eager", store=tmp_path) as runtime:
        assert len(held) > len(kinds_of(tiny_model))
        runtime.generate(ask(steps=1))
        inside, closed = threading.Event(), threading.Thread(target=runtime.close)

        def close_now(progress: Progress) -> None:
            if progress == Progress("denoise", 1, 2):
                closed.start()
                inside.set()

        assert runtime.generate(ask(), on_step=close_now).frames.shape == (1, 48, 64, 3), "close did not wait"
        closed.join(60)
        assert inside.is_set()
    with pytest.raises(UsageError, match="closed"):
        runtime.generate(ask())
    runtime.close()
    gc.collect()
    assert not [reference for reference in held if reference() is not None], "weights outlive close"


@BOTH
def test_memory_does_not_grow(get: Get, recipe: str) -> None:
    requests = [ask(HAT, image_guidance=2.0), VIDEO, ask(MAN, size=None)]

    def run(times: int) -> tuple[int, int]:
        for number in range(times):
            get(recipe).generate(requests[number % len(requests)])
        gc.collect()
        tensors = sum(type(thing) is torch.Tensor for thing in gc.get_objects())
        return tensors, int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    (tensors, resident), (tensors_after, resident_after) = run(6), run(20)
    assert tensors_after == tensors, "tensors of a request outlive it"
    assert resident_after - resident < 6 * 2**20


@pytest.mark.parametrize("what", ["generate", "close"])
def test_a_call_from_a_callback_is_refused(eager: Runtime, what: str) -> None:
    def call(progress: Progress) -> None:
        if what == "close":
            eager.close()
        eager.generate(Request(prompt="inner", steps=1))

    with pytest.raises(UsageError, match=f"{what} was called from a callback"):
        eager.generate(Request(prompt="outer", steps=1), on_step=call)
    assert eager.generate(Request(prompt="after", steps=1, seed=1)).frames.shape == (1, 48, 64, 3)


@pytest.mark.parametrize(
    ("prompt", "message"), [("<|image_pad|>", "reserved"), ("\N{GRINNING FACE}" * 15_000, "tokens")]
)
def test_a_prompt_is_refused_before_references_are_encoded(
    eager: Runtime, monkeypatch: pytest.MonkeyPatch, prompt: str, message: str
) -> None:
    encoded: list[torch.Tensor] = []

    def encode(pixels: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        encoded.append(pixels)
        raise Stop

    monkeypatch.setattr("vino_rt.pipeline.encode_video", encode)
    picture = Reference.image(noise(31, 47, 3))
    with pytest.raises(InputError, match=message):
        eager.generate(ask(picture, prompt=prompt))
    assert not encoded
    with pytest.raises(Stop):
        eager.generate(ask(picture))
    assert len(encoded) == 1


def test_a_decode_that_fitted_once_is_not_refused_later(
    tiny_model: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 10**12
    monkeypatch.setattr("vino_rt.memory.available_bytes", lambda: free)
    with Runtime.open(tiny_model.path, recipe="eager", store=tmp_path) as runtime:
        first = runtime.generate(ask(steps=1)).frames
        # As where a library keeps what the decode took.
        free = 0
        assert np.array_equal(runtime.generate(ask(steps=1)).frames, first)
        assert runtime.generate(ask(steps=1, size=(32, 16))).frames.shape == (1, 16, 32, 3)
        with pytest.raises(OutOfMemory, match="decoding this size needs up to"):
            runtime.generate(ask(steps=1, frames=5, size=(64, 48)))
