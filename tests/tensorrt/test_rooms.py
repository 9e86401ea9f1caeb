"""Profiles of buckets, descriptions beside plans, and what is said where the library is missing."""

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tensorrt.small import AREA, BUCKET, TARGET, UNIT, FakeDevice, first_weights, picture_kind, small_kinds
from tests.unit.small_model import SOURCE
from vino_export.tensorrt.network import attends
from vino_export.tensorrt.profiles import (
    Span,
    bucket_profile,
    check_mask,
    exactly,
    picture_profiles,
    profiles_of,
    shapes,
)
from vino_export.tensorrt.write import architecture
from vino_rt.backends.recipe import load_recipe
from vino_rt.backends.tensorrt.backend import TensorRtBackend
from vino_rt.backends.tensorrt.description import NAME, Description, digest, read_description, write_description
from vino_rt.backends.tensorrt.library import load
from vino_rt.bucket import Bucket, Need, choose
from vino_rt.errors import EngineError
from vino_rt.models.vino.prepare import MAX_ASPECT, letterbox_grid
from vino_rt.plan import BranchShape, pack

DESCRIPTION = Description(
    kind="head", tensorrt="11.4", target=TARGET, variant="native", inputs=("joint",), weights=None,
    profiles=({"J": (3, 4, 5)},), layers={"Layers": []},
)  # fmt: skip


