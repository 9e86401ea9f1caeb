"""Calls, statements and words that have no place here, each with what to do instead.

It reads syntax trees, so a word in a comment or a string is no call; rules about text say so.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from tests.policy.source import SHIPPED, Finding, Source, dotted

UNPICKLERS = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib")
OWN_PIPES = "vino_rt/train/workers.py"
BUILTIN_ERRORS = ("Exception", "BaseException", "ValueError", "RuntimeError")
# `strict` of these says something else than "ignore what does not fit".
OTHER_STRICT = ("zip", "export")
NOWHERE_NAMES = {"util", "utils", "common", "helper", "helpers", "misc"}
# Character classes keep this file from naming what it looks for.
MARKERS = re.compile(r"\b(?:TO[D]O|FIX[M]E|HAC[K]|XX[X])\b")
MACHINE_PATHS = re.compile(r"(?<![\w.$}~/-])/(?:work|root|home|Users|farm|mnt)/?(?![\w-])")
REGISTRY_HOSTS = re.compile(r"\b(?:py[p]i|py[t]honhosted|np[m]js|download\.py[t]orch)\.org\b")


def _calls(source: Source) -> Iterator[tuple[ast.Call, str, dict[str, object]]]:
    """Every call with its dotted name and the keywords that are constants."""
    for node in source.nodes():
        if isinstance(node, ast.Call):
            constants: dict[str, object] = {
                keyword.arg: keyword.value.value
                for keyword in node.keywords
                if keyword.arg and isinstance(keyword.value, ast.Constant)
            }
            yield node, dotted(node.func), constants


def prints(source: Source) -> Iterator[Finding]:
    """Shipped code reports through the command line's console or a callback."""
    if source.path.startswith(SHIPPED):
        for node, name, _ in _calls(source):
            if name == "print":
                yield source.at(node.lineno, "print: return the value or call back")


def environment(source: Source) -> Iterator[Finding]:
    """Shipped code reads and writes no environment variable."""
    if not source.path.startswith(SHIPPED):
        return
    for node in source.nodes():
        imported = isinstance(node, ast.ImportFrom) and node.module == "os"
        names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) and imported else []
        if isinstance(node, ast.Attribute) and dotted(node.value) == "os":
            names = [node.attr]
        if {"environ", "environb", "getenv", "putenv", "unsetenv"} & set(names):
            yield source.at(getattr(node, "lineno", 1), "environment variable: make it an argument or a config field")


def code_from_data(source: Source) -> Iterator[Finding]:
    """Nothing read from a file or typed by a user can become code, in Python or in a shell."""
    for node, name, constants in _calls(source):
        if name in ("eval", "exec", "builtins.eval", "builtins.exec"):
            yield source.at(node.lineno, f"{name} runs data as code")
        if constants.get("shell") is True or name in ("os.system", "os.popen"):
            yield source.at(node.lineno, "a shell string: pass a list of arguments")
        if name == "torch.load" and constants.get("weights_only") is not True:
            yield source.at(node.lineno, "torch.load without weights_only=True unpickles")


def unpickling(source: Source) -> Iterator[Finding]:
    """No unpickling in shipped code or benchmarks, only the name of its error; tests may make a hostile file.

    Data workers answer the process that forked them through a pipe that nobody else can write to.
    """
    if source.path.startswith("tests/") or source.path == OWN_PIPES:
        return
    for node in source.nodes():
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if (
            isinstance(node, ast.ImportFrom)
            and not node.level
            and not all(a.name.endswith("Error") for a in node.names)
        ):
            names = [node.module or ""]
        for name in names:
            if name.partition(".")[0] in UNPICKLERS:
                yield source.at(getattr(node, "lineno", 1), f"{name} runs code while it reads: use safetensors or JSON")


def broad_excepts(source: Source) -> Iterator[Finding]:
    """No bare or broad except, unless it cleans up and its last statement raises again."""
    for node in source.nodes():
        if isinstance(node, ast.ExceptHandler):
            last = node.body[-1]
            again = isinstance(last, ast.Raise) and last.exc is None
            if (node.type is None or _broad(node.type)) and not again:
                yield source.at(node.lineno, "broad except: name the errors that are expected here")
    for call, name, _ in _calls(source):
        if name in ("suppress", "contextlib.suppress") and any(_broad(argument) for argument in call.args):
            yield source.at(call.lineno, "broad suppress: name the errors that are expected here")


def _broad(node: ast.expr) -> bool:
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    return any(dotted(part).removeprefix("builtins.") in ("Exception", "BaseException") for part in parts)


def lenient_loads(source: Source) -> Iterator[Finding]:
    """What does not fit is an error: no `strict=False`, as a keyword or as the second argument of a load."""
    for node, name, constants in _calls(source):
        last = node.func.attr if isinstance(node.func, ast.Attribute) else name
        positional = last == "load_state_dict" and any(
            isinstance(argument, ast.Constant) and argument.value is False for argument in node.args[1:2]
        )
        if positional or (constants.get("strict") is False and last not in OTHER_STRICT):
            yield source.at(node.lineno, f"{last}: strict=False ignores what does not fit")


def hidden_state(source: Source) -> Iterator[Finding]:
    """No `global` statement, no change of the import path: state is passed, packages are installed."""
    for node in source.nodes():
        if isinstance(node, ast.Global):
            yield source.at(node.lineno, f"global {', '.join(node.names)}: pass it")
        if isinstance(node, ast.Attribute) and dotted(node) in ("sys.path", "sys.meta_path", "sys.path_hooks"):
            yield source.at(node.lineno, f"{dotted(node)}: install the package instead")


def foreign_errors(source: Source) -> Iterator[Finding]:
    """vino_rt raises the errors of its own tree, or what the same file catches; `assert` is for our own mistakes."""
    if not source.path.startswith("vino_rt/"):
        return
    handlers = [node.type for node in source.nodes() if isinstance(node, ast.ExceptHandler) and node.type]
    caught = {dotted(name) for handler in handlers for name in ast.walk(handler)}
    for node in source.nodes():
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if dotted(raised) in BUILTIN_ERRORS and dotted(raised) not in caught:
                yield source.at(node.lineno, f"raises {dotted(raised)}: use vino_rt.errors or assert")


def words(source: Source) -> Iterator[Finding]:
    """In any text: no work left as a note, no path of a developer's machine, no host of a package registry."""
    patterns = (
        (MARKERS, "unfinished work: finish it or open an issue"),
        (MACHINE_PATHS, "a path of one machine"),
        (REGISTRY_HOSTS, "a registry's host: its client knows it"),
    )
    for number, line in enumerate(source.text.splitlines(), 1):
        for pattern, message in patterns:
            if found := pattern.search(line):
                yield source.at(number, f"{found[0]!r}: {message}")


def nowhere_names(source: Source) -> Iterator[Finding]:
    """A file or directory says what it holds."""
    path = PurePosixPath(source.path)
    for part in (*path.parent.parts, path.stem):
        if part in NOWHERE_NAMES:
            yield source.at(1, f"{part!r} says nothing about what it holds")
