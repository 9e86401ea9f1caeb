"""The shipped recipes: every stage loads, its tables are legal, its samples can be drawn, each takes up the last."""

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vino_rt.train as training
from vino_rt.errors import UsageError
from vino_rt.train.caption import CaptionTable
from vino_rt.train.data.source import FilesTable
from vino_rt.train.flow import FlowTable
from vino_rt.train.lessons import Lessons, LessonTable
from vino_rt.train.objective import noise_generator
from vino_rt.train.settings import take_table
from vino_rt.train.stage import Stage, load_stage
from vino_rt.train.vae import VaeTable
from vino_rt.train.world_data import WorldData, WorldKey

RECIPES = Path(training.__file__).parent / "recipes"
STAGES = sorted(RECIPES.rglob("*.toml"))
TABLES = {"vae": VaeTable, "caption": CaptionTable, "flow": FlowTable}


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def normal(path: Path) -> Path:
    """Without the dots, whether it exists or not."""
    return Path(os.path.normpath(path))


@pytest.mark.parametrize("path", STAGES, ids=name)
def test_a_stage_loads_and_its_settings_are_legal(path: Path) -> None:
    stage = load_stage(path)
    assert take_table(stage.settings, TABLES[stage.objective], "[settings]")
    assert stage.log.shard_mib <= 16
    assert stage.log.checkpoint_minutes or stage.log.checkpoint_every


@pytest.mark.parametrize("path", STAGES, ids=name)
def test_samples_of_a_stage_can_be_drawn(path: Path) -> None:
    stage = load_stage(path)
    if stage.objective == "caption":
        lessons = Lessons(stage.data, stage.seed)
        assert all(lessons.lesson(kind, 5, lessons.table.sizes[-1]).answer for kind in lessons.table.lessons)
        return
    data = WorldData(stage.data, stage.seed)
    for bucket in data.buckets:
        for task, kind in bucket.tasks:
            size = bucket.width, bucket.height
            sample = data.draw(WorldKey(task, kind, 7, size, bucket.frames, "short", "train"))
            assert sample.target.shape == (bucket.frames, bucket.height, bucket.width, 3)
    assert data.keys(stage.steps * stage.accumulate)
    # What is kept of a sample is found by this name: a held-out one must not meet its like from training.
    assert not set(map(str, data.held_out().keys(0))) & set(map(str, data.keys(0)))


@pytest.mark.parametrize("folder", sorted({path.parent for path in STAGES}), ids=lambda folder: folder.name)
def test_stages_take_up_where_the_last_one_ended(folder: Path) -> None:
    order = sorted(folder.glob("*.toml"), key=lambda path: int(path.name.partition("-")[0]))
    stages: list[Stage] = [load_stage(path) for path in order]
    assert normal(stages[0].model) == normal(stages[0].out.parent / "init")
    for before, after in pairwise(stages):
        assert normal(after.model) == normal(before.out / "model")
    assert len({normal(stage.out) for stage in stages}) == len({stage.seed for stage in stages}) == len(stages)


def test_the_stages_follow_the_paper() -> None:
    flows = [stage for stage in map(load_stage, STAGES) if stage.objective == "flow"]
    assert flows
    for stage in flows:
        table = take_table(stage.settings, FlowTable, "[settings]")
        assert table.fresh == (not table.queries), "the first stage begins anew and goes without queries"
        assert stage.data["long"] == (1.0 if table.fresh else 0.5), "long captions first"


BUCKET = {"size": [32, 32], "frames": 1, "share": 1.0}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tasks": {"t2i/select": 1.0}}, "task 't2i/select' is unknown; t2i has the kinds single, pair, count"),
        ({"tasks": {"ti2i/": 1.0}}, "task 'ti2i/' is unknown; ti2i has the kinds .*, reconstruct, select"),
        ({"tasks": {"clone": 1.0}}, "task 'clone' is unknown; tasks are t2i, "),
        ({"tasks": ["t2i"]}, r"tasks is \['t2i'\], expected a table"),
        ({"tasks": {"t2i": "much"}}, r"tasks\.t2i is 'much', expected a number"),
        ({"tasks": {"t2i": -1.0, "ti2i": 1.0}}, "the weight of task 't2i' is -1.0"),
        ({"buckets": BUCKET}, "buckets is .*, expected a list"),
        ({"buckets": [32]}, "buckets is 32, expected a table"),
        ({"buckets": [BUCKET | {"size": 32}]}, "size is 32, expected two multiples of 16"),
        ({"buckets": [BUCKET | {"size": [32.0, 32]}]}, "two multiples of 16"),
        ({"buckets": [BUCKET | {"frames": "1"}]}, "frames is '1', expected 1, 5, 9"),
        ({"buckets": [BUCKET | {"share": -1}, BUCKET]}, "share is -1, expected a number of at least 0"),
        ({"buckets": [BUCKET | {"share": float("inf")}]}, "share is inf"),
        ({"buckets": [BUCKET | {"examples": 0}]}, "examples is 0, expected 1, 2, 3"),
        ({"buckets": [BUCKET | {"examples": "9"}]}, "examples is '9', expected 1, 2, 3"),
        ({"buckets": [BUCKET | {"seed": 1}]}, "may have examples, no more"),
        ({"long": 2}, "long is 2.0, expected a share from 0 to 1"),
        ({"budget": True}, "budget is True, expected a whole number"),
        ({"examples": 9.5}, "examples is 9.5, expected a whole number"),
        ({"split": 1}, "split is 1, expected a text"),
    ],
)
def test_entries_that_cannot_be_used_are_named(change: dict[str, object], told: str) -> None:
    table = {"source": "world", "tasks": {"t2i": 1.0}, "buckets": [BUCKET]}
    with pytest.raises(UsageError, match=rf"^\[data\]: {told}|^\[data\]: bucket .*{told}"):
        WorldData({**table, **change}, 0)


