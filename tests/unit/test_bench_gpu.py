"""`python -m bench gpu`: without a GPU nothing happens, rows are written as they come, failures fail.

Steps are played by a fake executor; a few tests run real processes.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import __main__ as command
from bench import gpu, gpu_full, gpu_place, gpu_requests, gpu_results, gpu_train
from bench.gpu_results import Results
from bench.gpu_steps import SECONDS, Ended, Hear, Step, execute
from bench.gpu_tests import REPORT, Case, missing_package, read_report
from bench.harness import Measure, Outcome, Row, as_json, stamp
from bench.kernels_rows import OURS
from vino_rt.errors import UsageError


def unheard(line: str) -> None:
    """Where nobody listens."""


def test_without_a_gpu_nothing_is_run_or_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu, "execute", pytest.fail)
    assert command.main(["gpu"]) == 2
    told = capsys.readouterr()
    assert "needs an NVIDIA GPU that PyTorch can use" in told.err
    assert not told.out
    assert command.main(["gpu", "--results", str(tmp_path / "new")]) == 2
    assert not list(tmp_path.iterdir())
    assert command.main(["gpu", "--save"]) == 2
    for child in (gpu_train, gpu_requests, gpu_full):
        with pytest.raises(SystemExit, match="2"):
            child.main([])


def test_a_checkout_that_is_not_installed_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError("No module named 'vino_kernels'")

    monkeypatch.setattr("importlib.import_module", absent)
    assert command.main(["kernels"]) == 2
    assert "No module named 'vino_kernels'; install this checkout" in capsys.readouterr().err


def test_rows_of_a_step_that_is_ended_are_written(tmp_path: Path) -> None:
    lines = rows(97.0).splitlines()
    hang = f"print({lines[0]!r}); print({lines[1]!r}); print({lines[1][:30]!r}, end='', flush=True)"
    script = f"{hang}; import time; time.sleep(60)"
    wanted = [Step("kernels", (sys.executable, "-c", script), 20, 1)]
    results = Results(tmp_path)
    # Ended as soon as it has printed, so that no machine is too slow for this test.
    outcomes = gpu.conduct(wanted, tmp_path / "none", 20, results, lambda c, e, s, h: execute(c, e, 4.0, h))
    (outcome,) = outcomes
    assert outcome.failures[0].startswith("kernels: ended after")
    written = (tmp_path / "kernels.jsonl").read_text().splitlines()
    assert written == [lines[1]]
    assert (tmp_path / gpu_results.LOG).read_text().splitlines() == ["noise", lines[1][:30]]
    assert [m.value for m in outcome.measures if m.metric == "sdpa_cudnn / vino"] == [97.0]


def rows(*values: float) -> str:
    measures = [Measure("case", "sdpa_cudnn / vino", value, "%", None, OURS) for value in values]
    return "\n".join(["noise", *as_json(stamp("kernels", [*measures, Measure("case", "time", 1.0, "us")]))]) + "\n"


CASES = (
    Case("tests/a.py::one", "passed"),
    Case("tests/a.py::two", "failed", "AssertionError: x"),
    Case("tests/b.py::three", "skipped", "no"),
    Case("tests/c.py", "missing", "av"),
)


def conducted(
    tmp_path: Path, results: Path | None, ends: Mapping[str, Ended], cases: Sequence[Case] = CASES
) -> tuple[list[Measure], Sequence[str]]:
    report = tmp_path / "tests.jsonl"

    def act(command: Sequence[str], environment: Mapping[str, str], seconds: float, hear: Hear) -> Ended:
        if command[0] == "tests":
            report.write_text("".join(json.dumps(vars(case)) + "\n" for case in cases) + '{"name": "cut')
        for line in ends[command[0]].out.splitlines():
            hear(line)
        return ends[command[0]]

    environments = {"tests": {REPORT: str(report)}}
    steps = [Step(name, (name,), 100, 1, environment=environments.get(name, {})) for name in ends]
    steps.append(Step("absent", ("absent",), 1, 1, absent="not found"))
    outcomes = list(gpu.conduct(steps, report, 1000, Results(results), act))
    return [m for one in outcomes for m in one.measures], [f for one in outcomes for f in one.failures]


def test_rows_are_written_and_the_required_ones_are_shown(tmp_path: Path) -> None:
    results = tmp_path / "deep" / "results"
    measures, failures = conducted(tmp_path, results, {"kernels": Ended(0, rows(97.0, 99.0), "")})
    assert not failures
    assert [m.value for m in measures if m.metric == "sdpa_cudnn / vino"] == [97.0, 99.0]
    assert [m.metric for m in measures if m.case == "absent"] == ["left out: not found"]
    written = [json.loads(line) for line in (results / "kernels.jsonl").read_text().splitlines()]
    assert [row["bench"] for row in written] == ["kernels"] * 3
    summary = [json.loads(line) for line in (results / "gpu.jsonl").read_text().splitlines()]
    assert len(summary) == len(measures)
    assert {row["bench"] for row in summary} == {"gpu"}
    assert all(row["commit"] for row in summary)


def test_nothing_is_written_where_nothing_was_asked(tmp_path: Path) -> None:
    conducted(tmp_path, None, {"kernels": Ended(0, rows(97.0), "")})
    assert not list(tmp_path.iterdir())


def test_failures_are_told(tmp_path: Path) -> None:
    measures, failures = conducted(
        tmp_path,
        None,
        {
            "tests": Ended(1, "1 failed", ""),
            "kernels": Ended(1, rows(90.0), "round 1\nkernels: case: too slow\nkernels: another\n"),
            "memory checker": Ended(86, "========= ERROR SUMMARY: 3 errors\n", "last words"),
            "train": Ended(None, "", ""),
            "late": Ended(1, "..\n!!!! session-timeout: 180.0 sec exceeded !!!!\n2 passed in 181 s\n", ""),
        },
    )
    assert failures[0] == "tests: tests/a.py::two failed: AssertionError: x"
    assert failures[1:3] == ["kernels: case: too slow", "kernels: another"]
    assert failures[3:5] == ["memory checker: ended with code 86", "memory checker: last words"]
    assert failures[5].startswith("train: ended after")
    assert failures[6:] == ["late: ended with code 1", "late: session-timeout: 180.0 sec exceeded"]
    counts = {m.metric: m.value for m in measures if m.case == "tests"}
    assert (counts["passed"], counts["failed"], counts["skipped"]) == (1, 1, 1)
    assert [m.value for m in measures if m.metric == "errors"] == [3]


def test_a_missing_package_is_told_apart_from_failures(tmp_path: Path) -> None:
    ends = {
        "tests": Ended(1, "1 error", ""),
        "train": Ended(1, "", "Traceback\nModuleNotFoundError: No module named 'av'\n"),
        "ours": Ended(1, "", "Traceback\nModuleNotFoundError: No module named 'vino_kernels.choice'\n"),
    }
    measures, failures = conducted(tmp_path, None, ends, [CASES[0], CASES[3], CASES[3]])
    assert failures == ["ours: ended with code 1", "ours: ModuleNotFoundError: No module named 'vino_kernels.choice'"]
    told = {(m.case, m.metric): m.value for m in measures if "not installed" in m.metric}
    assert told == {
        ("tests", "files and tests not run: package av is not installed"): 2,
        ("train", "not run: package av is not installed"): 0,
    }


def test_tests_that_all_fail_to_run_are_a_failure(tmp_path: Path) -> None:
    _, failures = conducted(tmp_path, None, {"tests": Ended(4, "", "ERROR: no such option")}, [])
    assert failures == ["tests: none passed", "tests: ended with code 4", "tests: ERROR: no such option"]
    _, failures = conducted(tmp_path, None, {"tests": Ended(1, "session-timeout: 9 sec exceeded", "")})
    assert failures[-1] == "tests: session-timeout: 9 sec exceeded"


@pytest.mark.parametrize("split", [(), ("-n", "2")])
def test_the_plugin_writes_every_outcome_as_it_comes(tmp_path: Path, split: Sequence[str]) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_right(): pass\n"
        "def test_wrong(): assert 1 == 2, 'no'\n"
        "def test_lacking(): import a_package_that_is_not_there\n"
        "@pytest.mark.skip(reason='not here')\ndef test_skipped(): pass\n"
    )
    (tmp_path / "test_lacking.py").write_text("import another_that_is_not_there.part\n")
    (tmp_path / "test_typo.py").write_text("import vino_rt.not_there\n")
    report = tmp_path / "report.jsonl"
    options = ("--continue-on-collection-errors", "-o", "addopts=", "--rootdir", str(tmp_path), *split, str(tmp_path))
    done = execute([*gpu.PYTEST, "-q", *options], {REPORT: str(report)}, 100, unheard)
    found = {case.name.rpartition("/")[2]: case for case in read_report(report)}
    assert {name: case.outcome for name, case in found.items()} == {
        "test_some.py::test_right": "passed",
        "test_some.py::test_wrong": "failed",
        "test_some.py::test_lacking": "missing",
        "test_some.py::test_skipped": "skipped",
        "test_lacking.py": "missing",
        "test_typo.py": "failed",
    }, done.out + done.err
    assert found["test_some.py::test_lacking"].told == "a_package_that_is_not_there"
    assert found["test_lacking.py"].told == "another_that_is_not_there"
    assert "no" in found["test_some.py::test_wrong"].told
    assert "not here" in found["test_some.py::test_skipped"].told


def test_only_packages_of_others_can_be_missing() -> None:
    assert missing_package("ModuleNotFoundError: No module named 'av.container'") == "av"
    assert not missing_package("No module named 'vino_rt.nowhere'")
    assert not missing_package("AssertionError")


@pytest.mark.parametrize("found", [None, "/somewhere/compute-sanitizer"])
def test_a_memory_checker_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, found: str | None) -> None:
    monkeypatch.setattr("shutil.which", lambda *arguments, **options: found)
    steps = {one.name: one for one in gpu.steps(Path("report"), Path("table.json"), quick=False)}
    assert list(steps) == [
        "tests", "kernels", "full size", "requests", "memory checker", "train", "compiled tests",
    ]  # fmt: skip
    assert ("was not found" in steps["memory checker"].absent) == (found is None)
    assert steps["memory checker"].command[0] == (found or "compute-sanitizer")
    assert "-n" not in steps["memory checker"].command
    assert "gpu and not compiles" in steps["tests"].command
    assert {f"--session-timeout={SECONDS}", "--continue-on-collection-errors"} <= set(steps["tests"].command)
    assert {"--timeout=60", "--timeout-method=thread"} <= set(steps["tests"].command)
    assert steps["kernels"].command[-2:] == ("--write-table", "table.json")
    assert "--write-table" not in gpu.steps(Path("report"), None, quick=True)[1].command


def test_single_steps_can_be_chosen() -> None:
    steps = gpu.steps(Path("report"), None, quick=True)
    assert [one.name for one in gpu.chosen(steps, "train, kernels")] == ["kernels", "train"]
    with pytest.raises(UsageError, match="--only names 'step'; the steps are tests, kernels, full size, requests"):
        gpu.chosen(steps, "kernels,step")


def test_the_checked_tests_are_there() -> None:
    path, _, words = gpu.CHECKED
    text = Path(__file__).parents[2].joinpath(path).read_text(encoding="utf-8")
    marked = re.findall(rf"@pytest\.mark\.gpu\n(?:@.*\n|    .*\n|\).*\n)*def test_{words}\w*\(", text)
    assert marked
    assert len(marked) == len(re.findall(rf"def test_{words}", text)), "each is marked gpu"


def test_a_copy_without_git_takes_its_commit_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gpu_place.COMMIT, "abc")
    row = Row("gpu", "a", "b", 1.0, "", None, None, {}, {}, "none")
    monkeypatch.setattr("bench.harness.commit", lambda: "none")
    assert gpu_place.place([row])[0].commit == "abc"
    monkeypatch.setattr("bench.harness.commit", lambda: "def")
    assert gpu_place.place([row])[0].commit == "def", "a checkout knows better"
    monkeypatch.delenv(gpu_place.COMMIT)
    monkeypatch.setattr("bench.harness.commit", lambda: "none")
    assert gpu_place.place([row])[0].commit == "none"


@pytest.mark.parametrize("json_rows", [True, False])
def test_parts_are_written_as_they_come(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], json_rows: bool
) -> None:
    """A benchmark that yields its outcomes: rows of a part are there before the next one begins, and after an error."""
    seen: list[str] = []

    def run(quick: bool) -> Any:
        yield Outcome([Measure("first", "x", 1.0, "")], ["too slow"])
        seen.append(capsys.readouterr().out)
        raise UsageError("no more")

    monkeypatch.setattr("importlib.import_module", lambda name: SimpleNamespace(run=run))
    assert command.main(["step", *(["--json"] if json_rows else [])]) == 2
    assert ("first" in seen[0]) == json_rows
    told = capsys.readouterr()
    assert ("first" in told.out) != json_rows
    assert "no more" in told.err
