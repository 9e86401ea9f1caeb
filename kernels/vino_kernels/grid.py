"""Sizes as data: the grid of a launch and the shape of a tensor, as rules over named whole numbers.

An operation's own launch and the loader of its precompiled kernels evaluate the same rules, so they cannot differ. A
rule is a number, a name, or (operation, rule, rule) with one of `OPERATIONS`; it can be written as JSON.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Rule: TypeAlias = "int | str | tuple[str, Rule, Rule]"


def ceil_div(dividend: Any, divisor: Any) -> Any:
    """dividend / divisor, rounded up; also for symbolic sizes."""
    return (dividend + divisor - 1) // divisor


OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "multiply": operator.mul,
    "floor_div": operator.floordiv,
    "ceil_div": ceil_div,
}


def evaluate(rule: Rule, names: Mapping[str, Any]) -> Any:
    """Evaluate a rule to an int or, while PyTorch traces, a symbol. Raises ValueError for an unknown name."""
    if isinstance(rule, tuple):
        operation, left, right = rule
        return OPERATIONS[operation](evaluate(left, names), evaluate(right, names))
    if isinstance(rule, str):
        if rule not in names:
            raise ValueError(f"{rule!r} is not known; known are {', '.join(sorted(names))}")
        return names[rule]
    return rule


def grid(rules: tuple[Rule, ...], names: Mapping[str, Any]) -> tuple[Any, ...]:
    """Evaluate the rules of a grid: number of programs along each axis."""
    return tuple(evaluate(rule, names) for rule in rules)


def from_json(value: object) -> Rule:
    """A rule from parsed JSON, which has lists for tuples; ValueError for anything else."""
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, list | tuple) and len(value) == 3 and value[0] in OPERATIONS:
        return (str(value[0]), from_json(value[1]), from_json(value[2]))
    raise ValueError(f"{value!r} is no rule: a number, a name or [{' | '.join(OPERATIONS)}, rule, rule]")
