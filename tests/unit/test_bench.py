"""Benchmarks: what they time is checked first, rows carry where they come from, limits decide the exit code.

One tiny transformer is built for the whole file; its numbers mean nothing, that they come out right does.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench import __main__ as command
from bench import harness, memory, startup, step
from bench.harness import CheckFailed, Mark, Measure, Outcome, Spread, Timing
from vino_rt.models.vino.transformer import Transformer

FIELDS = {"bench", "case", "metric", "value", "unit", "spread", "ceiling", "machine", "versions", "commit"}
NAMES = ["buckets", "build", "gpu", "kernels", "memory", "quality", "startup", "step", "tiles", "train"]
QUICK = [name for name in step.RECIPES if name not in step.COMPILED]
CASES = [step.Case((1, 3, 5), 7, branches, referenced=True) for branches in (1, 2, 3)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bench")
    step.prepare(memory.scene(quick=True).config, directory, backends=QUICK)
    return directory


@pytest.fixture(scope="module")
def transformers(prepared: Path) -> Mapping[str, Transformer]:
    return {name: step.open_transformer(memory.scene(quick=True).config, name, prepared) for name in QUICK}


def outcome(monkeypatch: pytest.MonkeyPatch, run: Callable[..., Outcome]) -> None:
    """Let every benchmark be `run`."""
    monkeypatch.setattr("importlib.import_module", lambda name: SimpleNamespace(run=run))


def test_every_benchmark_is_listed_with_its_question(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert all("?" in line for line in lines)


def test_an_unknown_name_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["stepp"]) == 2
    told = capsys.readouterr()
    assert "'stepp'" in told.err
    assert "memory, quality, startup, step" in told.err
    assert not told.out


def test_a_machine_without_git_has_rows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert harness.commit.__wrapped__() == "none"


def test_rows_are_json_lines_with_their_origin(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [
        Measure("a", "step", 2.0, "ms", Spread(7, 1.5, 1.6, 2.5), Mark(1.0, "ms", "limit")),
        Measure("b", "x", 1.0, ""),
    ]
    outcome(monkeypatch, lambda quick: Outcome(found))
    monkeypatch.setattr(command, "PLACE", tmp_path)
    for name in ("step", "memory"):
        (tmp_path / f"{name}.py").write_text("")
    assert command.main(["step", "--json", "--save"]) == 0
    assert command.main(["step", "--json", "--save"]) == 0
    assert command.main(["memory", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(set(row) == FIELDS for row in rows)
    assert rows[0]["spread"] == {"runs": 7, "min": 1.5, "p10": 1.6, "p90": 2.5}
    assert rows[0]["ceiling"] == {"value": 1.0, "unit": "ms", "what": "limit"}
    assert rows[1]["ceiling"] is None
    assert rows[0]["machine"]["cores"] >= 1
    assert set(rows[0]["versions"]) == {"python", "torch", "onnxruntime"}
    assert (tmp_path / "results" / "step.jsonl").read_text().splitlines() == lines[:4]
    assert not (tmp_path / "results" / "memory.jsonl").exists()


def test_a_wrong_result_gives_no_number(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(quick: bool) -> Outcome:
        raise CheckFailed("off by 1")

    outcome(monkeypatch, run)
    assert command.main(["step", "--json"]) == 1
    told = capsys.readouterr()
    assert not told.out
    assert "off by 1" in told.err


def test_a_missed_limit_shows_its_numbers_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome(monkeypatch, lambda quick: Outcome([Measure("a", "growth", 51.5, "%")], ["memory grows"]))
    assert command.main(["memory"]) == 1
    told = capsys.readouterr()
    assert "51.5 %" in told.out
    assert "memory: memory grows" in told.err


def test_interleaved_calls_take_turns_and_the_warm_up_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "SETTLE_SECONDS", 0.0)
    calls: list[str] = []
    timings = harness.interleave({n: lambda n=n: calls.append(n) for n in "abc"}, repeats=3)  # type: ignore[misc]
    rounds = ["".join(calls[i : i + 3]) for i in range(0, 12, 3)]
    assert all(sorted(r) == list("abc") for r in rounds)
    assert len(set(rounds[1:])) == 3
    assert all(len(timing.seconds) == 3 for timing in timings.values())


def test_ratios_pair_the_runs_of_a_round() -> None:
    slow, fast = Timing((2.0, 20.0, 2.0)), Timing((1.0, 10.0, 1.0))
    found = harness.summary(slow.ratio(fast), "case", "ratio", "x")
    assert found.value == 2.0
    assert found.spread == Spread(3, 2.0, 2.0, 2.0)
    assert slow.measure("case", "step").value == 2000.0


def test_ceilings_are_rates_of_known_work() -> None:
    ceilings = harness.Ceilings(side=100, numbers=1000)
    timings = {name: Timing((0.5, 0.25, 1.0)) for name in ceilings.probes()}
    timings["sgemm onnxruntime"] = Timing((0.1, 0.1, 0.1))
    assert ceilings.flop_rate(timings) == pytest.approx(2e6 / 0.1)
    values = {m.metric: m.value for m in ceilings.measures(timings, "case")}
    assert values["ceiling: sgemm torch"] == pytest.approx(2e6 / 0.5 / 1e9)
    assert values["ceiling: copy, read and written"] == pytest.approx(8000 / 0.5 / 1e9)
    for probe in ceilings.probes().values():
        probe()


def test_counted_operations_are_those_that_run(transformers: Mapping[str, Transformer]) -> None:
    for case in CASES:
        bound = case.bind(transformers["eager"], transformers["eager"].modulation(step.SCHEDULE))
        with FlopCounterMode(display=False) as counter:
            bound.velocity(step.FIRST, step.noise((15, 64), seed=0))
        joint, text = case.branches * (2 * 15 + 2 + 7) ** 2, case.branches * 7**2
        # The counter does not know attention on the CPU: two blocks on the joint sequence, two on the text, D = 32.
        attention = 4 * 32 * (2 * joint + 2 * text)
        assert step.step_flops(transformers["eager"].config, case.plan()) == counter.get_total_flops() + attention


def test_engines_that_were_kept_are_not_built_again(prepared: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in prepared.glob("*.onnx")}
    options = argparse.Namespace(rounds=1, sizes=1, engines=prepared)
    found = step.run(quick=True, options=options).measures
    assert {m.case.split(", ")[-2] for m in found if m.metric == "step"} == set(QUICK)
    assert {path: path.stat().st_mtime_ns for path in prepared.glob("*.onnx")} == before != {}


def test_a_series_checks_then_measures_every_way(transformers: Mapping[str, Transformer]) -> None:
    found = step.series(CASES, transformers, harness.Ceilings(16, 1024), repeats=2)
    steps = [m.case for m in found if m.metric == "step"]
    ways = [f"{backend}, packed" for backend in QUICK]
    label = "15 + 7 tokens, 1 reference"
    assert sorted(steps) == sorted(
        [f"{label}, {n}, {way}" for n in ("1 branch", "2 branches", "3 branches") for way in ways]
        + [f"{label}, 3 branches, {backend}, {way}" for backend in QUICK for way in ("passes", "as run")]
    )
    ratios = {name: [m.ceiling for m in found if m.metric == f"eager / {name}"] for name in QUICK}
    assert ratios == {"eager": [], "onnxruntime": [step.EXACT] * 5, "cpu-int8": [step.ROUNDED] * 5}
    assert sum(m.metric in ("packed / passes", "as run / passes") for m in found) == 2 * len(QUICK)
    assert sum(m.metric.startswith("ceiling") for m in found) == 3
    assert all(m.value > 0 and m.unit for m in found)


def test_the_authors_figures_stand_beside_their_cases_only() -> None:
    timings = {"eager, packed": Timing((0.1, 0.2, 0.3)), "onnxruntime, packed": Timing((0.1, 0.1, 0.1))}
    for case, marked in ((step.Case((1, 32, 32), 320, 1), True), (step.Case((2, 32, 32), 320, 1), False)):
        rows = step.case_rows(case, {f"{case.label}, {name}": t for name, t in timings.items()}, ideal=0.05)
        speeds = {m.case: m.value for m in rows if m.metric == "speed"}
        assert bool(speeds) is marked
        if marked:
            assert speeds[f"{case.label}, eager, packed"] == pytest.approx(1.5)
        assert {m.case: m.value for m in rows if m.metric == "share of sgemm"}[
            f"{case.label}, eager, packed"
        ] == pytest.approx(25.0)


@pytest.mark.parametrize("spoil", ["order", "value"])
def test_a_wrong_engine_is_not_timed(transformers: Mapping[str, Transformer], spoil: str) -> None:
    case, eager = CASES[2], transformers["eager"]
    velocities = {("eager", way): v for way, v in step.ways(case, eager, eager.modulation(step.SCHEDULE), 1).items()}
    packed = velocities["eager", "packed"]
    latents = step.noise((15, 64), seed=0)
    step.check(case, velocities, latents)

    def wrong(x: Tensor) -> Tensor:
        out = packed(x)
        return out.flip(0) if spoil == "order" else out + 1e-3 * out.abs().max()

    with pytest.raises(CheckFailed, match="eager, packed is off by"):
        step.check(case, {**velocities, ("eager", "packed"): wrong}, latents)


def test_not_a_number_is_wrong(transformers: Mapping[str, Transformer]) -> None:
    nan = torch.full((1, 15, 64), torch.nan)
    with pytest.raises(CheckFailed):
        step.check(CASES[0], {("eager", "packed"): lambda x: nan, ("onnxruntime", "packed"): lambda x: nan}, nan[0])


def test_a_fresh_process_tells_its_memory(prepared: Path) -> None:
    found = memory.in_fresh_process("onnxruntime", prepared, "all four", quick=True)
    assert set(found) == {"libraries", "used"}
    for kinds in found.values():
        assert kinds["anonymous"] < kinds["resident"]
        assert kinds["proportional"] <= kinds["resident"]
    assert found["used"]["resident"] > found["libraries"]["resident"] > 50_000_000


def test_growth_is_held_against_the_weights() -> None:
    sizes = {"no shape": 1000, "smallest": 1120, "largest": 1200, "all four": 1280}
    used = {use: {"resident": size, "anonymous": size} for use, size in sizes.items()}
    assert list(used) == list(memory.USES)
    found = memory.rows("eager", used, weights=800)
    assert [(m.value, m.ceiling is None) for m in found[-2:]] == [(20.0, True), (10.0, False)]
    assert found[0].case == "eager, no shape"
    assert found[0].value == pytest.approx(0.001)


def test_the_scenes_go_from_small_to_large() -> None:
    for quick in (True, False):
        tokens = [case.plan().image_tokens for case in memory.scene(quick=quick).cases]
        assert tokens == sorted(tokens)
        assert len(set(tokens)) == 4


def test_startup_rows_take_the_median_of_every_part() -> None:
    runs = [{"import": 1.0, "first step starts": 9.0}, {"import": 3.0, "first step starts": 11.0}]
    first, second = startup.rows("case", runs, {"first step starts": startup.LIMIT})
    assert (first.value, first.ceiling) == (2.0, None)
    assert (second.value, second.ceiling) == (10.0, startup.LIMIT)
