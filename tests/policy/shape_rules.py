"""Budgets and documentation: how long, how wide, with which docstrings, and nothing written twice.

It knows the numbers of the house; reasons to exceed one do not exist outside kernels/.
"""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator

from tests.policy.source import SHIPPED, Definition, Finding, Function, Source, dotted

FILE_LINES = 300
FUNCTION_LINES = 40
PARAMETERS = 8
COPIED_LINES = 10
UNDOCUMENTED_DECORATORS = ("overload", "typing.overload")


def file_size(source: Source) -> Iterator[Finding]:
    """A file holds at most 300 lines."""
    lines = len(source.text.splitlines())
    if lines > FILE_LINES:
        yield source.at(lines, f"{lines} lines, the budget is {FILE_LINES}: split the room")


def function_size(source: Source) -> Iterator[Finding]:
    """A function holds at most 40 lines, decorators not counted; kernels are exempt."""
    if source.path.startswith("kernels/"):
        return
    for function in source.functions():
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        if lines > FUNCTION_LINES:
            yield source.at(function.lineno, f"{function.name}: {lines} lines, the budget is {FUNCTION_LINES}")


def parameter_count(source: Source) -> Iterator[Finding]:
    """A function takes at most 8 parameters besides self and cls; kernels are exempt."""
    if source.path.startswith("kernels/"):
        return
    for function in source.functions():
        signature = function.args
        named = [*signature.posonlyargs, *signature.args, *signature.kwonlyargs]
        count = sum(argument.arg not in ("self", "cls") for argument in named)
        count += sum(star is not None for star in (signature.vararg, signature.kwarg))
        if count > PARAMETERS:
            yield source.at(function.lineno, f"{function.name}: {count} parameters, the budget is {PARAMETERS}")


def module_docstring(source: Source) -> Iterator[Finding]:
    """Every module opens with what it is."""
    if not (ast.get_docstring(source.tree) or "").strip():
        yield source.at(1, "no module docstring")


def public_docstrings(source: Source) -> Iterator[Finding]:
    """Every public function, class and method of shipped code has a docstring."""
    if source.path.startswith(SHIPPED):
        for definition, name in _public(source.tree.body, ""):
            if not (ast.get_docstring(definition) or "").strip():
                yield source.at(definition.lineno, f"{name}: no docstring")


def _public(body: Iterable[ast.stmt], prefix: str) -> Iterator[tuple[Definition, str]]:
    for statement in body:
        if isinstance(statement, ast.If | ast.Try):
            yield from _public(statement.body, prefix)
        if not isinstance(statement, Definition) or statement.name.startswith("_"):
            continue
        marks = [dotted(mark) for mark in statement.decorator_list]
        if not any(mark in UNDOCUMENTED_DECORATORS or mark.endswith((".setter", ".deleter")) for mark in marks):
            yield statement, prefix + statement.name
        if isinstance(statement, ast.ClassDef):
            yield from _public(statement.body, f"{prefix}{statement.name}.")


def copied_functions(sources: Iterable[Source]) -> Iterator[Finding]:
    """No two functions share a body of more than 10 lines; docstrings, comments and layout do not count."""
    seen: dict[str, list[tuple[Source, Function]]] = defaultdict(list)
    for source in sources:
        for function in source.functions():
            body = function.body[1:] if ast.get_docstring(function) is not None else function.body
            if body and (body[-1].end_lineno or 0) - body[0].lineno + 1 > COPIED_LINES:
                seen[ast.dump(ast.Module(body, []))].append((source, function))
    for (first_source, first), *copies in seen.values():
        for source, function in copies:
            origin = f"{first_source.path}:{first.lineno} {first.name}"
            yield source.at(function.lineno, f"{function.name} has the body of {origin}")
