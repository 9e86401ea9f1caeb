"""An objective of a few hundred parameters for tests of the training loop: a line fitted by a net with dropout."""

import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vino_rt.errors import InputError
from vino_rt.train.objective import Loss
from vino_rt.train.stage import AverageStage, Group, LogStage, OptimiserStage, Stage
from vino_rt.weight_writer import write_file, write_part
from vino_rt.weights import TensorInfo

SIZE, WIDTH, ROWS = 5, 12, 3


class Block(nn.Module):
    """A residual layer with dropout, whose noise is the global generator's."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.drop = nn.Dropout(dropout)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        change: Tensor = self.drop(torch.nn.functional.gelu(self.linear(self.norm(x))))
        return x + change


class ToyModel(nn.Module):
    """A net that is trained, a frozen half-precision table beside it, a buffer that every step changes."""

    def __init__(self, seed: int, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.inlet = nn.Linear(SIZE, WIDTH)
        self.blocks = nn.ModuleList(Block(dropout) for _ in range(2))
        self.outlet = nn.Linear(WIDTH, 1)
        self.spare = nn.Linear(2, 2)
        self.frozen = nn.Linear(SIZE, SIZE, dtype=torch.bfloat16).requires_grad_(False)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.seen, Tensor)
        self.seen += 1
        x = self.inlet(x + self.frozen(x.bfloat16()).float())
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.outlet(x)
        return out


@dataclass(frozen=True)
class Batch:
    """What the toy learns from: rows x [3, 5] with their sum y [3, 1]."""

    keys: tuple[str, ...]
    pair: Mapping[str, Tensor]


@dataclass(eq=False)
class Toy:
    """Fits the sum of five numbers; `faults` maps a micro-batch to what goes wrong there."""

    seed: int = 7
    dropout: float = 0.1
    faults: Mapping[int, str] = field(default_factory=dict)
    drawn: list[float] = field(default_factory=list)
    model: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.model = ToyModel(self.seed, self.dropout)

    def batch(self, index: int) -> Batch:
        fault = self.faults.get(index)
        if fault == "refuse":
            raise InputError(f"sample {index} cannot be read")
        if fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        x = torch.randn(ROWS, SIZE, generator=generator)
        return Batch(tuple(f"s{index}-{row}" for row in range(ROWS)), {"x": x, "y": x.sum(1, keepdim=True)})

    def loss(self, batch: Batch, index: int) -> Loss:
        error = self.model(batch.pair["x"]).float() - batch.pair["y"]
        value = error.square().mean()
        fault = self.faults.get(index)
        if fault == "nan":
            value = value * float("nan")
        if fault == "gradient":
            # Finite, with a gradient that is not.
            value = value + torch.sqrt(error.sum() * 0.0)
        return Loss(value, {"error": float(error.detach().abs().mean()), f"kind{index % 2}": float(value.detach())})

    def shards(self) -> Sequence[nn.Module]:
        blocks = self.model.blocks
        assert isinstance(blocks, nn.ModuleList)
        return list(blocks)

    def sheet(self) -> NDArray[np.uint8] | None:
        with torch.no_grad():
            level = float(self.model(torch.ones(1, SIZE)).mean())
        self.drawn.append(level)
        return np.full((8, 10, 3), int(abs(level) * 20) % 256, np.uint8)

    def export(self, out: Path) -> None:
        state = {name: t for name, t in self.model.state_dict().items() if t.dtype == torch.float32}
        infos = [TensorInfo(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()]
        write_part(out, infos, state.items())
        write_file(out / "model.json", [json.dumps({"toy": self.seed}).encode()])


def toy_stage(out: Path, **changes: Any) -> Stage:
    """Eight steps with everything on; `changes` are fields, or those of a table as `optimiser`, `average` and `log`."""
    stage = Stage(
        objective="vae",
        model=out.parent / "none",
        out=out,
        seed=3,
        steps=8,
        device="cpu",
        optimiser=OptimiserStage(
            lr=0.02, warmup=3, schedule="cosine", floor=0.1, weight_decay=0.1, groups=(Group(match="outlet", lr=0.5),)
        ),
        average=AverageStage(decay=0.9, warmup=4),
        log=LogStage(every=3),
    )
    for table in ("optimiser", "average", "log"):
        if table in changes:
            stage = replace(stage, **{table: replace(getattr(stage, table), **changes.pop(table))})
    return replace(stage, **changes)


def listening() -> tuple[list[tuple[str, dict[str, Any]]], Callable[[str, Mapping[str, Any]], None]]:
    """A list of events and the listener that fills it."""
    events: list[tuple[str, dict[str, Any]]] = []
    return events, lambda name, fields: events.append((name, dict(fields)))


def bits(checkpoint: Path) -> dict[str, bytes]:
    """Every weight file of a directory by its name."""
    return {str(path.relative_to(checkpoint)): path.read_bytes() for path in sorted(checkpoint.rglob("*.safetensors"))}


def log_lines(out: Path) -> list[dict[str, Any]]:
    """The log without what a clock says."""
    clocks = {"seconds", "step_seconds", "samples_per_second"}
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in clocks} for line in lines]
