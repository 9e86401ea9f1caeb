"""The objective `flow` on the world in two processes under torchrun with FSDP2, against one that does the work of both.

The processes are those of the command itself, on a stage file.
"""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.policy.source import ROOT
from tests.unit.small_model import make_small_model
from tests.unit.toy_objective import log_lines
from vino_rt.model_dir import ModelDir
from vino_rt.train.distributed import World
from vino_rt.train.loop import train
from vino_rt.train.objectives import open_objective
from vino_rt.train.stage import load_stage
from vino_rt.train.step import Stepper
from vino_rt.weights import PartWeights

STEPS, MICRO_BATCHES = 4, 4
IDLE = re.compile(r"^time_text_embed\.text_embedder|refiner.*\.to_k\.bias$")
"""Weights that nothing reads, and those that a softmax cancels."""
STAGE = """
objective = "flow"
model = "model"
out = "{out}"
seed = 11
steps = {steps}
accumulate = {accumulate}
recompute = {recompute}
device = "cpu"
threads = 1

[optimiser]
lr = 1e-3
# Where a gradient is nothing but rounding, as that of a key's bias, the step must not be a whole one.
eps = 1e-4

[average]
decay = 0.8

[log]
every = 1

[data]
source = "world"
budget = 60
overhead = 8
examples = 9
tasks = {{ t2i = 1.0, ti2i = 1.0, t2v = 1.0, tiv2v = 1.0 }}
buckets = [
    {{ size = [32, 48], frames = 1, share = 1.0 }},
    {{ size = [48, 32], frames = 5, share = 1.0 }},
]

[settings]
drop_prompt = 0.3
drop_all = 0.2
"""
# Seconds on an idle machine; three interpreters that load torch wait for each other on a busy one.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model and room for stages and runs."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("flow")
    make_small_model(place / "model")
    return place


def write_stage(place: Path, name: str, processes: int, *, recompute: bool) -> Path:
    path = place / f"{name}.toml"
    accumulate = MICRO_BATCHES // processes
    text = STAGE.format(out=name, steps=STEPS, accumulate=accumulate, recompute=str(recompute).lower())
    path.write_text(text, encoding="utf-8")
    return path


def train_in_two(stage: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spread = ["--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    command = [sys.executable, "-m", "torch.distributed.run", *spread, "-m", "vino_rt", "train", str(stage)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def alone(place: Path) -> Path:
    """The run of one process."""
    stage = load_stage(write_stage(place, "one", 1, recompute=False))
    assert train(stage, open_objective(stage, place)).model
    return stage.out


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [True, False])
def test_two_processes_train_what_one_does(place: Path, alone: Path, recompute: bool) -> None:
    name = f"two-{recompute}"
    train_in_two(write_stage(place, name, 2, recompute=recompute))
    curves = log_lines(place / name), log_lines(alone)
    assert [line["step"] for line in curves[0]] == list(range(1, STEPS + 1))
    for double, single in zip(*curves, strict=True):
        for field in ("loss", "grad_norm", "parts"):
            assert double[field] == pytest.approx(single[field], rel=1e-5), (field, single["step"])
    model = ModelDir.open(place / name / "model")
    for part in ("transformer", "connector"):
        double, single, before = (tensors(path / part) for path in (model.path, alone / "model", place / "model"))
        assert double.keys() == single.keys()
        for name, weight in double.items():
            torch.testing.assert_close(weight, single[name], rtol=1e-4, atol=1e-6)
        # A name counts as trained when it went further than the two may differ.
        still = {name for name, weight in before.items() if torch.allclose(weight, single[name], rtol=0, atol=1e-5)}
        assert all(IDLE.search(name) for name in still), still


def tensors(part: Path) -> dict[str, torch.Tensor]:
    weights = PartWeights(part)
    return {name: weights.read(name).float() for name in weights.names()}


def test_blocks_forget_their_activations(place: Path) -> None:
    """What is kept for the backward pass lies in the blocks; that AdaLN Linears within them are shards changes none."""
    kept = [saved_bytes(place, recompute=recompute) for recompute in (False, True)]
    assert kept[1] < 0.6 * kept[0]


def saved_bytes(place: Path, *, recompute: bool) -> int:
    """What autograd keeps of the forward pass of the first micro-batch, beside the weights."""
    stage = load_stage(write_stage(place, f"kept-{recompute}", 1, recompute=recompute))
    objective = open_objective(stage, place)
    stepper = Stepper(stage, objective, World(0, 1, torch.device("cpu")))
    batch = objective.batch(0)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = stepper.root(lambda: objective.loss(batch, 0).value)
    assert value.requires_grad
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    weights = {parameter.untyped_storage().data_ptr() for parameter in objective.model.parameters()}
    return sum(size for address, size in sizes.items() if address not in weights)
