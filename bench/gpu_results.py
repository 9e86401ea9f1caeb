"""Where `bench gpu` puts what its steps print, line by line while they run: rows to files, everything else to a log."""

import json
import threading
from pathlib import Path
from typing import Any

from bench import harness
from bench.gpu_place import place
from bench.harness import Mark, Measure, Spread

ROW = '{"bench":'
"""How a line of JSON that is a row begins."""
LOG, TABLE = "gpu.log", "table.json"


class Results:
    """A directory of results; without one, rows are only kept in memory."""

    def __init__(self, directory: Path | None) -> None:
        """Make the directory where it is not there; its log begins anew."""
        self._directory = directory
        self._lock = threading.Lock()
        self._rows: list[dict[str, Any]] = []
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / LOG).write_text("", encoding="utf-8")

    def hear(self, line: str) -> None:
        """Take a line of a step; a row goes to the file of its benchmark."""
        row = _row(line)
        with self._lock:
            if row is not None:
                self._rows.append(row)
            if self._directory is not None:
                name = LOG if row is None else f"{row['bench']}.jsonl"
                with (self._directory / name).open("a", encoding="utf-8") as file:
                    file.write(line + "\n")

    def take_rows(self) -> list[dict[str, Any]]:
        """The rows that came since the last call."""
        with self._lock:
            rows, self._rows = self._rows, []
        return rows

    def save(self, measures: list[Measure]) -> None:
        """Append measures of `bench gpu` itself to its own file."""
        if self._directory is not None and measures:
            harness.save(place(harness.stamp("gpu", measures)), self._directory)


def required(row: dict[str, Any]) -> Measure | None:
    """The measure of a row that has a requirement; None for others."""
    if "required" not in (row["ceiling"] or {}).get("what", ""):
        return None
    spread = Spread(**row["spread"]) if row["spread"] else None
    return Measure(row["case"], row["metric"], row["value"], row["unit"], spread, Mark(**row["ceiling"]))


def _row(line: str) -> dict[str, Any] | None:
    """The row of a line; None where it is none, or was cut off when its process was ended."""
    if not line.startswith(ROW):
        return None
    try:
        row: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row
