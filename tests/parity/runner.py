"""Runs cases: finds the judge of a kind, and turns whatever stops one into a line of failure.

Printing and exit codes are the command's, assertions the tests'.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import safetensors

from tests.parity import connector, mmdit, pipeline, preproc, scheduler, vae, vlm
from tests.parity.case import Case
from tests.parity.measure import Judge, Line
from vino_rt.errors import VinoError

STOPPED = (
    VinoError, OSError, safetensors.SafetensorError, ArithmeticError, AssertionError, AttributeError, ImportError,
    LookupError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What a broken or unheard-of case may raise while it is judged: it fails, the other cases still run."""


@dataclass(frozen=True)
class Options:
    """How pipelines are run."""

    engines: str = "eager"
    store: Path | None = None
    """Where engines are kept between cases; None builds them for each."""


def run_case(path: Path, on_line: Callable[[Line], None], options: Options = Options()) -> bool:
    """Judge one case directory, hand every line over as it comes, and say whether all were right."""
    case, fine = Case(path.absolute()), [True]

    def passed_on(line: Line) -> None:
        fine[0] = fine[0] and line.ok
        lines.append(line)
        on_line(line)

    lines: list[Line] = []
    run_judge = judges(options).get(case.kind)
    if not path.is_dir() or run_judge is None:
        what = "no such directory" if not path.is_dir() else f"kind {case.kind!r} is none of {sorted(judges(options))}"
        passed_on(Line(case.name, "*", None, None, False, what))
        return False
    try:
        judge = Judge(case.name, case.outputs, passed_on)
    except STOPPED as error:
        passed_on(Line(case.name, "*", None, None, False, _told(error)))
        return False
    try:
        run_judge(case, judge)
    except STOPPED as error:
        judge.fail("*", _told(error))
        judge.finish(f"not reached: {_told(error)}")
    judge.finish()
    if not lines:
        judge.fail("*", "the case holds nothing to judge")
    return fine[0]


def judges(options: Options) -> dict[str, Callable[[Case, Judge], None]]:
    """The judge of every kind."""
    return {
        "mmdit": mmdit.judge,
        "connector": connector.judge,
        "vlm": vlm.judge,
        "vae": vae.judge,
        "pipeline": partial(pipeline.judge, engines=options.engines, store=options.store),
        "preproc": preproc.judge,
        "scheduler": scheduler.judge,
    }


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
