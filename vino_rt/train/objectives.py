"""Which objective a stage names; opens it with its model directory and its data."""

from pathlib import Path

from vino_rt.model_dir import ModelDir
from vino_rt.train.objective import Objective
from vino_rt.train.source import open_source
from vino_rt.train.stage import Stage


def open_objective(stage: Stage, base: Path) -> Objective:
    """The objective of a stage; `base` is the directory that paths in its tables are relative to.

    Raises UsageError for tables that cannot be used, InputError for data and ModelError for a model directory.
    """
    model = ModelDir.open(stage.model)
    if stage.objective == "vae":
        from vino_rt.train.vae import VaeObjective

        return VaeObjective(model, open_source(stage.data, stage.seed, base), stage.settings, stage.seed)
    if stage.objective == "flow":
        from vino_rt.train.flow import FlowObjective

        source = open_source(stage.data, stage.seed, base)
        return FlowObjective(model, source, stage.settings, stage.seed, cache=stage.cache)
    from vino_rt.train.caption import CaptionObjective

    return CaptionObjective(model, stage.data, stage.settings, stage.seed)
