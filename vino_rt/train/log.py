"""The record of a run: `log.jsonl`, event files for TensorBoard where that is installed, and contact sheets.

It knows numbers by name. A line of the log is the mean over the steps since the line before.
"""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vino_rt.errors import OutputError
from vino_rt.media_write import write_media
from vino_rt.weight_writer import write_file

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG = "log.jsonl"


@dataclass(frozen=True)
class Step:
    """What one step of training gave, over all processes."""

    step: int
    """Steps done, this one included."""
    loss: float
    parts: Sequence[Mapping[str, float]]
    """One entry for each micro-batch, in the order of their indices."""
    lr: float
    grad_norm: float
    """Before clipping."""
    samples: int
    seconds: float
    replaced: int = 0
    """Samples that stand in for broken ones."""


@dataclass
class Window:
    """Sums over the steps since the last line of the log; part of a checkpoint, so that a resumed log is the same."""

    steps: int = 0
    loss: float = 0.0
    parts: dict[str, list[float]] = field(default_factory=dict)
    """Sum and count by name."""
    grad_norm: float = 0.0
    samples: int = 0
    seconds: float = 0.0
    replaced: int = 0

    def add(self, step: Step) -> None:
        """Take in a step."""
        self.steps += 1
        self.loss += step.loss
        self.grad_norm += step.grad_norm
        self.samples += step.samples
        self.seconds += step.seconds
        self.replaced += step.replaced
        for parts in step.parts:
            for name, value in parts.items():
                total = self.parts.setdefault(name, [0.0, 0])
                total[0] += value
                total[1] += 1

    def line(self) -> dict[str, Any]:
        """Means over the steps: loss, parts (over the micro-batches that have them) and norm; samples per second.

        And `replaced`, how many samples of them all stand in for broken ones, where there are any.
        """
        return {
            "loss": self.loss / self.steps,
            "parts": {name: total / count for name, (total, count) in sorted(self.parts.items())},
            "grad_norm": self.grad_norm / self.steps,
            "step_seconds": round(self.seconds / self.steps, 6),
            "samples_per_second": round(self.samples / self.seconds, 3) if self.seconds else 0.0,
            **({"replaced": self.replaced} if self.replaced else {}),
        }


class RunLog:
    """Files of a run directory that grow while it runs."""

    def __init__(self, out: Path, step: int) -> None:
        """Go on after `step`: lines of later steps, which a run wrote that did not reach its checkpoint, are cut."""
        self._out = out
        self._path = out / LOG
        write_file(self._path, [line for line in _lines_until(self._path, step)])
        self._board = _open_board(out / "tensorboard", step)

    @property
    def paths(self) -> list[str]:
        """Which logs are written, for the report."""
        return [str(self._path), *([str(self._out / "tensorboard")] if self._board else [])]

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line that has a `step`; OutputError when the disk is full."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            if self._board:
                numbers = {**line, **{f"part/{name}": value for name, value in line["parts"].items()}}
                for name, value in numbers.items():
                    if isinstance(value, int | float) and name != "step":
                        self._board.add_scalar(name, value, line["step"])
                self._board.flush()
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror}; free space there") from error

    def write_sheet(self, sheet: NDArray[np.uint8], step: int) -> Path:
        """Write a contact sheet uint8 [H, W, 3] of a step as PNG."""
        path = self._out / "sheets" / f"step-{step:08d}.png"
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"{path.parent} cannot be made ({error.strerror}); free space there") from error
        write_media(sheet[None], path, fps=1.0, metadata={}, overwrite=True)
        if self._board:
            self._board.add_image("sheet", sheet, step, dataformats="HWC")
        return path

    def close(self) -> None:
        """Finish the event files."""
        if self._board:
            self._board.close()


def _lines_until(path: Path, step: int) -> list[bytes]:
    """Whole lines of a log up to a step; a line that a crash has cut ends it."""
    kept: list[bytes] = []
    if path.is_file():
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                if int(json.loads(line)["step"]) > step or not line.endswith(b"\n"):
                    break
            except (ValueError, KeyError, TypeError):
                break
            kept.append(line)
    return kept


def _open_board(directory: Path, step: int) -> "SummaryWriter | None":
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(directory), purge_step=step + 1)
