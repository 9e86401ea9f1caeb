"""`bench tiles`: what it tries, that wrong tiles are not timed, the ranking, the file. No GPU: calls and times are made
up here.
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import __main__ as command
from bench import gpu_place
from bench import tiles as bench
from bench.harness import Timing
from bench.kernels_cases import Case
from bench.kernels_time import Call
from vino_kernels import tiles
from vino_kernels.boundary_attention.configs import Tile, tma_tile
from vino_kernels.boundary_attention.configs import tiles as attention_tiles
from vino_kernels.choice import Device, Shape
from vino_kernels.gated_residual.configs import Config
from vino_kernels.gated_residual.ref import gated_residual_ref

CPU = torch.device("cpu")
HOPPER = Device("cuda", "Some GPU", (9, 0), frozenset({"triton"}))
AMPERE = Device("cuda", "Some GPU", (8, 0), frozenset({"triton"}))
SMALL, LARGE, WRONG = Config(1, 64, 2), Config(2, 64, 4), Config(4, 64, 4)
BROKEN = Config(8, 64, 4)


class Clock:
    """Says so many seconds of a call, by the order in which they came."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = seconds
        self.called: list[str] = []

    def interleave(self, calls: Mapping[str, Call], *, repeats: int) -> dict[str, Timing]:
        self.called = list(calls)
        for call in calls.values():
            call()
        return {name: Timing((taken,) * repeats) for name, taken in zip(calls, self.seconds, strict=False)}


def small() -> bench.Sweep:
    case = Case("gated_residual", Shape(torch.float32, 5, 48))
    return bench.Sweep("gated_residual", case, (SMALL, LARGE, WRONG, BROKEN), LARGE)


def stand_in(sweep: bench.Sweep, inputs: tuple[Tensor, ...], tile: Any) -> Call:
    def call() -> Tensor:
        if tile == BROKEN:
            raise RuntimeError("out of resources")
        made = gated_residual_ref(inputs[0], inputs[1], inputs[2])
        return made + 1 if tile == WRONG else made

    return call


@pytest.fixture(autouse=True)
def some_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_place, "gpu", lambda: {"gpu": "Some GPU", "capability": "9.0"})
    monkeypatch.setattr(gpu_place, "gpu_versions", lambda: {"torch": "2.13.0"})
    monkeypatch.setattr(gpu_place, "commit", lambda: "abc")


def measured() -> tuple[bench.Report, Clock]:
    clock, report = Clock(3.0, 2.0), bench.Report()
    bench.measure(small(), CPU, clock, report, 3, stand_in)  # type: ignore[arg-type]
    return report, clock


def test_a_cpu_is_told_that_it_takes_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["tiles"]) == 2
    assert "bench tiles needs an NVIDIA GPU" in capsys.readouterr().err


def test_a_quick_run_writes_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert command.main(["tiles", "--quick", "--write"]) == 2
    assert "--write takes real sizes" in capsys.readouterr().err


def test_what_is_wrong_or_does_not_run_is_not_timed(capsys: pytest.CaptureFixture[str]) -> None:
    report, clock = measured()
    assert clock.called == [bench.label(SMALL), bench.label(LARGE)]
    assert [line.partition(": off by")[0] for line in report.failures] == [
        f"gated_residual, float32, 5 rows, 48 channels, {bench.label(WRONG)}"
    ]
    assert "rows 8, columns 64, warps 4: left out: RuntimeError: out of resources" in capsys.readouterr().err


def test_the_ranking_and_the_entry_of_the_fastest() -> None:
    report, _ = measured()
    assert [row.metric for row in report.measures] == [f"1. {bench.label(LARGE)}", f"2. {bench.label(SMALL)}"]
    launches = 128  # in one graph, whose time is divided among them
    assert report.measures[0].value == pytest.approx(2e6 / launches)
    assert all(row.ceiling and row.ceiling.value == pytest.approx(2e6 / launches) for row in report.measures)
    (entry,) = report.entries
    assert entry.key == ("gated_residual", "9.0", "float32", 48, "short")
    assert entry.tile == {"rows": 2, "columns": 64, "warps": 4}
    assert (entry.gpu, entry.commit, entry.versions) == ("Some GPU", "abc", {"torch": "2.13.0"})


def test_no_candidate_that_runs_is_a_failure() -> None:
    sweep, report = small(), bench.Report()
    alone = bench.Sweep(sweep.operation, sweep.case, (BROKEN,), BROKEN)
    bench.measure(alone, CPU, Clock(), report, 3, stand_in)  # type: ignore[arg-type]
    assert report.failures == ["gated_residual, float32, 5 rows, 48 channels: no candidate ran and was right"]
    assert not report.entries


def test_what_is_written_is_what_launches_take(tmp_path: Path) -> None:
    report, _ = measured()
    path = tmp_path / "tiles.json"
    path.write_text(tiles.PATH.read_text())
    bench.write(report.entries, path)
    found = tiles.read(path.read_text(), "file")
    (entry,) = (found[made.key] for made in report.entries)
    assert entry == report.entries[0]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("device", [HOPPER, AMPERE], ids=["hopper", "ampere"])
def test_every_kernel_is_swept_at_both_lengths(device: Device) -> None:
    found = list(bench.sweeps(device, bench.ROWS))
    keys = [(sweep.operation, *sweep.key) for sweep in found]
    assert len(set(keys)) == len(keys)
    left_out = set() if device == HOPPER else {"boundary_attention.tma", "norm_modulate.fp8"}
    assert {sweep.operation for sweep in found} == set(tiles.FIELDS) - left_out
    for sweep in found:
        assert sweep.current in sweep.candidates
        assert len(sweep.candidates) >= 4, sweep
        for tile in sweep.candidates:
            tiles._check_tile(asdict(tile), tiles.FIELDS[sweep.operation], "candidate")


def test_current_tiles_are_those_of_the_gpu() -> None:
    found = {(s.operation, s.case.shape.channels, s.key[2]): s.current for s in bench.sweeps(HOPPER, bench.ROWS)}
    bf16 = torch.bfloat16
    assert found["boundary_attention.forward", 128, "long"] == attention_tiles(128, bf16, 35_000, 9).forward
    assert found["boundary_attention.tma", 64, "short"] == tma_tile(64, bf16, 1_600, 9)
    assert isinstance(found["boundary_attention.tma", 64, "short"], Tile)


def test_one_operation_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    swept: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(bench, "clock_of", lambda device: Clock())
    monkeypatch.setattr(Device, "of", lambda device: HOPPER)
    monkeypatch.setattr(bench, "measure", lambda sweep, *rest: swept.append(sweep.operation))
    bench.run(quick=True, options=argparse.Namespace(write=False, only="qk_norm_rope"))
    assert set(swept) == {"qk_norm_rope"}
