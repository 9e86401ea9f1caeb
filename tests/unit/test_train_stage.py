"""A stage from its file: every field, what is refused and how, and what makes two runs the same."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.toy_objective import toy_stage
from vino_rt.errors import UsageError
from vino_rt.train.stage import Group, load_stage

SMALL = """
objective = "vae"
model = "start"
out = "../run"
seed = 1
steps = 100
[optimiser]
lr = 1e-3
"""
FULL = """
objective = "flow"
model = "/models/start"
out = "run"
seed = 0
steps = 50
accumulate = 4
precision = "bfloat16"
device = "cuda"
threads = 2
workers = 3
minutes = 9
recompute = true
deterministic = false
[optimiser]
lr = 1
betas = [0.9, 0.95]
eps = 1e-6
weight_decay = 0.0
warmup = 5
schedule = "linear"
floor = 0.1
clip = 0
[[optimiser.groups]]
match = "^connector\\\\."
lr = 0.1
decay = false
[[optimiser.groups]]
match = "queries"
[average]
decay = 0.99
warmup = 10
[log]
every = 1
sheet_every = 20
checkpoint_every = 30
checkpoint_minutes = 2.5
keep = 3
shard_mib = 8
[data]
kinds = ["a", "b"]
[data.inner]
size = 64
[settings]
shift = 3.0
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "stage.toml"
    path.write_text(text)
    return path


def test_a_full_stage_keeps_every_field(tmp_path: Path) -> None:
    stage = load_stage(written(tmp_path, FULL))
    assert (stage.objective, stage.precision, stage.device) == ("flow", "bfloat16", "cuda")
    assert (stage.model, stage.out) == (Path("/models/start"), tmp_path / "run")
    assert (stage.threads, stage.workers, stage.minutes) == (2, 3, 9.0)
    assert (stage.recompute, stage.deterministic) == (True, False)
    optimiser = stage.optimiser
    assert (optimiser.lr, optimiser.betas, optimiser.schedule, optimiser.clip) == (1.0, (0.9, 0.95), "linear", 0.0)
    assert isinstance(optimiser.lr, float)
    assert optimiser.groups == (Group(match=r"^connector\.", lr=0.1, decay=False), Group(match="queries"))
    assert (stage.average.decay, stage.average.warmup) == (0.99, 10)
    assert (stage.log.checkpoint_minutes, stage.log.keep, stage.log.shard_bytes) == (2.5, 3, 8 << 20)
    assert stage.data == {"kinds": ["a", "b"], "inner": {"size": 64}}
    assert stage.settings == {"shift": 3.0}


def test_a_small_stage_has_defaults_and_paths_beside_it(tmp_path: Path) -> None:
    stage = load_stage(written(tmp_path, SMALL))
    assert (stage.model, stage.out) == (tmp_path / "start", tmp_path / ".." / "run")
    assert (stage.accumulate, stage.workers, stage.threads, stage.minutes) == (1, 0, None, None)
    assert (stage.precision, stage.device, stage.average.decay, stage.data) == ("float32", "auto", 0.0, {})


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"vae"', '"gan"', "objective is 'gan', expected one of 'vae', 'caption', 'flow'"),
        ("seed = 1", "", "top level: unknown [], missing ['seed']"),
        ("seed = 1", "seed = 1\ncolour = 2", "unknown ['colour'], missing []; legal are objective, "),
        ("seed = 1", "seed = -1", "seed is -1, expected a whole number in 0 <= x < 2^63"),
        ("steps = 100", "steps = true", "steps is True, expected a whole number"),
        ("steps = 100", "steps = 1.5", "steps is 1.5, expected a whole number"),
        ("steps = 100", "steps = 0", "steps is 0, expected a number of steps of at least 1"),
        ("seed = 1", 'seed = 1\ncache = "c"', "cache is set for objective 'vae', which keeps nothing"),
        ("seed = 1", "seed = 1\nminutes = 0", "minutes is 0.0, expected a number above 0"),
        ("seed = 1", "seed = 1\nrecompute = 1", "recompute is 1, expected true or false"),
        ("seed = 1", "seed = 1\ndata = 3", "data is 3, expected a table"),
        ("seed = 1", "seed = 1\naverage = 3", "average is 3, expected a table"),
        ('"start"', "3", "model is 3, expected a path"),
        ("1e-3", "nan", "optimiser.lr is nan, expected a number"),
        ("1e-3", '"fast"', "optimiser.lr is 'fast', expected a number"),
        ("1e-3", "0", "optimiser.lr is 0.0, expected a number above 0"),
        ("1e-3", "1e-3\nbetas = [0.9]", "optimiser.betas is [0.9], expected 2 values"),
        ("1e-3", "1e-3\nbetas = [0.9, 1.0]", "optimiser.betas is (0.9, 1.0), expected two numbers in 0 <= x < 1"),
        ("1e-3", "1e-3\nwarmup = 101", "optimiser.warmup is 101, more than the 100 steps"),
        ("1e-3", "1e-3\nmomentum = 1", "[optimiser]: unknown ['momentum'], missing []"),
        ("1e-3", "1e-3\ngroups = 1", "optimiser.groups is 1, expected a list"),
        ("1e-3", "1e-3\n[[optimiser.groups]]\nmatch = '('", "match is '(', no regular expression"),
        ("1e-3", "1e-3\n[average]\ndecay = 1.0", "average.decay is 1.0, expected a number in 0 <= x < 1"),
        ("1e-3", "1e-3\n[log]\nkeep = 0", "log.keep is 0, expected a number of checkpoints of at least 1"),
        ("1e-3", "1e-3\n[log]\nevery = 0", "log.every is 0"),
    ],
)
def test_what_is_refused(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in SMALL
    path = written(tmp_path, SMALL.replace(old, new))
    with pytest.raises(UsageError) as caught:
        load_stage(path)
    assert str(caught.value).startswith(f"stage {path}: ")
    assert told in str(caught.value)


def test_files_that_are_no_stage(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.toml", tmp_path, written(tmp_path, "seed = [")):
        with pytest.raises(UsageError, match="cannot read the stage"):
            load_stage(path)


def test_fingerprint_holds_what_matters_and_nothing_else(tmp_path: Path) -> None:
    stage = toy_stage(tmp_path / "run")
    mark = stage.fingerprint(1)
    same = replace(stage, out=tmp_path / "other", workers=2, threads=1, minutes=3.0, recompute=True, device="auto")
    assert same.fingerprint(1) == mark
    assert replace(stage, accumulate=2).fingerprint(1) == stage.fingerprint(2) != mark
    for change, name in (({"seed": 4}, "seed"), ({"data": {"a": {"b": 1}}}, "data.a.b"), ({"steps": 9}, "steps")):
        other = replace(stage, **change).fingerprint(1)
        assert {key for key in {*mark, *other} if mark.get(key) != other.get(key)} == {name}
    steady = replace(stage, optimiser=replace(stage.optimiser, schedule="constant"))
    assert steady.fingerprint(1) == replace(steady, steps=99).fingerprint(1)


def test_fingerprint_knows_the_model_by_its_manifest(tmp_path: Path) -> None:
    stages = []
    for name, text in (("a", "{}"), ("b", "{}"), ("c", "{ }")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.json").write_text(text)
        stages.append(replace(toy_stage(tmp_path / "run"), model=tmp_path / name).fingerprint(1))
    assert stages[0] == stages[1]
    assert stages[0]["model"] != stages[2]["model"] != ""
