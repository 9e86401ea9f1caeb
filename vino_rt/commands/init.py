"""`vino-rt init`: write a preset's model directory with random weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vino_rt.commands.base import Options
from vino_rt.commands.report import Reporter


@dataclass(frozen=True, kw_only=True)
class InitOptions(Options):
    """Options of `init`."""

    preset: Annotated[str, typer.Option(help="Name of a preset, such as mini.")]
    output: Annotated[Path, typer.Option("--output", "-o", help="Model directory to write.")]
    seed: Annotated[int, typer.Option(min=0, help="Random seed; the same seed gives the same weights.")] = 0
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing model directory.")] = False


def run(options: InitOptions, reporter: Reporter) -> None:
    """Write a model directory with random weights: the start of a training, or a stand-in for tests.

    Its pictures are noise until it is trained.

    Example: vino-rt init --preset mini -o model --seed 1
    """
    from vino_rt.models.vino.preset import init_preset

    with reporter.bars() as show:
        show("write", 0, 0)
        model = init_preset(options.preset, options.output, seed=options.seed, overwrite=options.overwrite)
    reporter.event("result", path=str(model.path), weights_hash=model.weights_hash)
    reporter.say(f"{model.path}: {model.settings.name}, random weights from seed {options.seed}")
