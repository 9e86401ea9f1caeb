"""The whole way of a model through the command line, in small: autoencoder, reader, three stages, a picture at the end.

And that way cut short: by Ctrl-C, a dead worker, a loss that is no number, a full disk. The model is of a few thousand
weights and its pictures are noise; that every stage takes what the one before left is what is shown.
"""

import json
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.e2e.stages import bits, log_lines, run, trained, world, write_stage
from vino_rt.cli import main
from vino_rt.model_dir import ModelDir
from vino_rt.request import Request
from vino_rt.runtime import Runtime
from vino_rt.train.flow import FlowObjective
from vino_rt.train.objective import Loss

pytestmark = pytest.mark.usefixtures("place")
Capture = pytest.CaptureFixture[str]
ALL = {"t2i": 1, "t2v": 1, "i2v": 1, "ti2v": 1, "ti2i": 1, "tv2v": 1, "tiv2v": 1}


def parts(model: str) -> dict[str, str]:
    """The SHA-256 of each part's weights."""
    files = json.loads((Path(model) / "model.json").read_text())["files"]
    return {name.partition("/")[0]: entry["sha256"] for name, entry in files.items() if "safetensors" in name}


def changed(before: str, after: str) -> set[str]:
    one, two = parts(before), parts(after)
    return {name for name in one if one[name] != two[name]}


def queries(model: str) -> np.ndarray:
    tensor = ModelDir.open(Path(model)).part("connector").load(["metaquery"])["metaquery"]
    return np.asarray(tensor.float().numpy())


def test_from_nothing_to_a_picture(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("START_BATCHES", 2), ("START_SAMPLES", 8), ("SCALE_BATCHES", 2)):
        monkeypatch.setattr(f"vino_rt.train.vae.{name}", value)
    monkeypatch.setattr("vino_rt.train.vae_start.ROWS", 2000)
    lessons = {"batch": 4, "lessons": {"image": 1, "clip": 1, "which": 1, "i2v": 1}}
    fresh = {"fresh": True}
    flows: list[dict[str, Any]] = [
        {
            "data": world(t2i=1, t2v=1, **{"ti2i/reconstruct": 1}) | {"long": 1.0},
            "settings": {**fresh, "queries": False},
        },
        {"data": world(t2i=1, t2v=1, i2v=1, **{"ti2i/select": 1}), "settings": {"queries": True}},
        {"data": world(**ALL), "settings": {"export": "bfloat16"}, "steps": 8, "seed": 5},
    ]
    stages = {
        "vae": write_stage("vae.toml", "vae", "start", "vae", steps=3, data=world(t2i=1, t2v=1), settings=fresh),
        "caption": write_stage("caption.toml", "caption", "vae/model", "caption", steps=3, data=lessons),
    }
    model = "caption/model"
    for number, tables in enumerate(flows, 1):
        name = f"stage{number}"
        stages[name] = write_stage(f"{name}.toml", "flow", model, name, **tables)
        model = f"{name}/model"
    for name, stage in stages.items():
        ended = trained(capsys, stage)
        assert ended.named("result")[0]["model"] == f"{name}/model"
        assert len(log_lines(name)) == ended.named("start")[0]["steps"]
    assert changed("start", "vae/model") == {"vae"}
    assert changed("vae/model", "caption/model") == {"vlm"}
    for before, after in (("caption/model", "stage1/model"), ("stage1/model", "stage2/model")):
        assert changed(before, after) == {"transformer", "connector"}
    learnt = set().union(*(line["parts"] for line in log_lines("stage3")))
    assert learnt & {"t2i", "ti2i"}
    assert learnt & {"t2v", "i2v", "ti2v", "tv2v", "tiv2v"}
    assert not np.array_equal(queries("stage1/model"), queries("stage2/model"))
    check_use(capsys, "stage3/model")


def check_use(capsys: Capture, model: str) -> None:
    """Draw with a model and let it describe what it drew."""
    Path("store").mkdir()
    with Runtime.open(Path(model), recipe="eager", store=Path("store")) as runtime:
        result = runtime.generate(Request(prompt="a red circle", size=(32, 48), steps=2, seed=1))
    assert result.frames.shape == (1, 48, 32, 3)
    assert result.frames.std() > 0
    Image.fromarray(result.frames[0]).save("drawn.png")
    ended = run(capsys, "understand", "drawn.png", "--model", model, "--max-tokens", "3", "--json")
    told = [event["event"] for event in ended.events if event["event"] != "step"]
    assert (ended.code, told) == (0, ["answer"])


