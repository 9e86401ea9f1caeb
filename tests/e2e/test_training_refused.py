"""Bad stages, models and data sets through `vino-rt train`: exit code, a message that names the thing, nothing lost."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import vino_rt.models.vino.preset as preset
from tests.e2e.stages import bits, run, trained, world, write_stage
from tests.unit.datasets import pictures
from tests.unit.small_model import small_preset
from vino_rt.train.directory import occupied

pytestmark = pytest.mark.usefixtures("place")
Capture = pytest.CaptureFixture[str]


def files() -> dict[str, bytes | None]:
    """Everything below the current directory that a run may not change; logs are kept apart."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(Path().rglob("*"))}


def refused(capsys: Capture, code: int, message: str, *arguments: str) -> None:
    """The command ends with `code`, says `message`, tells machines the same and changes no file."""
    before = files()
    ended = run(capsys, "train", *arguments, "--json")
    assert ended.code == code, ended.err
    assert message in ended.err
    assert message in ended.events[-1]["message"]
    assert ended.events[-1]["exit_code"] == code
    assert files() == before


def unreadable(root: Path) -> None:
    pictures(root, 2)
    for path in root.glob("*.png"):
        path.write_bytes(b"this is no picture")


def without_captions(root: Path) -> None:
    pictures(root, 2)
    for path in root.glob("*.txt"):
        path.unlink()


def empty_captions(root: Path) -> None:
    pictures(root, 2)
    for path in root.glob("*.txt"):
        path.write_text(" \n")


def cut_tar(root: Path) -> None:
    root.mkdir()
    (root / "shard.tar").write_bytes(os.urandom(700))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "set: does not exist; a data set is dataset.jsonl, or pictures and videos"),
        (lambda root: root.mkdir(), "set: nothing to train on (no file of these kinds is there); needed: "),
        (lambda root: root.write_text("x"), "set: is no folder and no uncompressed .tar"),
        (unreadable, "nothing to train on (skipped 2, media unreadable; first: 00: 00.png"),
        (without_captions, "nothing to train on (skipped 2, caption missing or empty; first: 00.png: no .json or .txt"),
        (empty_captions, "nothing to train on (skipped 2, caption missing or empty; first: 00: "),
        (lambda root: pictures(root, 2, 30, 20), "smaller than every bucket; first: 00: 30x20; the smallest bucket is"),
        (cut_tar, "tar cut off or damaged; first: shard.tar"),
    ],
    ids=["missing", "empty", "file", "unreadable", "captions missing", "captions empty", "too small", "tar"],
)
@pytest.mark.parametrize("objective", ["vae", "flow"])
def test_data_sets(objective: str, make: Any, message: str, capsys: Capture) -> None:
    make(Path("set"))
    data = {"source": "files", "paths": ["set"], "area": 1024}
    refused(capsys, 3, message, write_stage("stage.toml", objective, "start", "run", data=data))


FILES = {"source": "files", "paths": ["set"], "area": 1024}
WORLD = world(t2i=1)


