"""`python -m bench NAME [--json] [--save] [--quick]`: run bench/NAME.py; without a name, list what there is.

It knows that a benchmark is a module with `run(*, quick) -> Outcome`, and nothing of what any of them measures. One
that also has `add_options(parser)` takes options of its own; its `run` gets what was parsed as `options`. One that also
has `place(rows)` says more of where its rows come from. Files named `NAME_PART.py` are rooms of a benchmark and none
themselves.
"""

import argparse
import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench.harness import CheckFailed, Outcome, as_json, save, stamp, table
from vino_rt.errors import VinoError

PLACE = Path(__file__).parent
NO_BENCH = ("__init__", "__main__", "harness")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named benchmark; 1 when what it measures is wrong or misses a limit, 2 when there is no such name."""
    # The name first: which options there are depends on it. Without a name, or with a wrong one, there are no others.
    known, _ = _parser(add_help=False).parse_known_args(arguments)
    names = bench_names()
    bench = importlib.import_module(f"bench.{known.name}") if known.name in names else None
    parser = _parser()
    own = getattr(bench, "add_options", None)
    if own is not None:
        own(parser)
    options = parser.parse_args(arguments)
    if options.name is None:
        for name in names:
            print(f"{name:<10} {_question(name)}")
        return 0
    if bench is None:
        print(f"no benchmark named {options.name!r}; there are {', '.join(names)}", file=sys.stderr)
        return 2
    try:
        outcome: Outcome = bench.run(quick=options.quick, **({"options": options} if own else {}))
    except VinoError as error:
        print(f"{options.name}: {error}", file=sys.stderr)
        return 2
    except CheckFailed as error:
        print(f"{options.name}: nothing is timed, because the results are wrong: {error}", file=sys.stderr)
        return 1
    rows = stamp(options.name, outcome.measures)
    rows = getattr(bench, "place", list)(rows)
    if options.json:
        print("\n".join(as_json(rows)))
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(table(rows))
    if options.save:
        save(rows, PLACE / "results")
    for failure in outcome.failures:
        print(f"{options.name}: {failure}", file=sys.stderr)
    return 1 if outcome.failures else 0


def bench_names() -> list[str]:
    """Every benchmark, by file name."""
    return sorted(path.stem for path in PLACE.glob("*.py") if path.stem not in NO_BENCH and "_" not in path.stem)


def _question(name: str) -> str:
    """First line of a benchmark's docstring, read without importing it."""
    text = ast.get_docstring(ast.parse((PLACE / f"{name}.py").read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def _parser(*, add_help: bool = True) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m bench", description="Run a benchmark of this checkout.", add_help=add_help, allow_abbrev=False
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="which one; left out, they are listed")
    parser.add_argument("--json", action="store_true", help="one JSON row per line instead of a table")
    parser.add_argument("--save", action="store_true", help="append the rows to bench/results/NAME.jsonl")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, its numbers mean nothing")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
