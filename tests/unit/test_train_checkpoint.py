"""Checkpoints: what lies in them, how a damaged, foreign or half-written one is met, and a full disk."""

import json
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.unit.toy_objective import Toy, bits, listening, toy_stage
from vino_rt.errors import ModelError, OutputError, UsageError
from vino_rt.train.checkpoint import Checkpoints, Sections
from vino_rt.train.distributed import World
from vino_rt.train.loop import Call, train

ONE = World(0, 1, torch.device("cpu"))
MARK: dict[str, Any] = {"seed": 1, "optimiser.lr": 0.1, "data.kinds": ["a"]}
TENSORS: Sections = {"weights": {"a": torch.arange(1500.0).reshape(3, 500), "b": torch.ones(7), "c": torch.ones(300)}}


def refuse_damage(path: Path, problem: str) -> None:
    pytest.fail(f"{path}: {problem}")


def saved(folder: Path, *steps: int, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder, ONE, keep=keep, shard_bytes=4096)
    for step in steps:
        checkpoints.save(step, MARK, TENSORS, {"note": step / 3})
    return checkpoints


def test_a_checkpoint_comes_back_to_the_bit(tmp_path: Path) -> None:
    opened = saved(tmp_path / "c", 12).newest(MARK, refuse_damage)
    assert opened is not None
    assert (opened.step, opened.record) == (12, {"note": 4.0})
    shapes = {name: tuple(tensor.shape) for name, tensor in TENSORS["weights"].items()}
    loaded = opened.load("weights", shapes)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS["weights"].items())
    with pytest.raises(ModelError, match=r"missing d; unknown c; wrong shape b \(7,\) instead of \(8,\)"):
        opened.load("weights", {"a": (3, 500), "b": (8,), "d": (1,)})


def test_files_keep_below_the_limit_and_none_is_pickled(tmp_path: Path) -> None:
    saved(tmp_path / "c", 1)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "c" / "step-00000001" / "weights").iterdir()}
    index = sizes.pop("model.safetensors.index.json")
    assert index > 0
    assert len(sizes) == 2
    # The first tensor alone is larger than the limit; the others share a file.
    assert min(sizes.values()) <= 4096 < max(sizes.values())
    stage = toy_stage(tmp_path / "run", log={"shard_mib": 1500 / (1 << 20)})
    outcome = train(stage, Toy())
    files = [path for path in outcome.checkpoint.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    assert max(path.stat().st_size for path in files if path.suffix == ".safetensors") <= 1500
    assert len(files) > 9


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path / "c", 3, 20, 100, 7, keep=2)
    assert [path.name for path in checkpoints.listed()] == ["step-00000100", "step-00000020"]
    assert Checkpoints(tmp_path / "none", ONE, keep=1, shard_bytes=1).listed() == []


def flip_a_bit(path: Path) -> None:
    file = next(path.rglob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def cut_a_file(path: Path) -> None:
    file = next(path.rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])


def lose_a_file(path: Path) -> None:
    next(path.rglob("*.safetensors")).unlink()


def lose_the_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def scribble(path: Path) -> None:
    (path / "manifest.json").write_text('{"format": 1}')


@pytest.mark.parametrize("damage", [flip_a_bit, cut_a_file, lose_a_file, lose_the_manifest, scribble])
def test_a_damaged_one_is_told_and_set_aside(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    checkpoints = saved(tmp_path / "c", 1, 2)
    damage(checkpoints.path(2))
    told: list[tuple[Path, str]] = []
    opened = checkpoints.newest(MARK, lambda path, problem: told.append((path, problem)))
    assert opened is not None
    assert opened.step == 1
    assert [path for path, _ in told] == [checkpoints.path(2)]
    assert str(checkpoints.path(2)) in told[0][1]
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["step-00000001", "step-00000002.damaged"]
    checkpoints.save(2, MARK, TENSORS, {})
    damage(checkpoints.path(1))
    damage(checkpoints.path(2))
    with pytest.raises(ModelError, match=r"all 2 checkpoints in .* are damaged"):
        checkpoints.newest(MARK, lambda path, problem: None)


def test_one_of_another_stage_names_the_field(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path / "c", 1)
    for change, told in (
        ({"optimiser.lr": 0.2}, "optimiser.lr is 0.1 there and 0.2 here"),
        ({"data.size": 64}, "data.size is None there and 64 here"),
        ({"data.kinds": ["a", "b"]}, r"data.kinds is \['a'\] there"),
    ):
        with pytest.raises(UsageError, match=told):
            checkpoints.newest(MARK | change, refuse_damage)
    manifest = checkpoints.path(1) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 2}))
    with pytest.raises(UsageError, match="has format 2, this version reads 1"):
        checkpoints.newest(MARK, refuse_damage)


def test_leftovers_of_a_killed_run_vanish(tmp_path: Path) -> None:
    stage = toy_stage(tmp_path / "run")
    for name in (".step-00000009.0a1b2c3d.partial", ".step-00000009.0a1b2c3d.previous", "mine.partial"):
        (stage.out / "checkpoints" / name).mkdir(parents=True)
    train(stage, Toy())
    assert {path.name for path in (stage.out / "checkpoints").iterdir()} == {"mine.partial", "step-00000008"}


def test_a_disk_that_fills_keeps_the_earlier_one(tmp_path: Path) -> None:
    stage = toy_stage(tmp_path / "run")
    kept = bits(train(stage, Toy(), Call(steps=4)).checkpoint)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2900, hard))
    try:
        with pytest.raises(OutputError, match="the checkpoint of step 8 was not written, earlier ones are intact: "):
            train(stage, Toy())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (stage.out / "checkpoints").iterdir()] == ["step-00000004"]
    assert bits(stage.out / "checkpoints" / "step-00000004") == kept
    assert bits(train(stage, Toy()).checkpoint) == bits(train(replace(stage, out=tmp_path / "x"), Toy()).checkpoint)


def test_a_run_falls_back_loudly_and_ends_the_same(tmp_path: Path) -> None:
    stage = toy_stage(tmp_path / "run", log={"checkpoint_every": 3})
    whole = bits(train(stage, Toy()).checkpoint)
    flip_a_bit(stage.out / "checkpoints" / "step-00000008")
    events, listen = listening()
    again = train(stage, Toy(), Call(listen=listen))
    assert [name for name, _ in events[:3]] == ["damaged", "resume", "start"]
    assert "SHA-256" in events[0][1]["problem"]
    assert events[1][1]["step"] == 6
    assert bits(again.checkpoint) == whole


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    train(toy_stage(tmp_path / "run"), Toy(), Call(steps=2))
    toy = Toy()
    toy.model.add_module("outlet", nn.Linear(12, 2))
    with pytest.raises(ModelError, match=r"wrong shape outlet.weight \(1, 12\) instead of \(2, 12\)"):
        train(toy_stage(tmp_path / "run"), toy)
    toy = Toy()
    toy.model.add_module("outlet", nn.Sequential(nn.Linear(12, 1)))
    with pytest.raises(ModelError, match="updates are of other parameters"):
        train(toy_stage(tmp_path / "run"), toy)
