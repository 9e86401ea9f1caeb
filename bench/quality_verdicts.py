"""A file of verdicts, one line of JSON each: to look at what failed, and to go on where a run was cut.

A line counts again only for the same trial of the same run, and a run is told by everything that decides what comes
out: weights, recipe, settings, and the world's own code with its judge. One file may hold several runs.
"""

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import vino_rt.world
from bench.quality_cases import Trial
from bench.quality_draw import Setup
from bench.quality_score import Judged
from vino_rt.backends.recipe import load_recipe
from vino_rt.model_dir import ModelDir


class Verdicts:
    """The verdicts of one run; without a path they are kept in memory only."""

    def __init__(self, path: Path | None, run: str) -> None:
        """Read what the file already holds of this run."""
        self.path, self.run = path, run
        self._known: dict[str, Judged] = {}
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                self._take(line)
            if not path.read_bytes().endswith(b"\n"):
                # A run was cut in the middle of a line; what follows must not continue it.
                with path.open("a", encoding="utf-8") as file:
                    file.write("\n")

    def known(self, trial: Trial) -> Judged | None:
        """The verdict of a trial, if there is one."""
        return self._known.get(name_of(trial))

    def add(self, trial: Trial, verdict: Judged) -> None:
        """Keep a verdict, and write it down at once."""
        self._known[name_of(trial)] = verdict
        if self.path is not None:
            line = json.dumps({"run": self.run, "trial": name_of(trial), **asdict(verdict)})
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")

    def _take(self, line: str) -> None:
        try:
            entry: Any = json.loads(line)
        except json.JSONDecodeError:
            return
        names = {field.name for field in fields(Judged)}
        if isinstance(entry, dict) and entry.get("run") == self.run and names <= entry.keys():
            self._known[str(entry.get("trial"))] = Judged(**{name: entry[name] for name in names})


def name_of(trial: Trial) -> str:
    """A name that no other trial has."""
    return _digest(repr(trial))


def run_name(setup: Setup, model: ModelDir) -> str:
    """A name for all that decides an answer and its verdict; the number of threads is not part of it."""
    world = sorted(Path(*vino_rt.world.__path__).rglob("*.py"))
    code = _digest("".join(path.read_text(encoding="utf-8") for path in world))
    given = (setup.steps, setup.guidance, setup.image_guidance, load_recipe(setup.recipe), setup.autoencoder)
    return _digest(repr((model.weights_hash, model.config_hash, model.settings.to_json(), given, code)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
