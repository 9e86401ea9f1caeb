"""Cases of kind scheduler: noise levels, their differences and what the model is told, as tensors and as a table."""

import re

from tests.parity.case import BrokenCase, Case
from tests.parity.measure import LEVEL, TIMESTEP, Judge
from tests.parity.tables import Row, judge_rows
from vino_rt.schedule import Schedule, make_schedule

TABLE = "scheduler.json"
NAME = re.compile(r"(t|dt|timesteps|delta_t|model_timesteps)_(\d+)_(\d+(?:[.p]\d+)?)")
LIMITS = {"timesteps": LEVEL, "delta_t": LEVEL, "model_timestep": TIMESTEP}


def judge(case: Case, judge: Judge) -> None:
    """Judge `t_<steps>_<shift>`, `dt_<steps>_<shift>` and the rows of `scheduler.json`."""
    tables = sorted(path.name for path in case.path.glob("*.json") if path.name not in ("meta.json", TABLE))
    if tables:
        raise BrokenCase(f"{case.path}: tables {tables} are of no known kind")
    for name in case.outputs:
        if match := NAME.fullmatch(name):
            schedule = make_schedule(int(match[2]), float(match[3].replace("p", ".")))
            told = match[1] == "model_timesteps"
            ours = {"t": schedule.level, "timesteps": schedule.level, "model_timesteps": schedule.timesteps}
            judge.close(name, ours.get(match[1], schedule.delta), TIMESTEP if told else LEVEL)
    if (case.path / TABLE).is_file():
        judge_rows(judge, TABLE, case.json(TABLE), frozenset({"steps", "shift"}), _row, LIMITS)


def _row(row: Row) -> dict[str, list[float]]:
    schedule: Schedule = make_schedule(row["steps"], row["shift"])
    return {
        "timesteps": schedule.level.tolist(),
        "delta_t": schedule.delta.tolist(),
        "model_timestep": schedule.timesteps.tolist(),
    }
