"""Training on a CUDA device: every objective takes steps in bfloat16, draws its sheet, exports, and goes on from there.

A tiny model; how its losses fall is the matter of the tests on the CPU.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.small_model import make_small_model
from vino_rt.model_dir import ModelDir
from vino_rt.train.caption import CaptionObjective
from vino_rt.train.flow import FlowObjective
from vino_rt.train.loop import Call, train
from vino_rt.train.objective import Objective
from vino_rt.train.stage import LogStage, OptimiserStage, Stage
from vino_rt.train.vae import VaeObjective
from vino_rt.train.world_data import WorldData

pytestmark = pytest.mark.gpu
TABLE = {
    "tasks": {"t2i": 1.0, "ti2i": 1.0, "t2v": 1.0, "i2v": 1.0},
    "buckets": [{"size": [32, 48], "frames": 1, "share": 1.0}, {"size": [48, 32], "frames": 5, "share": 1.0}],
    "budget": 60,
    "overhead": 8,
    "examples": 9,
}
LESSONS = {"lessons": {"image": 1.0, "clip": 1.0}, "batch": 4}
OBJECTIVES: Mapping[str, Callable[[ModelDir], Objective]] = {
    "flow": lambda model: FlowObjective(model, WorldData(TABLE, 5), {}, 1),
    "vae": lambda model: VaeObjective(model, WorldData(TABLE, 5), {}, 1),
    "caption": lambda model: CaptionObjective(model, LESSONS, {}, 1),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelDir:
    return make_small_model(tmp_path_factory.mktemp("small") / "model")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_a_stage_runs_through(model: ModelDir, tmp_path: Path, name: str, workers: int) -> None:
    told: list[str] = []
    chosen: Any = {"objective": name, "precision": "bfloat16", "device": "cuda", "workers": workers}
    chosen |= {"optimiser": OptimiserStage(lr=1e-4), "log": LogStage(every=1, sheet_every=2, checkpoint_every=2)}
    stage = Stage(model=model.path, out=tmp_path / "run", seed=3, steps=4, accumulate=2, **chosen)
    for steps in (2, 4):
        outcome = train(stage, OBJECTIVES[name](model), Call(steps=steps, listen=lambda event, _: told.append(event)))
    assert {"resume", "sheet", "checkpoint", "export"} <= set(told)
    assert outcome.model is not None
    ModelDir.open(outcome.model)
    lines = [json.loads(line) for line in (stage.out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(torch.tensor(line["loss"]).isfinite() for line in lines)
