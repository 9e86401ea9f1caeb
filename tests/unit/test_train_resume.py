"""A run that was cut equals one that was not: weights, averages, moments and log, to the bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.toy_objective import Toy, bits, listening, log_lines, toy_stage
from vino_rt.errors import UsageError
from vino_rt.train.distributed import trained
from vino_rt.train.log import LOG, RunLog, Step, Window
from vino_rt.train.loop import Call, train
from vino_rt.train.stage import Group

CASES: list[dict[str, Any]] = [
    {},
    {"accumulate": 3},
    {"workers": 2, "accumulate": 2},
    {"precision": "bfloat16", "recompute": True},
    {"average": {"decay": 0.0}, "optimiser": {"schedule": "constant", "clip": 0.0}},
    {"optimiser": {"groups": (Group(match="blocks", method="muon"),)}},
]


@pytest.mark.parametrize("changes", CASES, ids=str)
@pytest.mark.parametrize("cuts", [(4,), (1, 2, 7)], ids=str)
def test_cut_and_resumed_is_uncut(tmp_path: Path, changes: dict[str, Any], cuts: tuple[int, ...]) -> None:
    whole = train(toy_stage(tmp_path / "whole", **changes), Toy())
    for cut in cuts:
        outcome = train(toy_stage(tmp_path / "cut", **changes), Toy(), Call(steps=cut))
        assert (outcome.step, outcome.why) == (cut, "complete")
    # Another start shows that everything comes from the checkpoint.
    toy = Toy()
    with torch.no_grad():
        for tensor in (*trained(toy.model).values(), *toy.model.buffers()):
            tensor.add_(1)
    events, listen = listening()
    resumed = train(toy_stage(tmp_path / "cut", **changes), Toy(), Call(start="resume", listen=listen))
    assert events[0] == ("resume", {"path": outcome.checkpoint, "step": cuts[-1]})
    expected = bits(whole.checkpoint)
    assert bits(resumed.checkpoint) == expected
    sections = {name.partition("/")[0] for name in expected}
    average = ["average"] if not changes.get("average") else []
    muon = ["momentum"] if "groups" in changes.get("optimiser", {}) else []
    assert sections == {"weights", "first", "second", *average, *muon}
    assert log_lines(tmp_path / "cut") == log_lines(tmp_path / "whole")
    assert whole.model is not None
    assert resumed.model is not None
    assert bits(resumed.model) == bits(whole.model)


def test_lines_past_the_checkpoint_are_cut(tmp_path: Path) -> None:
    stage = toy_stage(tmp_path / "run", log={"every": 1, "checkpoint_every": 3, "keep": 9})
    train(stage, Toy())
    whole = log_lines(stage.out)
    for path in (stage.out / "checkpoints").iterdir():
        if path.name != "step-00000003":
            path.rename(tmp_path / path.name)
    with (stage.out / LOG).open("a") as file:
        file.write('{"step": 9, "lo')
    train(stage, Toy(), Call(steps=4))
    assert log_lines(stage.out) == whole[:4]
    train(stage, Toy())
    assert log_lines(stage.out) == whole
    assert [line["step"] for line in whole] == list(range(1, 9))


def test_a_log_ends_at_its_first_damaged_line(tmp_path: Path) -> None:
    for rest in ("[]\n", "{}\n", "half a li", '{"step": 3}'):
        (tmp_path / LOG).write_text('{"step": 1}\n{"step": 2}\n' + rest)
        RunLog(tmp_path, 9).close()
        assert (tmp_path / LOG).read_text() == '{"step": 1}\n{"step": 2}\n'
    RunLog(tmp_path, 1).close()
    assert (tmp_path / LOG).read_text() == '{"step": 1}\n'


def test_a_line_is_the_mean_of_its_steps() -> None:
    window = Window()
    window.add(Step(1, 2.0, [{"a": 1.0}, {"b": 5.0}], 0.1, 3.0, 4, 0.5))
    window.add(Step(2, 4.0, [{"a": 2.0}, {"a": 6.0}], 0.1, 1.0, 4, 1.5))
    copy = Window(**json.loads(json.dumps(vars(window))))
    assert copy == window
    assert copy.line() == {
        "loss": 3.0,
        "parts": {"a": 3.0, "b": 5.0},
        "grad_norm": 2.0,
        "step_seconds": 1.0,
        "samples_per_second": 4.0,
    }


def test_ways_to_start(tmp_path: Path) -> None:
    stage = toy_stage(tmp_path / "run")
    with pytest.raises(UsageError, match="holds no checkpoint to resume"):
        train(stage, Toy(), Call(start="resume"))
    train(stage, Toy(), Call(steps=4, start="fresh"))
    first = log_lines(stage.out)
    events, listen = listening()
    train(stage, Toy(), Call(steps=2, start="fresh", listen=listen))
    aside = stage.out / "earlier-1"
    assert events[0] == ("aside", {"path": aside})
    assert log_lines(aside) == first
    assert {path.name for path in aside.iterdir()} >= {"checkpoints", LOG, "model"}
    assert [path.name for path in (stage.out / "checkpoints").iterdir()] == ["step-00000002"]


def test_a_step_that_the_run_has_passed_is_refused(tmp_path: Path) -> None:
    stage = toy_stage(tmp_path / "run")
    first = train(stage, Toy(), Call(steps=4))
    assert first.model is not None
    kept = bits(first.model)
    with pytest.raises(UsageError, match=r"steps is 2, but the run in .*run has reached step 4; .*--steps.*--fresh"):
        train(stage, Toy(), Call(steps=2))
    assert bits(first.model) == kept
    assert train(stage, Toy(), Call(steps=4)) == first


def test_a_complete_run_only_exports_again(tmp_path: Path) -> None:
    stage = toy_stage(tmp_path / "run")
    first = train(stage, Toy())
    assert first.model is not None
    exported, log = bits(first.model), (stage.out / LOG).read_bytes()
    (first.model / "model.safetensors").unlink()
    (first.model / "stray").touch()
    events, listen = listening()
    again = train(stage, Toy(), Call(listen=listen))
    assert [name for name, _ in events] == ["resume", "start", "export"]
    assert again == first
    assert bits(first.model) == exported
    assert not (first.model / "stray").exists()
    assert (stage.out / LOG).read_bytes() == log


def test_event_files_for_tensorboard_where_it_is_installed(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    stage = toy_stage(tmp_path / "run", log={"every": 1, "sheet_every": 4})
    events, listen = listening()
    train(stage, Toy(), Call(steps=4, listen=listen))
    train(stage, Toy())
    assert events[0][1]["logs"] == [str(stage.out / LOG), str(stage.out / "tensorboard")]
    board = reader.EventAccumulator(str(stage.out / "tensorboard"))
    board.Reload()
    losses = [(event.step, event.value) for event in board.Scalars("loss")]
    assert losses == [(line["step"], pytest.approx(line["loss"])) for line in log_lines(stage.out)]
    assert "part/error" in board.Tags()["scalars"]
    assert [image.step for image in board.Images("sheet")] == [4, 8]
