"""Requests on a CUDA device: near those of the CPU, and the same bytes whether a step is replayed or launched."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from vino_rt.backends.recipe import load_recipe
from vino_rt.backends.store import Store
from vino_rt.engines import open_engines
from vino_rt.errors import Cancelled, OutOfMemory
from vino_rt.model_dir import ModelDir
from vino_rt.progress import Progress
from vino_rt.request import Pixels, Reference, Request
from vino_rt.runtime import Runtime

pytestmark = pytest.mark.gpu
PIXELS = torch.randint(0, 256, (32, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
PICTURE = Reference("image", pixels=PIXELS)
REQUESTS = (
    Request(prompt="a red square", size=(64, 32), frames=5, steps=3, seed=7),
    # The same shapes once more: what was recorded must take another request.
    Request(prompt="a red circle", size=(64, 32), frames=5, steps=3, seed=8, guidance=2.0),
    Request(prompt="turn it blue", references=(PICTURE,), size=(64, 32), frames=1, steps=3, seed=9),
)


def frames(model: ModelDir, store: Store, recipe: str, **changes: object) -> list[Pixels]:
    chosen = replace(load_recipe(recipe), **changes)  # type: ignore[arg-type]
    with Runtime(model, chosen, open_engines(model, chosen, store, 1)) as runtime:
        return [runtime.generate(request).frames for request in REQUESTS]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def replayed(tiny_model: ModelDir, store: Store) -> list[Pixels]:
    return frames(tiny_model, store, "cuda")


def test_near_the_judge_on_the_cpu(tiny_model: ModelDir, store: Store, replayed: list[Pixels]) -> None:
    for judge, got in zip(frames(tiny_model, store, "eager"), replayed, strict=True):
        wrong = abs(judge.astype(int) - judge[:, ::-1].astype(int)).mean()
        assert abs(judge.astype(int) - got.astype(int)).mean() < 0.1 * wrong


def test_replaying_equals_launching(tiny_model: ModelDir, store: Store, replayed: list[Pixels]) -> None:
    launched = frames(tiny_model, store, "cuda", cuda_graphs=False)
    assert all((one == other).all() for one, other in zip(launched, replayed, strict=True))


def test_plain_operations_on_a_gpu(tiny_model: ModelDir, store: Store) -> None:
    changes = {"backend": "eager", "precision": "float32", "precisions": {}, "cuda_graphs": False}
    for judge, got in zip(
        frames(tiny_model, store, "eager"), frames(tiny_model, store, "cuda", **changes), strict=True
    ):
        assert abs(judge.astype(int) - got.astype(int)).mean() < 1


@pytest.fixture(scope="module")
def recording(tiny_model: ModelDir, store: Store) -> Iterator[Runtime]:
    """One runtime that has recorded the steps of all requests."""
    with Runtime.open(tiny_model.path, recipe="cuda", store=store.path) as runtime:
        for request in REQUESTS:
            runtime.generate(request)
        yield runtime


def assert_same(runtime: Runtime, expected: list[Pixels]) -> None:
    for request, frames in zip(REQUESTS, expected, strict=True):
        assert (runtime.generate(request).frames == frames).all()


def test_a_cancelled_request_leaves_nothing_behind(recording: Runtime, replayed: list[Pixels]) -> None:
    cancel = threading.Event()

    def stop(progress: Progress) -> None:
        if progress.stage == "denoise" and progress.done:
            cancel.set()

    with pytest.raises(Cancelled):
        recording.generate(REQUESTS[0], on_step=stop, cancel=cancel)
    assert_same(recording, replayed)


def test_another_thread_gets_the_same(recording: Runtime, replayed: list[Pixels]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(assert_same, recording, replayed).result()


def test_memory_does_not_grow(recording: Runtime, replayed: list[Pixels]) -> None:
    assert_same(recording, replayed)
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for _ in range(2):
        assert_same(recording, replayed)
    after = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    assert after[0] <= before[0]
    assert after[1] <= before[1]


@contextmanager
def full_gpu() -> Iterator[None]:
    """Nothing more can be had than PyTorch has now."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-5)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_request_that_does_not_fit_leaves_the_runtime_usable(recording: Runtime, replayed: list[Pixels]) -> None:
    large = replace(REQUESTS[0], size=(64, 48), frames=89)
    with full_gpu(), pytest.raises(OutOfMemory):
        recording.generate(large)
    assert_same(recording, replayed)
    assert recording.generate(large).frames.shape == (89, 48, 64, 3)