FLOW: dict[str, Any] = {
    "log": {"checkpoint_every": 1, "keep": 9, "every": 1},
    "data": world(t2i=1, ti2i=1, t2v=1, tiv2v=1),
    "settings": {"drop_prompt": 0.3},
}


@pytest.fixture(scope="module")
def whole(start: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of a run that nothing befell."""
    place = tmp_path_factory.mktemp("whole")
    stage = write_stage(str(place / "flow.toml"), "flow", str(start), str(place / "run"), **FLOW)
    assert main(["train", stage, "--quiet", "--debug"]) == 0
    return str(place / "run")


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def fill_the_disk() -> None:
    """As near as a process comes to it: no file may become larger than a few pages."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def befall(patch: pytest.MonkeyPatch, what: str) -> None:
    """Let something happen at micro-batch 2, which is step 3."""
    loss, batch = FlowObjective.loss, FlowObjective.batch
    events: dict[str, Callable[[], None]] = {"ctrl-c": interrupt, "full disk": fill_the_disk}

    def bad_loss(self: FlowObjective, given: Any, index: int) -> Loss:
        if index == 2 and what in events:
            events[what]()
        found = loss(self, given, index)
        return Loss(found.value * float("nan"), found.parts) if (index, what) == (2, "nan") else found

    def bad_batch(self: FlowObjective, index: int) -> Any:
        if (index, what) == (2, "killed worker"):
            assert multiprocessing.parent_process() is not None
            os.kill(os.getpid(), signal.SIGKILL)
        return batch(self, index)

    patch.setattr(FlowObjective, "loss", bad_loss)
    patch.setattr(FlowObjective, "batch", bad_batch)


@pytest.mark.parametrize(
    ("what", "workers", "code", "told"),
    [
        ("ctrl-c", 0, 130, "stopped at step 3 of 4, checkpoint run/checkpoints/step-00000003; the same comm"),
        ("ctrl-c", 2, 130, "stopped at step 3 of 4"),
        ("killed worker", 1, 1, "; the last checkpoint is intact (run/checkpoints/step-0000000"),
        ("nan", 0, 1, "step 3: the loss is nan in micro-batch 2 (samples t"),
        ("full disk", 0, 3, "the checkpoint of step 3 was not written, earlier ones are intact: "),
    ],
)
def test_an_accident_costs_nothing(
    what: str, workers: int, code: int, told: str, whole: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = write_stage("flow.toml", "flow", "start", "run", workers=workers, **FLOW)
    trained(capsys, stage, "--steps", "1")
    kept = bits("run/checkpoints/step-00000001")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        befall(patch, what)
        try:
            ended = run(capsys, "train", stage, "--json", "--resume")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ended.code == code
    assert told in ended.err
    assert ended.events[-1]["exit_code"] == code
    left = {path.name for path in Path("run/checkpoints").iterdir()}
    assert "step-00000001" in left <= {f"step-0000000{step}" for step in (1, 2, 3)}
    assert bits("run/checkpoints/step-00000001") == kept
    trained(capsys, stage, "--resume")
    last = "checkpoints/step-00000004"
    assert bits(f"run/{last}") == bits(f"{whole}/{last}")
    assert bits("run/model") == bits(f"{whole}/model")
    assert log_lines("run") == log_lines(whole)


@pytest.mark.parametrize("objective", ["vae", "flow"])
def test_a_learning_rate_that_breaks_everything(objective: str, capsys: Capture) -> None:
    tables: dict[str, Any] = {"data": world(t2i=1), "log": {"checkpoint_every": 1}}
    stage = write_stage("wild.toml", objective, "start", "run", optimiser={"lr": 1e30}, **tables)
    ended = run(capsys, "train", stage, "--json")
    assert ended.code == 1
    assert "step 2: the loss is " in ended.err
    assert "in micro-batch 1 (samples train/t2i/" in ended.err
    assert "write the model of the checkpoint with --steps and its step, and start another stage" in ended.err
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["step-00000001"]
    if objective == "flow":
        trained(capsys, stage, "--steps", "1")
        assert changed("start", "run/model") == {"transformer", "connector"}
        return
    ended = run(capsys, "train", stage, "--steps", "1")
    assert ended.code == 4
    assert "have the root mean square nan, which nothing can be scaled by" in ended.err
    assert not Path("run/model").exists()
