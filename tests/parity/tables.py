"""JSON tables: every row recomputed from its own inputs, one line per column.

It knows how to hold rows against rows, not what a column means; that is handed in.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.parity.measure import EXACT, Judge, as_tensor, distance
from vino_rt.errors import VinoError

ERROR = "error"
Row = Mapping[str, Any]


def judge_rows(
    judge: Judge,
    table: str,
    rows: Sequence[Row],
    given: frozenset[str],
    compute: Callable[[Row], Mapping[str, Any]],
    limits: Mapping[str, float] | None = None,
) -> None:
    """Judge every column of a table that is not among the `given` ones.

    `compute` makes the other columns of a row from the given ones; where it refuses with an error of ours, the row must
    hold an `error`. A column it does not know is a failure, and so is a table without rows.
    """
    if not rows:
        return judge.fail(table, "the table has no rows")
    worst: dict[str, tuple[float, str]] = {}
    for number, row in enumerate(rows):
        try:
            ours: Mapping[str, Any] = compute(row)
        except VinoError as error:
            ours = {ERROR: str(error)}
        for column, gap, reason in _compare(row, ours, given):
            if gap > worst.get(column, (-1.0, ""))[0]:
                worst[column] = gap, f"row {number}: {reason}" if gap else ""
    for column, (gap, reason) in worst.items():
        limit = (limits or {}).get(column, EXACT)
        judge.number(f"{table}:{column}", gap, limit, reason if gap > limit else "")


def _compare(row: Row, ours: Mapping[str, Any], given: frozenset[str]) -> list[tuple[str, float, str]]:
    """Column, deviation and what differs, for every column of a row that is to be judged."""
    if (ERROR in row) != (ERROR in ours):
        return [(ERROR, math.inf, f"ours says {ours.get(ERROR)!r}, golden {row.get(ERROR)!r}")]
    if ERROR in row:
        # Its wording is the release's own; that there is one is what counts.
        return [(ERROR, 0.0, "")]
    found = []
    for column in sorted(row.keys() - given):
        if column not in ours:
            found.append((column, math.inf, "nobody judges this column"))
        else:
            found.append((column, deviation(ours[column], row[column]), f"ours {ours[column]}, golden {row[column]}"))
    return found


def deviation(ours: object, golden: object) -> float:
    """Largest absolute difference of numbers or nested lists of them; anything else is equal (0) or not (1)."""
    if not (_numeric(ours) and _numeric(golden)):
        return float(ours != golden)
    if isinstance(ours, list) != isinstance(golden, list) or _lengths(ours) != _lengths(golden):
        return math.inf
    return distance(as_tensor(ours), as_tensor(golden))


def _numeric(value: object) -> bool:
    if isinstance(value, list):
        return all(_numeric(item) for item in value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _lengths(value: object) -> object:
    return [_lengths(item) for item in value] if isinstance(value, list) else None