@pytest.mark.parametrize(
    ("code", "message", "changes"),
    [
        (2, "unknown ['colour']", {"colour": 1}),
        (2, "objective is 'draw', expected one of 'vae', 'caption', 'flow'", {"objective": "draw"}),
        (2, "optimiser.lr is -1.0, expected a number above 0", {"optimiser": {"lr": -1.0}}),
        (2, "[data]: source is 'web'; choose one of world, files", {"data": {"source": "web"}}),
        (2, "[data]: source is None; choose one of world, files", {}),
        (2, "[data]: unknown ['colour'], missing []; legal are ", {"data": WORLD | {"colour": 1}}),
        (2, "[data]: unknown [], missing ['area']", {"data": {"source": "files", "paths": ["set"]}}),
        (2, "[data]: unit is 8, expected a multiple of 16", {"data": FILES | {"unit": 8}}),
        (2, "[data]: paths is 'set', expected a list", {"data": FILES | {"paths": "set"}}),
        (2, "[data]: paths is []; name folders and .tar files", {"data": FILES | {"paths": []}}),
        (
            3,
            "bucket 4x32x32: sides must be at least 1 pixel and frames 1, 5",
            {"data": FILES | {"frames": [4]}},
        ),
        (3, "area 100 and aspect 2.0: legal are at least 16x16", {"data": FILES | {"area": 100}}),
        (3, "max_broken is 2.0; legal is 0 to 1", {"data": FILES | {"max_broken": 2}}),
        (3, "tokens_per_batch 0", {"data": FILES | {"budget": 0}}),
        (3, "no records of ['t2v']", {"data": FILES | {"tasks": {"t2i": 1, "t2v": 1}}}),
        (2, "[settings]: unknown ['colour']", {"data": WORLD, "settings": {"colour": 1}}),
        (2, "[settings]: fresh is 'yes', expected true or false", {"data": WORLD, "settings": {"fresh": "yes"}}),
        (2, "[settings]: export is 'int8', expected one of", {"data": WORLD, "settings": {"export": "int8"}}),
        (4, "nowhere", {"data": WORLD, "model": "nowhere"}),
    ],
)
def test_stages(code: int, message: str, changes: dict[str, Any], capsys: Capture) -> None:
    pictures(Path("set"), 2)
    given: dict[str, Any] = {"objective": "vae", "model": "start", "out": "run", **changes}
    refused(capsys, code, message, write_stage("stage.toml", **given))


def test_a_stage_that_is_not_there(capsys: Capture) -> None:
    refused(capsys, 2, "cannot read the stage gone.toml", "gone.toml")
    Path("broken.toml").write_text("objective = ")
    refused(capsys, 2, "cannot read the stage broken.toml", "broken.toml")
    refused(capsys, 2, "cannot read the stage start", "start")


def other_model(seed: int, layers: int) -> None:
    data = small_preset()
    data["transformer"]["num_layers"] = layers
    preset.write_preset(data, Path("other"), seed=seed)
    Path("start").unlink()
    Path("start").symlink_to("other")


def test_a_checkpoint_of_another_run(capsys: Capture) -> None:
    tables: dict[str, Any] = {"data": world(t2i=1), "optimiser": {"lr": 1e-3, "schedule": "linear"}}

    def stage(**changes: Any) -> str:
        merged = {**tables, **changes}
        return write_stage("stage.toml", "flow", "start", "run", **merged)

    trained(capsys, stage(), "--steps", "1")
    kept = bits("run")
    cases: list[tuple[str, dict[str, Any]]] = [
        ("optimiser.lr is 0.001 there and 0.002 here", {"optimiser": tables["optimiser"] | {"lr": 2e-3}}),
        ("data.budget is 60 there and 70 here", {"data": world(t2i=1, budget=70)}),
        ("seed is 3 there and 4 here", {"seed": 4}),
        ("settings.queries is None there and False here", {"settings": {"queries": False}}),
        ("steps is 4 there and 5 here", {"steps": 5}),
    ]
    for told, changes in cases:
        refused(capsys, 2, f"run/checkpoints/step-00000001 is of another stage: {told}; set it back", stage(**changes))
    for number, layers in enumerate((1, 2)):
        shutil.rmtree("other", ignore_errors=True)
        other_model(number, layers)
        refused(capsys, 2, "step-00000001 is of another stage: model is ", stage())
    assert bits("run") == kept


def test_a_run_directory_in_use_and_one_that_is_a_file(capsys: Capture) -> None:
    stage = write_stage("stage.toml", "vae", "start", "run", data=world(t2i=1))
    with occupied(Path("run")):
        refused(capsys, 2, "another run is training in run; wait for it or choose another directory", stage)
    refused(capsys, 2, "run/checkpoints holds no checkpoint to resume; leave --resume out", stage, "--resume")
    refused(capsys, 3, "the run directory stage.toml cannot be made (File exists)", stage, "--out", "stage.toml")


def test_data_that_is_gone_when_a_run_goes_on(capsys: Capture) -> None:
    pictures(Path("set"), 4)
    stage = write_stage("stage.toml", "vae", "start", "run", data=FILES)
    trained(capsys, stage, "--steps", "1")
    Path("set").rename("away")
    refused(capsys, 3, "set: does not exist", stage)
    Path("away").rename("set")
    assert trained(capsys, stage).named("resume")[0]["step"] == 1