def test_a_bucket_may_have_examples_of_its_own() -> None:
    clips = BUCKET | {"frames": 5, "examples": 2}
    data = WorldData({"tasks": {"t2i": 1.0, "t2v": 1.0}, "buckets": [BUCKET, clips], "examples": 500, "budget": 200}, 0)
    seeds: dict[int, set[int]] = {1: set(), 5: set()}
    for index in range(40):
        for key in data.keys(index):
            seeds[key.frames].add(key.seed)
    assert seeds[5] == {0, 1}
    assert 50 < len(seeds[1]) <= 500


def test_samples_with_references_leave_room_for_fewer() -> None:
    """A clip of 32x32 and 5 frames is 8 rows, a picture shown beside it costs 6 and a clip 12."""
    clips = BUCKET | {"frames": 5}
    rows = {"t2v": 8, "i2v": 14, "ti2v": 20, "tv2v": 20, "tiv2v": 26}
    for task, each in rows.items():
        data = WorldData({"tasks": {task: 1.0}, "buckets": [clips], "budget": 300, "overhead": 5}, 0)
        assert {len(data.keys(index)) for index in range(5)} == {300 // (each + 5)}, task
    mixed = WorldData({"tasks": dict.fromkeys(rows, 1.0), "buckets": [clips], "budget": 300, "overhead": 5}, 0)
    sums = [sum(rows[key.task] + 5 for key in mixed.keys(index)) for index in range(40)]
    assert max(sums) <= 300
    assert min(sums) > 300 - max(rows.values()) - 5


@pytest.mark.parametrize(
    ("owner", "table", "told"),
    [
        (FilesTable, {"paths": "folder", "area": 1024}, "paths is 'folder', expected a list"),
        (FilesTable, {"paths": [7], "area": 1024}, "paths is 7, expected a text"),
        (FilesTable, {"paths": ["a"], "area": "large"}, "area is 'large', expected a whole number"),
        (FilesTable, {"paths": ["a"], "area": 1024, "tasks": {"t2i": True}}, "tasks.t2i is True, expected a number"),
        (VaeTable, {"export": "int8"}, "export is 'int8', expected one of 'float32', 'bfloat16'"),
        (VaeTable, {"kl": -1}, "kl is -1.0, expected a weight of at least 0"),
        (FlowTable, {"time_mean": float("nan")}, "time_mean is nan, expected a number"),
        (CaptionTable, {"chunks": 1.5}, "chunks is 1.5, expected a whole number"),
        (LessonTable, {"lessons": {"clone": 1}}, "lesson 'clone' is unknown"),
        (LessonTable, {"lessons": {"image": 1}, "sizes": [[64, "64"]]}, "give pairs of width and height"),
        (LessonTable, {"lessons": {"image": 1}, "long": 1.5}, "long is 1.5"),
    ],
)
def test_values_of_another_type_are_named(owner: type[Any], table: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError, match=told.replace(".", r"\.")):
        take_table(table, owner, "[table]")


def test_lessons_about_proxy_tasks_are_legal() -> None:
    lesson = Lessons({"lessons": {"ti2i/select": 1}, "batch": 1}, 0).batch(0)[0]
    assert lesson.answer
    assert np.asarray(lesson.given.images[0]).shape == (64, 64, 3)


def test_noise_has_a_generator_for_every_seed_that_a_stage_may_have() -> None:
    seeds = {noise_generator(seed, index).initial_seed() for seed in (0, 1, 2**62, 2**63 - 1) for index in (0, 7)}
    assert len(seeds) == 8
    assert noise_generator(3, 4).initial_seed() == 3_000_013
