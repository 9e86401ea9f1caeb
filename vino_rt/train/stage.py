"""A stage of training as its TOML file says it, checked to the last field; knows no model and no data.

Paths in the file are relative to it. The tables `data` and `settings` are the objective's own: handed on untouched.
"""

import hashlib
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vino_rt.errors import UsageError, reason
from vino_rt.train.settings import need, take_table

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that are trained differently; the first group whose pattern is found in a name takes it."""

    match: str
    """Regular expression, searched for in the names of parameters."""
    lr: float = 1.0
    """Factor of the learning rate; 0 leaves the parameters as they are."""
    decay: bool = True
    """Whether weight decay applies; it never does to biases, norms and parameters of one axis."""
    method: Literal["adamw", "muon"] = "adamw"
    """What updates the group's matrices: Muon makes the singular values of an update equal, at AdamW's rates."""

    def __post_init__(self) -> None:
        try:
            re.compile(self.match)
        except re.error as error:
            raise UsageError(f"optimiser.groups: match is {self.match!r}, no regular expression: {error}") from error
        need(0 <= self.lr < math.inf, "optimiser.groups: lr", self.lr, "a factor of at least 0")


@dataclass(frozen=True, kw_only=True)
class OptimiserStage:
    """AdamW, its schedule, and which parameters are trained differently."""

    lr: float
    """Learning rate after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    warmup: int = 0
    """Steps over which the learning rate rises linearly to `lr`."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """How the learning rate falls from the end of the warm-up to the last step."""
    floor: float = 0.0
    """Fraction of `lr` that the schedule ends at."""
    clip: float = 1.0
    """Largest norm of the gradient; longer ones are scaled to it. 0: off."""
    groups: tuple[Group, ...] = ()

    def __post_init__(self) -> None:
        need(0 < self.lr < math.inf, "optimiser.lr", self.lr, "a number above 0")
        need(all(0 <= beta < 1 for beta in self.betas), "optimiser.betas", self.betas, "two numbers in 0 <= x < 1")
        need(0 < self.eps < 1, "optimiser.eps", self.eps, "a number above 0 and below 1")
        need(0 <= self.weight_decay < math.inf, "optimiser.weight_decay", self.weight_decay, "a number of at least 0")
        need(self.warmup >= 0, "optimiser.warmup", self.warmup, "a number of steps of at least 0")
        need(0 <= self.floor <= 1, "optimiser.floor", self.floor, "a fraction in 0..1")
        need(0 <= self.clip < math.inf, "optimiser.clip", self.clip, "a number of at least 0; 0 is off")


@dataclass(frozen=True, kw_only=True)
class AverageStage:
    """The moving average of the weights that sheets and the exported model use."""

    decay: float = 0.0
    """Share of the old average that a step keeps; 0: off, the weights themselves are used."""
    warmup: int = 0
    """After n steps at most n / (n + warmup) is kept, so that the start is forgotten soon; 0: `decay` at once."""

    def __post_init__(self) -> None:
        need(0 <= self.decay < 1, "average.decay", self.decay, "a number in 0 <= x < 1; 0 is off")
        need(self.warmup >= 0, "average.warmup", self.warmup, "a number of steps of at least 0")


@dataclass(frozen=True, kw_only=True)
class LogStage:
    """What a run writes beside the model, and how often."""

    every: int = 10
    """Steps from one line of the log to the next; a line is the mean over them."""
    sheet_every: int = 0
    """Steps from one contact sheet to the next, and one at the end; 0: none."""
    checkpoint_every: int = 0
    """Steps from one checkpoint to the next; 0: not by steps. A run that ends or is stopped always writes one."""
    checkpoint_minutes: float = 0.0
    """Minutes from one checkpoint to the next; 0: not by time."""
    keep: int = 2
    """Newest checkpoints that are kept."""
    shard_mib: float = 16.0
    """Largest file of a checkpoint in MiB; a single tensor that is larger gets a file of its own."""

    def __post_init__(self) -> None:
        need(self.every >= 1, "log.every", self.every, "a number of steps of at least 1")
        need(self.sheet_every >= 0, "log.sheet_every", self.sheet_every, "a number of steps of at least 0; 0 is off")
        need(self.checkpoint_every >= 0, "log.checkpoint_every", self.checkpoint_every, "at least 0; 0 is off")
        minutes = self.checkpoint_minutes
        need(0 <= minutes < math.inf, "log.checkpoint_minutes", minutes, "a number of at least 0; 0 is off")
        need(self.keep >= 1, "log.keep", self.keep, "a number of checkpoints of at least 1")
        need(0 < self.shard_mib < math.inf, "log.shard_mib", self.shard_mib, "a number of MiB above 0")

    @property
    def shard_bytes(self) -> int:
        """Bytes that a file of a checkpoint may have."""
        return int(self.shard_mib * MIB)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of training: what is learnt, from which model, for how long and how."""

    objective: Literal["vae", "caption", "flow"]
    model: Path
    """Model directory to start from."""
    out: Path
    """Directory of the run: checkpoints, logs, sheets and, at the end, the model."""
    seed: int
    steps: int
    """Updates of the weights in the whole stage; the schedule ends there."""
    accumulate: int = 1
    """Micro-batches that one process takes for one step."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward pass; weights, gradients and averages are always float32."""
    device: Literal["cpu", "cuda", "auto"] = "auto"
    threads: int | None = None
    """Threads that the CPU computes with; PyTorch's own choice when left out."""
    workers: int = 0
    """Processes that prepare micro-batches; 0: the training process does it between steps."""
    minutes: float | None = None
    """Time of one call: it then stops with a checkpoint and the next call goes on."""
    cache: Path | None = None
    """Directory for what is computed once for all stages and calls, such as latents; none: each call begins anew."""
    recompute: bool = False
    """Forget the activations inside the objective's shards and compute them again for the gradient: less memory."""
    deterministic: bool = True
    """Ask PyTorch for kernels that give the same bits every time, where there are some."""
    optimiser: OptimiserStage
    average: AverageStage = field(default_factory=AverageStage)
    log: LogStage = field(default_factory=LogStage)
    data: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        need(0 <= self.seed < 1 << 63, "seed", self.seed, "a whole number in 0 <= x < 2^63")
        need(self.steps >= 1, "steps", self.steps, "a number of steps of at least 1")
        need(self.accumulate >= 1, "accumulate", self.accumulate, "a number of micro-batches of at least 1")
        need(self.threads is None or self.threads >= 1, "threads", self.threads, "a number of at least 1")
        need(self.workers >= 0, "workers", self.workers, "a number of processes of at least 0")
        need(self.minutes is None or self.minutes > 0, "minutes", self.minutes, "a number above 0")
        if self.cache is not None and self.objective != "flow":
            raise UsageError(f"cache is set for objective {self.objective!r}, which keeps nothing; leave it out")
        if self.optimiser.warmup > self.steps:
            raise UsageError(
                f"optimiser.warmup is {self.optimiser.warmup}, more than the {self.steps} steps of the stage; lower it"
            )

    def fingerprint(self, processes: int) -> dict[str, Any]:
        """What two runs must share for one to go on where the other stopped, by the name of the field.

        Where the run lies, how it is watched and what computes it are left out; micro-batches count over all processes,
        and the number of steps matters to a falling learning rate alone.
        """
        record = asdict(self)
        for name in ("out", "cache", "device", "threads", "workers", "minutes", "recompute", "deterministic", "log"):
            del record[name]
        manifest = self.model / "model.json"
        record["model"] = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else ""
        record["accumulate"] = self.accumulate * processes
        if self.optimiser.schedule == "constant":
            del record["steps"]
        return dict(_flat(record, ""))


def load_stage(path: Path) -> Stage:
    """Read a stage; UsageError names the field, its value and what is legal."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"cannot read the stage {path}: {reason(error)}; name a .toml file of a stage") from error
    try:
        stage = take_table(table, Stage, "top level", "")
    except UsageError as error:
        raise UsageError(f"stage {path}: {error}") from error
    # `Path.__truediv__` leaves an absolute path as it is.
    cache = None if stage.cache is None else path.parent / stage.cache
    return replace(stage, model=path.parent / stage.model, out=path.parent / stage.out, cache=cache)


def _flat(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Entries of nested tables as `table.name`, with values as JSON gives them back."""
    for name, value in sorted(record.items()):
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
