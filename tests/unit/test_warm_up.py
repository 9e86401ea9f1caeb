"""Warming up: which shapes it runs, what it leaves behind, and that later requests find their steps recorded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from tests.unit.models import HAT, MAN, ask, noise
from vino_rt.backends.recipe import load_recipe
from vino_rt.backends.store import Store
from vino_rt.bucket import Bucket
from vino_rt.decode import to_uint8
from vino_rt.engines import open_engines
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.blocks import DUAL_MODULATIONS, SINGLE_MODULATIONS
from vino_rt.plan import Plan, pack
from vino_rt.request import Reference, Request
from vino_rt.runtime import Runtime
from vino_rt.step import StepCache, Work


def test_warming_up_leaves_default_schedules_alone_and_changes_nothing(tiny_model: ModelDir, tmp_path: Path) -> None:
    with Runtime.open(tiny_model.path, recipe="eager", store=tmp_path) as plain:
        expected = plain.generate(ask()).frames
    decoded: list[tuple[int, ...]] = []

    def hear(pixels: Tensor) -> Tensor:
        decoded.append(tuple(pixels.shape[2:]))
        return to_uint8(pixels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vino_rt.pipeline.to_uint8", hear)
        runtime = Runtime.open(tiny_model.path, recipe="eager", store=tmp_path, warm=True)
    with runtime:
        width, height = tiny_model.settings.default_size
        assert decoded == [(tiny_model.settings.default_frames, height, width), (1, height, width)]
        assert runtime.cache_stats.bytes == table_bytes(tiny_model)
        hits = runtime.cache_stats.hits
        assert np.array_equal(runtime.generate(ask()).frames, expected)
        assert runtime.cache_stats.hits == hits, "a prompt was kept"
        runtime.generate(ask(steps=None))
        assert runtime.cache_stats.hits == hits + 2, "of this prompt and of the model's own schedule"


def table_bytes(model: ModelDir) -> int:
    """Of the model's schedules for pictures and for clips, in float32."""
    own, schedules = model.transformer, len({model.settings.image.shift, model.settings.video.shift})
    rows = DUAL_MODULATIONS * own.num_layers + SINGLE_MODULATIONS * own.num_single_layers + 3
    return schedules * model.settings.steps * rows * own.width * 4


def test_warming_up_fills_every_bucket(tiny_model: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of a size that no prompt alone would take, with one branch or three."""
    fields = ({"references": 0}, {"references": 40}, {"frames": 5, "branches": 1}, {"frames": 9, "branches": 3})
    usual = {"frames": 1, "height": 48, "width": 64, "references": 17, "text_tokens": 311}
    buckets = tuple(Bucket(**{**usual, **each}) for each in fields)
    recipe, packed = replace(load_recipe("eager"), buckets=buckets), list[tuple[int, int, int]]()

    def spy(*given: Any, **lengths: Any) -> Plan:
        plan = pack(*given, **lengths)
        packed.append((len(plan.branches), plan.image_tokens, plan.text_tokens))
        return plan

    decoded: list[tuple[int, ...]] = []

    def hear(pixels: Tensor) -> Tensor:
        decoded.append(tuple(pixels.shape[2:]))
        return to_uint8(pixels)

    monkeypatch.setattr("vino_rt.pipeline.to_uint8", hear)
    monkeypatch.setattr("vino_rt.pipeline.pack", spy)
    with Runtime(tiny_model, recipe, open_engines(tiny_model, recipe, Store(tmp_path), None)) as runtime:
        runtime.warm_up()
        assert runtime.cache_stats.bytes == table_bytes(tiny_model)
    assert sorted(decoded) == [(1, 48, 64), (5, 48, 64), (9, 48, 64)], "a size is decoded more than once"
    rows = [2 * 12, 2 * (40 + 12), 17 + 2 * 12, 3 * (17 + 3 * 12)]
    filled = [(b.branches, r, b.branches * 311) for b, r in zip(buckets, rows, strict=True)]
    assert packed == sorted(filled, key=lambda each: each[1] + each[2], reverse=True)


def test_a_step_recorded_while_warming_up_serves_its_bucket(
    tiny_model: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever references a request has and how many steps; and to the bit what a step of its own gives."""
    usual = {"frames": 1, "height": 48, "width": 64, "text_tokens": 700}
    buckets = tuple(Bucket(**usual, references=rows) for rows in (0, 40))
    recipe = replace(load_recipe("eager"), buckets=buckets)
    engines, recorded = open_engines(tiny_model, recipe, Store(tmp_path), None), list[Work]()
    requests = [Request(prompt="a hat", size=(64, 48), frames=1, steps=2, seed=3)]
    for steps, references in ((2, (HAT,)), (3, (Reference.image(noise(53, 171, 3)), HAT)), (4, (MAN, HAT))):
        requests.append(Request(prompt="a hat", references=references, frames=1, steps=steps, seed=3))

    def record(work: Work) -> Work:
        recorded.append(work)
        work()
        return work

    with Runtime(tiny_model, recipe, engines) as runtime:
        expected = [runtime.generate(request).frames for request in requests]
    monkeypatch.setattr("vino_rt.pipeline.open_steps", lambda _: StepCache(2, record, room=4))
    with Runtime(tiny_model, recipe, engines) as runtime:
        runtime.warm_up()
        frames = [runtime.generate(request).frames for request in requests]
    assert len(recorded) == len(buckets)
    assert all(np.array_equal(one, same) for one, same in zip(frames, expected, strict=True))


def test_steps_recorded_while_warming_up_serve_prompts_of_usual_length(
    tiny_model: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe without buckets that pads text: no prompt of any usual length, guided or not, records a step."""
    recorded = list[Work]()

    def record(work: Work) -> Work:
        recorded.append(work)
        work()
        return work

    recipe = replace(load_recipe("eager"), pack_rows=None, pad_text=(64, 160))
    engines = open_engines(tiny_model, recipe, Store(tmp_path), None)
    prompts = ("", "a hat", "a red hat on a blue chair beside a window " * 2)
    requests = [ask(prompt=prompt, guidance=guidance) for prompt in prompts for guidance in (1.0, 5.0)]
    with Runtime(tiny_model, replace(recipe, pad_text=()), engines) as runtime:
        expected = [runtime.generate(request).frames for request in requests]
    monkeypatch.setattr("vino_rt.pipeline.open_steps", lambda _: StepCache(8, record, room=4))
    with Runtime(tiny_model, recipe, engines) as runtime:
        runtime.warm_up()
        # A clip and a picture, each in two lengths, with one branch and with two.
        assert len(recorded) == 8
        frames = [runtime.generate(request).frames for request in requests]
        assert len(recorded) == 8, "a request recorded a step of its own"
    assert all(np.array_equal(one, same) for one, same in zip(frames, expected, strict=True))
