"""Two processes under torchrun with FSDP2 on the CPU against one process that does the work of both."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.policy.source import ROOT
from tests.unit.toy_objective import Toy, log_lines
from tests.unit.toy_run import muon_stage, steady_stage
from vino_rt.errors import UsageError
from vino_rt.train.distributed import World, make_root, open_world
from vino_rt.train.loop import Call, train
from vino_rt.weights import PartWeights

MICRO_BATCHES = 4
# Seconds on an idle machine; three interpreters that load torch wait for each other on a busy one.
pytestmark = pytest.mark.timeout(300)


def torchrun(processes: int, *arguments: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = ["--nproc-per-node", str(processes), "--master-addr", "127.0.0.1", "--master-port", str(port)]
    command = [sys.executable, "-m", "torch.distributed.run", *place, "-m", "tests.unit.toy_run", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr


def same_weights(one: Path, other: Path, rtol: float = 1e-4, atol: float = 1e-6) -> None:
    first, second = PartWeights(one), PartWeights(other)
    assert first.names() == second.names()
    for name in first.names():
        # A buffer is each process's own: `seen` counts its forward passes.
        if name != "seen":
            torch.testing.assert_close(first.read(name), second.read(name), rtol=rtol, atol=atol)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two")
    torchrun(2, str(out), str(MICRO_BATCHES))
    return out


def test_two_processes_have_the_loss_curve_of_one(two: Path, tmp_path: Path) -> None:
    stage = steady_stage(tmp_path / "one", MICRO_BATCHES)
    one = train(stage, Toy())
    curves = log_lines(two / "good"), log_lines(stage.out)
    assert [line["step"] for line in curves[0]] == list(range(1, 9))
    for double, single in zip(*curves, strict=True):
        for name in ("loss", "lr", "grad_norm"):
            assert double[name] == pytest.approx(single[name], rel=1e-5), name
        assert double["parts"] == pytest.approx(single["parts"], rel=1e-5)
    for section in ("weights", "average", "first", "second"):
        same_weights(two / "good" / "checkpoints" / "step-00000008" / section, one.checkpoint / section)
    assert one.model is not None
    same_weights(two / "good" / "model", one.model)
    for name in ("step-00000004.png", "step-00000008.png"):
        sheets = [np.asarray(Image.open(out / "sheets" / name), int) for out in (two / "good", stage.out)]
        assert np.abs(sheets[0] - sheets[1]).max() <= 1


def test_two_processes_with_muon_stay_near_one(two: Path, tmp_path: Path) -> None:
    stage = muon_stage(tmp_path / "one", MICRO_BATCHES)
    train(stage, Toy())
    for of_two, of_one in zip(log_lines(two / "muon"), log_lines(stage.out), strict=True):
        assert of_two["loss"] == pytest.approx(of_one["loss"], rel=1e-3)
    # Muon makes updates in bfloat16, so that another order of additions shows; eight of them move a weight by 0.1.
    for section in ("weights", "momentum"):
        double, single = (out / "checkpoints" / "step-00000008" / section for out in (two / "muon", stage.out))
        same_weights(double, single, rtol=0.02, atol=1e-2)


def test_one_process_goes_on_from_two(two: Path, tmp_path: Path) -> None:
    stage = steady_stage(tmp_path / "one", MICRO_BATCHES)
    (stage.out / "checkpoints").mkdir(parents=True)
    (two / "good" / "checkpoints" / "step-00000004").rename(stage.out / "checkpoints" / "step-00000004")
    outcome = train(stage, Toy(), Call(start="resume"))
    for section in ("weights", "average", "first", "second"):
        same_weights(two / "good" / "checkpoints" / "step-00000008" / section, outcome.checkpoint / section)
    with pytest.raises(UsageError, match="accumulate is 4 there and 2 here"):
        train(steady_stage(stage.out, 2), Toy())


def test_all_processes_hear_what_went_wrong_in_one(two: Path) -> None:
    told = [json.loads((two / f"told-{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0] == told[1]
    assert "step 2: the loss is nan in micro-batch 7 (samples s7-0, s7-1, s7-2)" in told[0]["nan"]
    assert "the checkpoint of step 4 was not written, earlier ones are intact" in told[0]["full"]
    assert not list((two / "full" / "checkpoints").iterdir())


def test_a_scalar_cannot_be_sharded() -> None:
    model = nn.Linear(2, 2)
    model.register_parameter("scale", nn.Parameter(torch.ones(())))
    with pytest.raises(UsageError, match=r"parameters \['scale'\] are scalars"):
        make_root(model, [], World(0, 2, torch.device("cpu")))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there() -> None:
    with (
        pytest.raises(UsageError, match="device is 'cuda', process 0 of this machine finds 0 CUDA"),
        open_world("cuda"),
    ):
        pass
    with open_world("auto") as world:
        assert (world.rank, world.size, world.device.type) == (0, 1, "cpu")
        assert world.gather("x") == ["x"]
