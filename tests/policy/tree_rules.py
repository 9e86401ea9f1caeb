"""Rules about the repository as a whole: the README's opening, dependencies that are declared, links.

It knows pyproject.toml and README.md; what a single file may hold stands in the other rule files.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from tests.policy.import_rules import imports
from tests.policy.source import SHIPPED, Finding, Source

OPENING = 30
# Distributions whose import name differs.
IMPORT_NAMES = {"pillow": "PIL", "cuda-python": "cuda", "torch-tensorrt": "torch_tensorrt"}
# Imported by torch's ONNX exporter, and pinned because a build stops without it.
BEHIND_THE_SCENES = {"onnxscript"}
FENCE = re.compile(r"^(?:```|~~~)")


def readme_commands(readme: Source) -> Iterator[Finding]:
    """The first 30 lines hold what it is and two commands: install and generate, install and test."""
    opening = readme.text.splitlines()[:OPENING]
    inside, commands = False, []
    for line in opening:
        if FENCE.match(line.strip()):
            inside = not inside
        elif inside and line.strip() and not line.strip().startswith("#"):
            commands.append(line)
    shown = "\n".join(commands)
    for word in ("pip install", "vino-rt generate", "pytest"):
        if word not in shown:
            yield readme.at(OPENING, f"no {word!r} in a code block of the first {OPENING} lines")
    if not opening or not opening[0].startswith("# "):
        yield readme.at(1, "the first line is not a title")


def declared_names(requirements: Iterable[str]) -> set[str]:
    """Import names of a list of requirements."""
    names = {re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower() for requirement in requirements}
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}


def third_party(sources: Iterable[Source], own: Iterable[str]) -> dict[str, tuple[Source, int]]:
    """Top-level packages that shipped code imports and that are neither ours nor Python's, with the first place."""
    found: dict[str, tuple[Source, int]] = {}
    for source in sources:
        if source.path.startswith(SHIPPED):
            for item in imports(source):
                if item.top not in own:
                    found.setdefault(item.top, (source, item.line))
    return found


def undeclared(project: dict[str, Any], found: dict[str, tuple[Source, int]]) -> Iterator[Finding]:
    """What shipped code imports is a declared dependency, of the base or of an extra that ships."""
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"], *(line for name in extras if name != "dev" for line in extras[name])]
    for name in sorted(found.keys() - declared_names(requirements)):
        source, line = found[name]
        yield source.at(line, f"imports {name}, which pyproject.toml does not declare")


def unused(project: dict[str, Any], found: dict[str, tuple[Source, int]]) -> Iterator[Finding]:
    """What the base declares is imported somewhere in shipped code."""
    for name in sorted(declared_names(project["dependencies"]) - found.keys() - BEHIND_THE_SCENES):
        yield Finding("pyproject.toml", 1, f"declares {name}, which no shipped file imports")
