"""The files the rules read: their place in the repository, their text, their syntax tree.

It knows which directories belong to the project and which of them are shipped; it knows no rule.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHIPPED = ("vino_rt/", "kernels/", "export/")
PLACES = (".ci", "bench", "engines/recipes", "export", "kernels", "tests", "vino_rt")
# Data that others made: model releases, vocabularies.
FOREIGN = ("tests/golden/vino/", "vino_rt/mini/")
TEXT = {".py", ".md", ".toml", ".txt", ".sh", ".jsonl", ".cmake", ""}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


@dataclass(frozen=True)
class Source:
    """One file: its path below the root, with forward slashes, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed module."""
        return ast.parse(self.text, self.path)

    def nodes(self) -> Iterator[ast.AST]:
        """All nodes of the tree."""
        return ast.walk(self.tree)

    def functions(self) -> Iterator[Function]:
        """All functions and methods, nested ones too."""
        return (node for node in self.nodes() if isinstance(node, Function))

    def at(self, line: int, message: str) -> "Finding":
        """A finding in this file."""
        return Finding(self.path, line, message)


@dataclass(frozen=True)
class Finding:
    """One place that breaks one rule."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


Check = Callable[[Source], Iterator[Finding]]


@cache
def project_paths() -> tuple[Path, ...]:
    """Every path of the project, files and links, without what tools leave behind and what others made."""
    below = [path for place in PLACES for path in (ROOT / place).rglob("*")]
    top = [path for path in ROOT.iterdir() if path.is_file()]
    kept = (
        path for path in below + top if (path.is_file() or path.is_symlink()) and not relative(path).startswith(FOREIGN)
    )
    return tuple(sorted(path for path in kept if "__pycache__" not in path.parts))


def relative(path: Path) -> str:
    """A path below the root as findings print it."""
    return path.relative_to(ROOT).as_posix()


@cache
def text_files() -> tuple[Source, ...]:
    """Every file people wrote."""
    files = (path for path in project_paths() if path.suffix in TEXT and path.name != "LICENSE")
    return tuple(Source(relative(path), path.read_text(encoding="utf-8")) for path in files)


@cache
def python_files() -> tuple[Source, ...]:
    """Every Python file of the packages, the benchmarks and the tests."""
    return tuple(source for source in text_files() if source.path.endswith(".py"))


def dotted(node: ast.AST) -> str:
    """`a.b.c` for a name or a chain of attributes, else the empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""
