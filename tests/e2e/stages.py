"""Stages of training that tests write, run through the command line in this process, and what is left of them.

It knows the command and the files of a run, nothing of what is trained.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vino_rt.cli import main

STILL = {"size": [32, 48], "frames": 1, "share": 1.0}
MOVING = {"size": [48, 32], "frames": 5, "share": 1.0}
CLOCKS = {"seconds", "step_seconds", "samples_per_second"}


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """What `--json` told."""
        return [json.loads(line) for line in self.out.splitlines()]

    def named(self, name: str) -> list[dict[str, Any]]:
        """The events of one name."""
        return [event for event in self.events if event["event"] == name]


def world(budget: int = 60, **tasks: float) -> dict[str, Any]:
    """A table `[data]` of small pictures and clips."""
    moving = {"t2v", "i2v", "ti2v", "tv2v", "tiv2v"}
    kinds = {name in moving for name in tasks}
    buckets = [*([STILL] if False in kinds else []), *([MOVING] if True in kinds else [])]
    return {"source": "world", "budget": budget, "overhead": 8, "examples": 9, "tasks": tasks, "buckets": buckets}


def write_stage(path: str, objective: str, model: str, out: str, **changes: Any) -> str:
    """Write a stage of four steps; tables of `changes` are merged into the stage's. Returns `path`."""
    stage: dict[str, Any] = {
        "objective": objective,
        "model": model,
        "out": out,
        "seed": 3,
        "steps": 4,
        "device": "cpu",
        "threads": 1,
        "optimiser": {"lr": 1e-3},
        "average": {"decay": 0.5},
        "log": {"every": 1, "keep": 9},
    }
    for name, value in changes.items():
        stage[name] = stage.get(name, {}) | value if isinstance(value, dict) else value
    plain = [f"{name} = {toml(value)}" for name, value in stage.items() if not isinstance(value, Mapping)]
    tables = [
        "\n".join([f"[{name}]", *(f"{field} = {toml(entry)}" for field, entry in value.items())])
        for name, value in stage.items()
        if isinstance(value, Mapping)
    ]
    Path(path).write_text("\n".join([*plain, *tables]) + "\n", encoding="utf-8")
    return path


def toml(value: Any) -> str:
    """A value as TOML writes it in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(name)} = {toml(entry)}" for name, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return repr(value) if isinstance(value, float) else json.dumps(value)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Ended:
    """Run a command."""
    capsys.readouterr()
    code = main(arguments)
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    return Ended(code, told.out, told.err)


def trained(capsys: pytest.CaptureFixture[str], stage: str, *options: str) -> Ended:
    """Train a stage that must go well."""
    ended = run(capsys, "train", stage, "--json", *options)
    assert ended.code == 0, ended.err
    return ended


def bits(directory: str) -> dict[str, bytes]:
    """Every weight file below a directory by its name."""
    root = Path(directory)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.safetensors"))}


def log_lines(out: str) -> list[dict[str, Any]]:
    """The log of a run without what a clock says."""
    lines = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines]
