"""Engine kinds in another precision: what changes with it and what does not, up to whole requests."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vino_rt.backends.base import CPU, PRECISIONS
from vino_rt.backends.recipe import Recipe, load_recipe
from vino_rt.backends.store import Store
from vino_rt.engines import checked_kinds, kinds_of, layer_weights, open_engines
from vino_rt.errors import EngineError
from vino_rt.model_dir import ModelDir
from vino_rt.request import Pixels, Request
from vino_rt.runtime import Runtime
from vino_rt.step import StepCache, Work

INDICES = ("int32", "int64")


def recipe(backend: str, precision: str, **precisions: str) -> Recipe:
    return replace(load_recipe("eager"), name="mine", backend=backend, precision=precision, precisions=precisions)


def test_requests_that_take_turns_at_recorded_steps(
    tiny_model: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one request leaves in a step's memory or in the cache must not reach another."""
    chosen = replace(recipe("eager", "float32"), pad_text=(64,))
    engines = open_engines(tiny_model, chosen, Store(tmp_path), 1)
    requests = [
        Request(prompt=prompt, size=(64, 32), frames=frames, steps=3, seed=seed)
        for prompt, frames, seed in (("a red square", 5, 7), ("two blue circles", 5, 8), ("one", 1, 7))
    ]
    recorded: list[Work] = []

    def record(work: Work) -> Work:
        recorded.append(work)
        work()
        return work

    with Runtime(tiny_model, chosen, engines) as runtime:
        plain = [runtime.generate(request).frames for request in requests]
    monkeypatch.setattr("vino_rt.pipeline.open_steps", lambda _: StepCache(2, record))
    order = [0, 1, 2, 1, 0]
    with Runtime(tiny_model, chosen, engines) as runtime:
        taken = [runtime.generate(requests[number]).frames for number in order]
    assert all((plain[number] == got).all() for number, got in zip(order, taken, strict=True))
    assert len(recorded) == 2, "prompts of one padded length share a step"


def test_padded_text_changes_nothing(tiny_model: ModelDir, tmp_path: Path) -> None:
    exact = frames(tiny_model, recipe("eager", "float32"), tmp_path)
    padded = frames(tiny_model, replace(recipe("eager", "float32"), pad_text=(64,)), tmp_path)
    assert (exact == padded).all()


def frames(model: ModelDir, chosen: Recipe, store: Path) -> Pixels:
    engines = open_engines(model, chosen, Store(store), 1)
    with Runtime(model, chosen, engines) as runtime:
        request = Request(prompt="a red square", size=(64, 32), frames=5, steps=3, seed=7)
        first, second = runtime.generate(request), runtime.generate(request)
    assert (first.frames == second.frames).all(), "two runs differ"
    return first.frames


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_what_a_precision_changes(tiny_model: ModelDir, precision: str) -> None:
    dtype = PRECISIONS[precision]
    for kind in kinds_of(tiny_model).values():
        half = kind.at(precision)
        assert kind.at("float32") is kind
        assert (half.precision, half.dtype) == (precision, dtype)
        for before, after in zip(
            (*kind.spec.inputs, *kind.spec.outputs), (*half.spec.inputs, *half.spec.outputs), strict=True
        ):
            same = before.dtype in INDICES or before.name in ("timesteps", "cos", "sin")
            assert after == (before if same else replace(before, dtype=precision))
        with torch.device("meta"):
            assert {tensor.dtype for tensor in half.build().state_dict().values()} == {dtype}
            assert {tensor.dtype for tensor in kind.build().state_dict().values()} == {torch.float32}
        for wide, narrow in zip(kind.examples(), half.examples(), strict=True):
            half.spec.check(narrow)
            assert all(torch.equal(wide[name].to(narrow[name].dtype), narrow[name]) for name in wide)


def test_weights_are_in_the_kinds_precision(tiny_model: ModelDir) -> None:
    kind = kinds_of(tiny_model)["single_block"]
    full, half = layer_weights(tiny_model, kind, 0), layer_weights(tiny_model, kind.at("bfloat16"), 0)
    assert all(torch.equal(full[name].bfloat16(), half[name]) for name in full)


def test_a_recipe_names_precisions_of_kinds(tiny_model: ModelDir) -> None:
    kinds = checked_kinds(tiny_model, recipe("eager", "bfloat16", head="float32"))
    assert {name for name, kind in kinds.items() if kind.precision == "float32"} == {"head"}
    with pytest.raises(EngineError, match=r"recipe 'mine' names engine kinds \['heads'\]"):
        checked_kinds(tiny_model, recipe("eager", "bfloat16", heads="float32"))


def test_fitting_a_tensor_to_an_engine(tiny_model: ModelDir, tmp_path: Path) -> None:
    (engine,) = open_engines(tiny_model, recipe("eager", "bfloat16"), Store(tmp_path), 1)["patch"]
    patches = torch.randn(tiny_model.transformer.patch_values, 5).T
    fitted = engine.fit(patches=patches)["patches"]
    assert fitted.is_contiguous()
    assert torch.equal(fitted, patches.bfloat16())
    with pytest.raises(EngineError, match=r"'patches' is torch.float32, expected bfloat16"):
        engine.run(patches=patches.contiguous())
    with pytest.raises(EngineError, match=r"patch: tensor 'patches' is on meta, the engine on cpu"):
        engine.run(patches=fitted.to("meta"))
    assert engine.device == CPU


def test_kernels_in_the_place_of_operations_give_the_same_frames(tiny_model: ModelDir, tmp_path: Path) -> None:
    plain, kernels = (frames(tiny_model, recipe(name, "float32"), tmp_path) for name in ("eager", "triton"))
    assert abs(plain.astype(int) - kernels.astype(int)).max() <= 1


@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_a_request_in_bfloat16_is_near_that_in_float32(tiny_model: ModelDir, tmp_path: Path, backend: str) -> None:
    judge = frames(tiny_model, recipe("eager", "float32"), tmp_path).astype(int)
    half = frames(tiny_model, recipe(backend, "bfloat16"), tmp_path).astype(int)
    mixed = frames(tiny_model, recipe(backend, "bfloat16", vae_decode="float32"), tmp_path).astype(int)
    wrong = abs(judge - judge[:, ::-1]).mean()
    assert 0 < abs(mixed - judge).mean() < 0.05 * wrong
    assert 0 < abs(half - judge).mean() < 0.1 * wrong


def test_an_autoencoder_in_float16_is_nearer_than_in_bfloat16(tiny_model: ModelDir, tmp_path: Path) -> None:
    """By the three bits of mantissa it has more, if nothing overflows."""
    judge, *rest = (
        open_engines(tiny_model, recipe("eager", "float32", vae_encode=p, vae_decode=p), Store(tmp_path), 1)
        for p in ("float32", "bfloat16", "float16")
    )
    pixels, latents = torch.rand(1, 3, 5, 32, 32) * 2 - 1, torch.randn(1, tiny_model.vae.latent_channels, 2, 4, 4)
    for kind, inputs in (("vae_encode", {"pixels": pixels}), ("vae_decode", {"latents": latents})):
        exact, coarse, fine = (
            engine.run(**engine.fit(**inputs))[0].float() for engine in (found[kind][0] for found in (judge, *rest))
        )
        errors = [(found - exact).square().mean().sqrt() for found in (coarse, fine)]
        assert 0 < errors[1] < errors[0] / 4
