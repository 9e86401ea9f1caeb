"""The rules applied to the repository. What each rule finds on bad code is tested in test_rules.py."""

import sys
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.policy import ban_rules, import_rules, shape_rules, tree_rules
from tests.policy.source import ROOT, Check, Finding, Source, project_paths, python_files, relative, text_files

PYTHON_RULES: tuple[Check, ...] = (
    import_rules.directions,
    import_rules.library_owners,
    import_rules.slow_imports,
    import_rules.layers,
    import_rules.backend_names,
    shape_rules.file_size,
    shape_rules.function_size,
    shape_rules.parameter_count,
    shape_rules.module_docstring,
    shape_rules.public_docstrings,
    ban_rules.prints,
    ban_rules.environment,
    ban_rules.code_from_data,
    ban_rules.unpickling,
    ban_rules.broad_excepts,
    ban_rules.lenient_loads,
    ban_rules.hidden_state,
    ban_rules.foreign_errors,
    ban_rules.nowhere_names,
)
TEXT_RULES: tuple[Check, ...] = (ban_rules.words,)
OWN = {*sys.stdlib_module_names, "vino_rt", "vino_kernels", "vino_export"}


def report(findings: Iterator[Finding]) -> str:
    return "\n".join(str(finding) for finding in findings)


def name_of(rule: Check) -> str:
    return rule.__name__


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def test_the_tree_was_found() -> None:
    paths = {source.path for source in python_files()}
    assert {"vino_rt/errors.py", "kernels/vino_kernels/__init__.py", "tests/policy/source.py"} <= paths
    assert {"pyproject.toml", ".ci/run", "constraints.txt"} <= {source.path for source in text_files()}


@pytest.mark.parametrize("rule", PYTHON_RULES, ids=name_of)
def test_python(rule: Check) -> None:
    found = report(finding for source in python_files() for finding in rule(source))
    assert not found, f"\n{rule.__doc__}\n{found}"


@pytest.mark.parametrize("rule", TEXT_RULES, ids=name_of)
def test_text(rule: Check) -> None:
    found = report(finding for source in text_files() for finding in rule(source))
    assert not found, f"\n{rule.__doc__}\n{found}"


def test_nothing_is_written_twice() -> None:
    found = report(shape_rules.copied_functions(python_files()))
    assert not found, f"\n{found}"


@pytest.mark.parametrize("door", ["vino_kernels", "vino_export"])
def test_one_file_of_vino_rt_opens_the_door(door: str) -> None:
    doors = {
        source.path
        for source in python_files()
        if source.path.startswith("vino_rt/") and any(item.top == door for item in import_rules.imports(source))
    }
    assert len(doors) <= 1, f"{door} is imported by several files of vino_rt: {sorted(doors)}"


def test_readme_pays_off_first() -> None:
    path = ROOT / "README.md"
    assert path.is_file(), "README.md is missing"
    found = report(tree_rules.readme_commands(Source("README.md", path.read_text(encoding="utf-8"))))
    assert not found, f"\n{found}"


def test_imports_are_declared(project: dict[str, Any]) -> None:
    found = report(tree_rules.undeclared(project, tree_rules.third_party(python_files(), OWN)))
    assert not found, f"\n{found}"


def test_declared_is_imported(project: dict[str, Any]) -> None:
    found = report(tree_rules.unused(project, tree_rules.third_party(python_files(), OWN)))
    assert not found, f"\n{found}"


def test_constraints_pin_every_dependency(project: dict[str, Any]) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(line.count("==") == 1 for line in pins), "a constraint that is not exact"
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert tree_rules.declared_names(wanted) <= tree_rules.declared_names(pins)


def test_no_links() -> None:
    assert not [relative(path) for path in project_paths() if path.is_symlink()]
