"""What a runtime keeps of earlier requests: the same bytes as computed anew, within its budget, found by content."""

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.models import CLIP, HAT, MAN, ask, noise
from vino_rt.cache import CacheStats, ContentCache, digest
from vino_rt.errors import InputError
from vino_rt.model_dir import ModelDir
from vino_rt.request import Reference
from vino_rt.runtime import Runtime


@dataclass(frozen=True, eq=False)
class Held:
    first: Tensor
    rest: tuple[Tensor, ...]


def held(size: int) -> Held:
    return Held(torch.zeros(size), (torch.zeros(size), torch.zeros(2 * size, dtype=torch.int16)))


def filled(number: int) -> Tensor:
    return torch.full((10,), float(number))


def test_content_is_told_apart_by_value_type_and_shape() -> None:
    pixels = noise(3, 4, 3)
    contents: list[Any] = [
        None, "", "None", "a", 0, 1, 1.0, True, (), ((),), ("a", "b"), ("ab",), ("a", ("b",)), pixels, pixels[:2],
        pixels.reshape(4, 3, 3), pixels.astype(np.int16), np.zeros((0, 3)), np.zeros((0, 4)), torch.zeros(2, 3),
        torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.float64), held(1), held(2), (held(1),),
    ]  # fmt: skip
    assert len({digest(content) for content in contents}) == len(contents)
    assert digest(pixels) == digest(pixels.copy()) == digest(np.asfortranarray(pixels))
    assert digest(torch.arange(4.0)) == digest(torch.arange(8.0)[:4])
    assert digest([1, "a"]) == digest((1, "a"))
    with pytest.raises(TypeError, match="type object cannot"):
        digest(object())


def test_the_least_recently_used_go_first() -> None:
    cache = ContentCache(2 * 12 * 10)
    made = [cache.get(("value", number), lambda: held(10)) for number in (1, 2)]
    assert cache.stats == CacheStats(hits=0, misses=2, bytes=240)
    assert cache.get(("value", 1), lambda: held(10)) is made[0]
    cache.get(("value", 3), lambda: held(10))
    assert cache.get(("value", 1), lambda: held(10)) is made[0]
    assert cache.get(("value", 2), lambda: held(10)) is not made[1]
    assert cache.stats == CacheStats(hits=2, misses=4, bytes=240)
    cache.clear()
    assert cache.stats.bytes == 0


def test_what_is_too_large_or_fails_is_not_kept_and_a_limit_of_none_keeps_nothing() -> None:
    cache, none = ContentCache(100), ContentCache(0)
    for _ in range(2):
        cache.get("large", lambda: held(10))
        none.get("small", lambda: held(1))
        with pytest.raises(ZeroDivisionError):
            cache.get("fails", lambda: 1 // 0)
    assert cache.stats == CacheStats(hits=0, misses=2, bytes=0)
    assert none.stats == CacheStats(hits=0, misses=0, bytes=0)


@pytest.fixture
def eager_switches() -> Iterator[None]:
    """Threads take turns every microsecond or so, for the time of a test."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_switches")
def test_threads_get_their_own_values_and_the_budget_holds() -> None:
    threads, rounds, contents, room = 4, 500, 7, 3
    cache = ContentCache(room * 40)
    start = threading.Barrier(threads, timeout=60)

    def ask_often(seed: int) -> int:
        drawn = np.random.default_rng(seed).integers(contents, size=rounds)
        start.wait()
        most = 0
        for number in map(int, drawn):
            value = cache.get(("value", number), partial(filled, number))
            assert value.tolist() == [number] * 10
            most = max(most, cache.stats.bytes)
        return most

    with ThreadPoolExecutor(threads) as pool:
        most = list(pool.map(ask_often, range(threads)))
    assert max(most) <= room * 40
    stats = cache.stats
    assert stats.hits + stats.misses == threads * rounds
    assert stats.hits
    assert stats.misses > contents, "values went and were made anew"
    # The budget is used up, and by values that can still be got: what the bytes count is what is held.
    held_now = 0
    for number in range(contents):
        with suppress(LookupError):
            cache.get(("value", number), not_held)
            held_now += 1
    assert stats.bytes == room * 40 == held_now * 40


def not_held() -> Tensor:
    raise LookupError


def test_the_same_new_content_asked_for_twice_at_once_is_kept_once() -> None:
    cache, both = ContentCache(1000), threading.Barrier(2, timeout=60)

    def make() -> Tensor:
        both.wait()
        return torch.zeros(10)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: cache.get("same", make), range(2))
    assert first is not second
    assert cache.stats == CacheStats(hits=0, misses=2, bytes=40)
    again = cache.get("same", make)
    assert again is first or again is second


@pytest.fixture(scope="module")
def runtimes(tiny_model: ModelDir, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Runtime, Runtime]]:
    """One with a cache and one without."""
    place = tmp_path_factory.mktemp("none")
    with (
        Runtime.open(tiny_model.path, recipe="eager", store=place) as keeps,
        Runtime.open(tiny_model.path, recipe="eager", store=place, cache_bytes=0) as forgets,
    ):
        yield keeps, forgets


def test_cached_values_give_the_same_bytes(runtimes: tuple[Runtime, Runtime]) -> None:
    keeps, forgets = runtimes
    for request in (ask(), ask(HAT, MAN, image_guidance=2.0), ask(HAT, CLIP, frames=5)):
        anew = [forgets.generate(replace(request, seed=seed)).frames for seed in (5, 6)]
        kept = [keeps.generate(replace(request, seed=seed)).frames for seed in (5, 6, 5)]
        assert np.array_equal(kept[0], anew[0])
        assert np.array_equal(kept[1], anew[1])
        assert np.array_equal(kept[2], anew[0])
    assert forgets.cache_stats == CacheStats(0, 0, 0)


def test_each_part_of_a_request_is_cached_by_its_own_content(tiny_model: ModelDir, tmp_path: Path) -> None:
    def asked(**changes: Any) -> tuple[int, int]:
        before, references = runtime.cache_stats, changes.pop("references", (HAT,))
        runtime.generate(ask(*references, **changes))
        return runtime.cache_stats.hits - before.hits, runtime.cache_stats.misses - before.misses

    assert HAT.pixels is not None
    changed = HAT.pixels.copy()
    changed[0, 0, 0] ^= 64
    with Runtime.open(tiny_model.path, recipe="eager", store=tmp_path) as runtime:
        # Hits and misses: all branches together, what the VLM sees of a reference, its latents, a schedule.
        assert asked() == (0, 4)
        assert asked(seed=8) == (3, 0)
        assert asked(prompt="a coat") == (3, 1)
        assert asked(steps=3) == (2, 1)
        assert asked(references=(MAN,)) == (1, 3)
        assert asked(references=(Reference.image(changed),)) == (1, 3)
        # Latents drawn from their distribution depend on the seed.
        assert asked(sample_posterior=True) == (2, 0)
        assert asked() == (3, 0)


@pytest.mark.parametrize("limit", [-1, 1.5, "256"])
def test_a_limit_that_is_none_is_refused(tiny_model: ModelDir, tmp_path: Path, limit: Any) -> None:
    with pytest.raises(InputError, match="cache_bytes is"):
        Runtime.open(tiny_model.path, recipe="eager", store=tmp_path, cache_bytes=limit)
