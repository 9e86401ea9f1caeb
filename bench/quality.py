"""How often is what a model draws, and says, what it was asked for?

The score table: 300 held-out prompts a row, drawn with default settings as a user would draw them, and judged from
pixels alone. Rows on the split `test` are held against their bars; `CASE_unseen` rows show pairs of colour and shape
that training never did.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.harness import Outcome
from bench.quality_cases import ROWS, UNDERSTAND, Trial, trials
from bench.quality_draw import Artist, Setup
from bench.quality_score import Judged, failures, measures
from bench.quality_sheet import SHOWN, Entry, write_sheet
from bench.quality_verdicts import Verdicts, run_name
from bench.quality_work import opened, work
from vino_rt.errors import UsageError
from vino_rt.model_dir import bundled_model

COUNT = 300
WORKERS = 2
QUICK = {"count": 2, "steps": 2}


@dataclass(frozen=True)
class Table:
    """What is asked for."""

    setup: Setup
    rows: tuple[str, ...] = ROWS
    count: int = COUNT
    workers: int = 1
    sheet: Path | None = None
    verdicts: Path | None = None


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be chosen beside the options of every benchmark."""
    parser.add_argument("--model", type=Path, metavar="DIR", help="model directory (default: the bundled one)")
    parser.add_argument("--recipe", default="cpu", metavar="NAME|FILE", help="which engines draw (default: cpu)")
    parser.add_argument("--count", type=int, metavar="N", help=f"examples of each case (default: {COUNT})")
    parser.add_argument("--cases", metavar="A,B", help=f"some of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--steps", type=int, metavar="N", help="denoise steps (default: the model's)")
    parser.add_argument("--guidance", type=float, metavar="X", help="text guidance (default: the model's)")
    parser.add_argument("--image-guidance", type=float, default=1.0, metavar="X", help="image guidance (default: off)")
    parser.add_argument(
        "--autoencoder",
        action="store_true",
        help="score the truth as the autoencoder gives it back: no model of its latents draws better",
    )
    parser.add_argument("--workers", type=int, default=WORKERS, metavar="N", help="processes with one thread each")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="write a contact sheet, a PNG")
    parser.add_argument("--verdicts", type=Path, metavar="FILE", help="write every verdict, and go on where it ends")


def run(*, quick: bool, options: argparse.Namespace | None = None) -> Outcome:
    """Score a model; quick: two examples of each case and two steps.

    Raises UsageError, ModelError or EngineError for what cannot be scored.
    """
    if options is None:
        parser = argparse.ArgumentParser()
        add_options(parser)
        options = parser.parse_args([])
    found = fill(asked(options, quick=quick))
    rows = measures(found)
    if options.autoencoder:
        return Outcome([replace(row, case=f"autoencoder, {row.case}") for row in rows])
    return Outcome(rows, () if quick else failures(rows))


def asked(options: argparse.Namespace, *, quick: bool) -> Table:
    """Options checked. Raises UsageError."""
    # An autoencoder says nothing.
    known = [name for name in ROWS if not (options.autoencoder and name.startswith(UNDERSTAND))]
    rows = tuple(known) if options.cases is None else tuple(filter(None, map(str.strip, options.cases.split(","))))
    unknown = [name for name in rows if name not in known]
    if unknown or not rows:
        raise UsageError(f"--cases is {options.cases!r}; name some of {', '.join(known)}")
    count = options.count if options.count is not None else QUICK["count"] if quick else COUNT
    for name, value in (("count", count), ("workers", options.workers)):
        if value < 1:
            raise UsageError(f"--{name} is {value}; give 1 or more")
    setup = Setup(
        bundled_model() if options.model is None else options.model,
        options.recipe,
        options.steps if options.steps is not None else QUICK["steps"] if quick else None,
        options.guidance,
        options.image_guidance,
        autoencoder=options.autoencoder,
    )
    return Table(setup, tuple(dict.fromkeys(rows)), count, options.workers, options.sheet, options.verdicts)


def fill(table: Table) -> list[Judged]:
    """Every verdict of the table, by row and number; what the file of verdicts holds is not drawn again."""
    model = opened(table.setup).model
    size, frames = model.settings.default_size, model.settings.default_frames
    chosen = [trial for row in table.rows for trial in trials(row, table.count, size=size, frames=frames)]
    verdicts = Verdicts(table.verdicts, run_name(table.setup, model))
    todo = [trial for trial in chosen if verdicts.known(trial) is None or _shown(table, trial)]
    workers = min(table.workers, max(1, len(todo)))
    if workers > 1 and any(trial.case != UNDERSTAND for trial in todo):
        # Built once before the workers would all begin to.
        Artist(table.setup).runtime.close()
    entries = []
    for done in work(table.setup, todo, workers):
        if verdicts.known(done.trial) is None:
            verdicts.add(done.trial, done.verdict)
        if _shown(table, done.trial):
            entries.append(Entry(done.trial, done.answer, done.verdict))
    if table.sheet is not None:
        write_sheet(entries, table.sheet)
    return _all(verdicts, chosen)


def _shown(table: Table, trial: Trial) -> bool:
    """Whether the sheet shows a trial; then its pictures are needed even if its verdict is known."""
    return table.sheet is not None and trial.number < SHOWN


def _all(verdicts: Verdicts, chosen: Sequence[Trial]) -> list[Judged]:
    found = [verdicts.known(trial) for trial in chosen]
    assert None not in found, "a trial without a verdict"
    return [verdict for verdict in found if verdict is not None]