def test_a_step_has_one_size_in_a_bucket_and_it_is_the_plan_s() -> None:
    profile = bucket_profile(BUCKET, UNIT)
    target = (2, BUCKET.height // UNIT, BUCKET.width // UNIT)
    branches = [BranchShape((), 3), BranchShape((), 5), BranchShape((), 2)]
    count = len(branches)
    padded = {"image_tokens": profile["I"].most, "text_tokens": profile["T"].most}
    plan = pack(target, (), branches, **padded)
    sizes = {"I": plan.image_tokens, "T": plan.text_tokens, "V": plan.target_index.shape[0], "B": count}
    assert {name: profile[name] for name in sizes} == {name: exactly(size) for name, size in sizes.items()}
    assert profile["J"] == exactly(plan.joint_index.shape[0])
    assert profile["N"] == exactly(12)


def test_the_sizes_are_those_that_requests_are_padded_to() -> None:
    profile = bucket_profile(BUCKET, UNIT)
    need = Need((5, 32, 48), (), tuple(BranchShape((), 3) for _ in range(BUCKET.branches)))
    lengths = choose(need, [BUCKET], type("Settings", (), {"unit": UNIT})())
    assert (lengths.image_tokens, lengths.text_tokens) == (profile["I"].best, profile["T"].best)


def test_every_kind_has_a_profile() -> None:
    larger = Bucket(frames=9, height=64, width=48, references=0, text_tokens=11)
    for kind in small_kinds().values():
        found = profiles_of(kind, [BUCKET, BUCKET, larger], UNIT, AREA)
        pictures = len(list(picture_profiles(AREA, UNIT))) if kind.name == "vae_encode" else 0
        assert 2 <= len(found) - pictures <= 3
        for profile in found:
            for spec in kind.spec.inputs:
                least, best, most = shapes(spec, profile)
                assert all(0 <= a <= b <= c for a, b, c in zip(least, best, most, strict=True))
    assert len(profiles_of(small_kinds()["single_block"], [BUCKET, larger], UNIT, AREA)) == 3


@pytest.mark.parametrize("area", [256, 3072, 4096, 407040, 1024**2])
def test_pictures_of_every_shape_have_a_profile(area: int) -> None:
    """And none reaches over much more than four times the area that pictures are scaled to."""
    profiles = list(picture_profiles(area, UNIT))
    assert all(profile["H"].most * profile["W"].most <= 4.1 * area for profile in profiles)
    most = min(MAX_ASPECT, area / UNIT**2)
    for share in range(101):
        long, short = round(4000 * most ** (share / 100)), 4000
        for width, height in ((long, short), (short, long)):
            box = letterbox_grid(width, height, area, UNIT)
            sides = {"F": 1, "H": box.height, "W": box.width}
            assert any(all(p[n].least <= sides[n] <= p[n].most for n in sides) for p in profiles), f"{width}x{height}"


def test_what_a_plan_is_measured_on_fits_one_of_its_profiles() -> None:
    for kind in small_kinds().values():
        profile = profiles_of(kind, [BUCKET], UNIT, AREA)[-1]
        for example in kind.examples():
            for spec in kind.spec.inputs:
                least, _, most = shapes(spec, profile)
                assert all(a <= size <= b for a, size, b in zip(least, example[spec.name].shape, most, strict=True))


def test_a_picture_is_decoded_by_a_plan_for_pictures() -> None:
    """What a plan is timed for must be what it is used for."""
    picture = bucket_profile(Bucket(frames=1, height=32, width=48, references=0, text_tokens=11), UNIT)
    assert (picture["t"], picture["F"]) == (exactly(1), exactly(1))
    short, long = (
        bucket_profile(Bucket(frames=frames, height=32, width=48, references=0, text_tokens=11), UNIT)
        for frames in (9, 85)
    )
    assert (short["t"], short["F"]) == (Span(1, 3, 3), Span(1, 9, 9))
    assert (long["t"], long["F"]) == (Span(1, 5, 5), Span(1, 17, 17))


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-plugin", "tensorrt-mini"])
@pytest.mark.parametrize("frames", [1, 17])
def test_every_number_of_branches_has_a_size(name: str, frames: int) -> None:
    """Without guidance there is one, with that of the prompt two, with that of images three."""
    buckets = load_recipe(name).buckets
    clip = (frames, 64, 64) if name == "tensorrt-mini" else (1, 640, 640)
    for branches in (1, 2, 3):
        need = Need(clip, (), tuple(BranchShape((), 40) for _ in range(branches)))
        assert choose(need, buckets, type("Settings", (), {"unit": UNIT})()).text_tokens is not None


def test_the_bundled_model_s_own_sizes_are_in_its_recipe() -> None:
    settings = json.loads(SOURCE.read_text(encoding="utf-8"))["settings"]
    width, height = settings["default_size"]
    clips = {bucket.clip for bucket in load_recipe("tensorrt-mini").buckets}
    assert {(frames, height, width) for frames in (1, settings["default_frames"], settings["max_frames"])} <= clips


@pytest.mark.parametrize(
    ("name", "masked"),
    [("tensorrt", False), ("tensorrt-mini", True), ("torch-tensorrt", True), ("onnxruntime-tensorrt", True)],
)
def test_recipes_whose_attention_has_a_mask_are_short_enough_for_one(name: str, masked: bool) -> None:
    for kind in small_kinds().values():
        profiles = profiles_of(kind, load_recipe(name).buckets, UNIT, AREA)
        if masked or attends(kind) != "J":
            check_mask(kind, attends(kind), profiles, "advice")
        else:
            with pytest.raises(EngineError, match=rf"{kind.name}: .* 152468 x 152468 elements, .*; advice"):
                check_mask(kind, attends(kind), profiles, "advice")


def test_no_sizes() -> None:
    with pytest.raises(EngineError, match=r"picture: .*add a \[\[bucket\]\]"):
        profiles_of(picture_kind(), [], UNIT, AREA)
    with pytest.raises(EngineError, match="sizes from 3 over 2 to 9: must not be negative"):
        Span(3, 2, 9)


def test_a_description_comes_back(tmp_path: Path) -> None:
    write_description(tmp_path / "engine.plan", DESCRIPTION)
    assert read_description(tmp_path / "engine.plan") == DESCRIPTION


@pytest.mark.parametrize("damage", ["", "[]", '{"format": 2}', '{"format": 1, "profiles": 3}', '{"format": 1}'])
def test_a_damaged_description(tmp_path: Path, damage: str) -> None:
    (tmp_path / NAME).write_text(damage)
    with pytest.raises(EngineError, match=r"engine.json cannot be read .*build again"):
        read_description(tmp_path / "engine.plan")


def test_a_description_with_a_field_too_many(tmp_path: Path) -> None:
    write_description(tmp_path / "engine.plan", DESCRIPTION)
    said = json.loads((tmp_path / NAME).read_text()) | {"mood": "good"}
    (tmp_path / NAME).write_text(json.dumps(said))
    with pytest.raises(EngineError, match="mood"):
        read_description(tmp_path / "engine.plan")


def test_a_digest_is_of_names_types_and_values() -> None:
    weights = first_weights(picture_kind())
    same = dict(reversed([(name, tensor.clone()) for name, tensor in weights.items()]))
    assert digest(same) == digest(weights)
    name = next(iter(weights))
    changed = weights[name].clone()
    changed.view(-1)[0] += 1
    others = ({**weights, name: changed}, {**weights, name: weights[name].bfloat16()}, {"a": weights[name]})
    assert len({digest(weights), *(digest(other) for other in others)}) == 4
    assert digest({"x": torch.zeros(2, dtype=torch.bfloat16)})


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    importing = builtins.__import__

    def absent(name: str, *given: Any, **named: Any) -> Any:
        if name == "tensorrt":
            raise ImportError("libnvinfer.so.11: cannot open shared object file")
        return importing(name, *given, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    told = r"needs NVIDIA's library \(libnvinfer.*\).*pip install 'tensorrt>=10.16,<12'"
    with pytest.raises(EngineError, match=told):
        load()
    with pytest.raises(EngineError, match=told):
        TensorRtBackend(cuda=FakeDevice()).version()


def test_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="runs on an NVIDIA GPU; PyTorch sees none"):
        TensorRtBackend().target()


def test_an_architecture() -> None:
    assert architecture(TARGET) == 90
    for wrong in ((), ("a GPU",)):
        with pytest.raises(EngineError, match="names no architecture"):
            architecture(wrong)
