"""`vino-rt train` from the command line, with a toy for the objective."""

import json
import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.unit.toy_objective import Toy
from vino_rt.cli import main
from vino_rt.train.objective import Objective
from vino_rt.train.stage import Stage

STAGE = """
objective = "vae"
model = "start"
out = "run"
seed = 3
steps = 6
[optimiser]
lr = 0.01
[log]
every = 2
sheet_every = 3
"""


class Interrupting(Toy):
    """Sends signals to its own process while a micro-batch is computed."""

    at: int = -1
    times: int = 1

    def loss(self, batch: Any, index: int) -> Any:
        if index == self.at:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGTERM)
        return super().loss(batch, index)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "stage.toml").write_text(STAGE)
    opened(monkeypatch, Toy())
    return tmp_path


def opened(monkeypatch: pytest.MonkeyPatch, *objectives: Toy) -> None:
    """Let the command open these objectives, one after the other."""
    left = list(objectives)

    def open_objective(stage: Stage, base: Path) -> Objective:
        assert base == Path("sub")
        return left.pop(0)

    module = ModuleType("vino_rt.train.objectives")
    monkeypatch.setattr(module, "open_objective", open_objective, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_trains_and_reports_to_people(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "sub/stage.toml"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("training 451 parameters in float32 on 1 x cpu, steps 0 to 6; logs: sub/run/log.jsonl")
    assert said[1].startswith("step 2 of 6: loss ")
    assert said[1].endswith(" samples/s, 0:00:00 left")
    assert said[-1] == "sub/run/model: trained 6 steps"
    assert any(line.startswith("checkpoint sub/run/checkpoints/step-00000006 (") for line in said)
    assert "sheet sub/run/sheets/step-00000003.png" in said


def test_reports_to_machines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "sub/stage.toml", "--json", "--out", "other", "--device", "cpu"]) == 0
    told = events(capsys.readouterr().out)
    assert [event["event"] for event in told] == [
        "start", "log", "sheet", "log", "log", "sheet", "checkpoint", "export", "result",
    ]  # fmt: skip
    assert told[1]["step"] == 2
    assert set(told[1]["parts"]) == {"error", "kind0", "kind1"}
    assert told[-1] == {
        "event": "result", "step": 6, "why": "complete", "checkpoint": "other/checkpoints/step-00000006",
        "model": "other/model",
    }  # fmt: skip
    assert not (folder / "sub" / "run").exists()


def test_goes_on_and_starts_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened(monkeypatch, *(Toy() for _ in range(5)))
    train = ["train", "sub/stage.toml"]
    assert main([*train, "--resume"]) == 2
    assert "holds no checkpoint to resume" in capsys.readouterr().err
    assert main([*train, "--steps", "2", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert main([*train, "--minutes", "1e-7"]) == 0
    said = capsys.readouterr().out
    assert "going on from sub/run/checkpoints/step-00000002" in said
    assert "time is up at step 3 of 6, checkpoint sub/run/checkpoints/step-00000003; the same command goes on" in said
    assert main([*train, "--fresh", "--steps", "1"]) == 0
    assert "the earlier run was moved to sub/run/earlier-1" in capsys.readouterr().out
    (folder / "sub" / "run" / "checkpoints" / "step-00000001" / "manifest.json").write_text("{")
    assert main(train) == 4
    said = capsys.readouterr().err
    assert "warning: the checkpoint sub/run/checkpoints/step-00000001 is damaged" in said
    assert "all 1 checkpoints" in said


def test_what_is_refused_opens_no_objective(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened(monkeypatch)
    for arguments, told in (
        (["gone.toml"], "cannot read the stage gone.toml"),
        (["sub/stage.toml", "--device", "tpu"], "--device is 'tpu', expected one of cpu, cuda, auto"),
        (["sub/stage.toml", "--minutes", "nan"], "--minutes is nan, expected a number above 0"),
    ):
        assert main(["train", *arguments]) == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(("times", "told"), [(1, "stopped at step 4 of 6, checkpoint"), (2, "stopped at once")])
def test_signals_stop_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], times: int, told: str
) -> None:
    toy = Interrupting()
    toy.at, toy.times = 3, times
    opened(monkeypatch, toy, Toy())
    assert main(["train", "sub/stage.toml", "--json"]) == 130
    said = capsys.readouterr()
    assert told in said.err
    assert events(said.out)[-1] | {"message": ""} == {
        "event": "error", "type": "Cancelled", "message": "", "exit_code": 130,
    }  # fmt: skip
    assert (folder / "sub" / "run" / "checkpoints").exists() == (times == 1)
    assert main(["train", "sub/stage.toml"]) == 0
