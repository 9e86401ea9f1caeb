"""Engines of fixed sizes are proved at the sizes they were built for: what passes, and what is refused and why."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tensorrt.small import AREA, BUCKET, UNIT, first_weights, small_kinds
from vino_export import verify_sizes as room
from vino_export.verify import verify
from vino_export.verify_sizes import bucket_sizes, inputs_at, verify_sizes
from vino_rt.backends.base import CPU, Engine, Kind
from vino_rt.backends.cuda_graph import Work
from vino_rt.backends.eager import load_module
from vino_rt.backends.recipe import load_recipe
from vino_rt.backends.store import Store
from vino_rt.build import Job, _prove
from vino_rt.errors import EngineError, OutOfMemory
from vino_rt.model_dir import ModelDir

KINDS = {**small_kinds("bfloat16"), **{n: k for n, k in small_kinds().items() if k.part == "vae"}}
Change = Callable[[Tensor, int], Tensor]


class Changed(Engine):
    """The reference module, with what `change` makes of its first output in each run."""

    def __init__(self, kind: Kind, weights: Mapping[str, Tensor], change: Change) -> None:
        super().__init__(kind.spec)
        self._module, self._change, self._runs = load_module(kind, weights), change, 0

    @torch.inference_mode()
    def _run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        found = self._module(*inputs.values())
        first, *others = found if isinstance(found, tuple) else (found,)
        self._runs += 1
        return self._change(first, self._runs), *others


def sizes_of(kind: Kind) -> list[dict[str, int]]:
    return bucket_sizes(kind, [BUCKET], UNIT, AREA)


def check(kind: Kind, change: Change = lambda out, _: out) -> list[int]:
    weights, done = first_weights(kind), list[int]()
    engine = Changed(kind, weights, change)
    verify_sizes(kind, engine, weights, sizes_of(kind), 2.0**-8, on_size=done.append)
    return done


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_passes_at_every_size(name: str) -> None:
    kind = KINDS[name]
    assert check(kind) == list(range(1, len(sizes_of(kind)) + 1))


def wrong_where_large(out: Tensor, _: int) -> Tensor:
    """As a kernel for large sizes would be: no example reaches it."""
    return out * (1.5 if len(out) > 260 else 1)


def test_what_is_wrong_at_a_bucket_alone_passes_the_examples_and_is_refused_here() -> None:
    kind = KINDS["single_block"]
    weights = first_weights(kind)
    engine = Changed(kind, weights, wrong_where_large)
    verdict = verify(kind, engine, weights)
    assert 0 < verdict.rounding < 2.0**-5
    large = {**sizes_of(kind)[0], "J": 301}
    with pytest.raises(EngineError, match=r"single_block at J 301: output 'joint_out' is .* from eager.*not stored"):
        verify_sizes(kind, engine, weights, [large], verdict.rounding)
    verify_sizes(kind, Changed(kind, weights, lambda out, _: out), weights, [large], verdict.rounding)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda out, run: out + run, "two runs differ in output 'joint_out'"),
        (lambda out, _: out[:-1], r"has shape \(92, 16\) instead of \(93, 16\)"),
        (lambda out, _: torch.full_like(out, torch.inf), "is inf from eager PyTorch"),
        (lambda out, _: torch.cat((out[:90], out[:3])), "from eager PyTorch, allowed"),
    ],
)
def test_what_is_refused(change: Change, told: str) -> None:
    with pytest.raises(EngineError, match=rf"single_block at J 93.*{told}"):
        check(KINDS["single_block"], change)


def test_a_recording_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = KINDS["single_block"]
    weights = first_weights(kind)
    engine = Changed(kind, weights, lambda out, _: out)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    for replay, passes in ((lambda work: work, True), (lambda work: lambda: None, False)):
        monkeypatch.setattr(room, "Recorder", lambda device, replay=replay: replay)
        if passes:
            verify_sizes(kind, engine, weights, sizes_of(kind), 2.0**-8, record=True)
        else:
            with pytest.raises(EngineError, match="launches and their recording differ in output 'joint_out'"):
                verify_sizes(kind, engine, weights, sizes_of(kind), 2.0**-8, record=True)


def test_a_size_that_does_not_fit_is_named() -> None:
    def full(out: Tensor, _: int) -> Tensor:
        raise torch.OutOfMemoryError("tried to allocate")

    with pytest.raises(OutOfMemory, match=r"verifying single_block at J 93; leave its \[\[bucket\]\] out"):
        check(KINDS["single_block"], full)


def test_inputs_are_such_as_a_request_brings() -> None:
    kind, (size,) = KINDS["dual_block"], sizes_of(KINDS["dual_block"])
    given = inputs_at(kind, size, CPU)
    kind.spec.check(given)
    assert all(torch.equal(tensor, inputs_at(kind, size, CPU)[name]) for name, tensor in given.items())
    joint, back = given["orders"]
    assert torch.equal(joint[back], torch.arange(size["J"]))
    offsets = given["offsets"].tolist()
    assert offsets == sorted(offsets)
    assert (offsets[0], offsets[-1]) == (0, size["J"])
    assert offsets[-2] < size["J"], "no padding"
    assert torch.allclose(given["cos"] ** 2 + given["sin"] ** 2, torch.ones(()))


@pytest.mark.parametrize("sized", [True, False])
def test_a_build_verifies_an_engine_of_fixed_sizes_at_each(
    tiny_model: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sized: bool
) -> None:
    kind, told = KINDS["single_block"], list[str]()
    recipe = replace(load_recipe("tensorrt"), buckets=(BUCKET, replace(BUCKET, text_tokens=13)))
    recorded = list[Work]()

    def record(work: Work) -> Work:
        recorded.append(work)
        return work

    monkeypatch.setattr(room, "Recorder", lambda device: record)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    backend: Any = SimpleNamespace(sized=sized)
    weights = first_weights(kind)
    job = Job(tiny_model, recipe, Store(tmp_path), kind, backend, told.append)
    verdict, sizes = _prove(job, Changed(kind, weights, lambda out, _: out), weights)
    assert verdict.error <= verdict.bound
    assert sizes == ([{"J": 93}, {"J": 99}] if sized else [])
    assert told == ([f"verify: {done} of 2" for done in (1, 2)] if sized else [])
    assert len(recorded) == len(sizes), "kinds of a step are recorded when they run"
