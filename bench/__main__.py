"""`python -m bench NAME [--json] [--save] [--quick]`: run bench/NAME.py; without a name, list what there is.

It knows that a benchmark is a module with `run(*, quick)`, which returns an `Outcome` or yields one for each part that
is done, and nothing of what any of them measures. Parts are written as they come, for a run that may be ended. One that
also has `add_options(parser)` takes options of its own; its `run` gets what was parsed as `options`. One that also has
`place(rows)` says more of where its rows come from. Files named `NAME_PART.py` are rooms of a benchmark and none
themselves.
"""

import argparse
import ast
import importlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console

from bench.harness import CheckFailed, Outcome, Row, as_json, save, stamp, table
from vino_rt.errors import VinoError

PLACE = Path(__file__).parent
INSTALL = "install this checkout with its dependencies (pip install -e .), or set PYTHONPATH=.:kernels:export"
NO_BENCH = ("__init__", "__main__", "harness")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named benchmark; 1 when what it measures is wrong or misses a limit, 2 when there is no such name."""
    # The name first: which options there are depends on it. Without a name, or with a wrong one, there are no others.
    known, _ = _parser(add_help=False).parse_known_args(arguments)
    names = bench_names()
    try:
        bench = importlib.import_module(f"bench.{known.name}") if known.name in names else None
    except ModuleNotFoundError as error:
        print(f"{known.name}: {error}; {INSTALL}", file=sys.stderr)
        return 2
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
    rows: list[Row] = []
    code = _run(bench, options, {"options": options} if own else {}, rows)
    if rows and not options.json:
        Console(width=None if sys.stdout.isatty() else 160).print(table(rows))
    return code


def _run(bench: ModuleType, options: argparse.Namespace, own: dict[str, Any], rows: list[Row]) -> int:
    """Run a benchmark, write each part as it comes and add it to `rows`; returns the exit code."""
    code = 0
    try:
        found = bench.run(quick=options.quick, **own)
        parts: Iterable[Outcome] = (found,) if isinstance(found, Outcome) else found
        for part in parts:
            new: list[Row] = getattr(bench, "place", list)(stamp(options.name, part.measures))
            if options.json:
                print("".join(f"{line}\n" for line in as_json(new)), end="", flush=True)
            if options.save and new:
                save(new, PLACE / "results")
            for failure in part.failures:
                print(f"{options.name}: {failure}", file=sys.stderr, flush=True)
                code = 1
            rows += new
    except VinoError as error:
        print(f"{options.name}: {error}", file=sys.stderr)
        return 2
    except CheckFailed as error:
        print(f"{options.name}: nothing is timed, because the results are wrong: {error}", file=sys.stderr)
        return 1
    return code


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
