"""`python -m tests.parity DIR...`: one JSON line per output on stdout, exit code 1 when one is off."""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.parity.measure import Line
from tests.parity.pipeline import RECIPES
from tests.parity.runner import Options, run_case


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge every case named on the command line; 0 when every output is within its limit."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("cases", nargs="+", type=Path, metavar="DIR", help="directories of golden cases")
    parser.add_argument("--engines", choices=sorted(RECIPES), default="eager", help="what runs the pipelines")
    parser.add_argument("--store", type=Path, help="where built engines are kept; left out: built for this run")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="parity-store-") as scratch:
        options = Options(given.engines, given.store or Path(scratch))
        verdicts = [run_case(path, _print, options) for path in given.cases]
    return 0 if all(verdicts) else 1


def _print(line: Line) -> None:
    print(json.dumps(line.record()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
