"""Every golden case is within its limits, and a case the command cannot judge fails instead of passing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.parity.__main__ import main
from tests.parity.measure import Line
from tests.parity.runner import Options, judges, run_case

GOLDEN = Path(__file__).parents[1] / "golden" / "vino"
KINDS = judges(Options())
CASES = sorted(path.name for path in GOLDEN.iterdir() if path.name.partition("_")[0] in KINDS)


def lines_of(path: Path) -> list[Line]:
    lines: list[Line] = []
    assert run_case(path, lines.append) == all(line.ok for line in lines)
    assert lines, "a case without a line"
    return lines


def off(path: Path) -> dict[str, str]:
    """Outputs that are off, with the reason."""
    return {line.output: line.reason for line in lines_of(path) if not line.ok}


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A writable copy of one case with the release beside it."""
    (tmp_path / "e2e_ckpt").symlink_to(GOLDEN / "e2e_ckpt")
    return Path(shutil.copytree(GOLDEN / "mmdit_img1", tmp_path / "mmdit_img1"))


def test_there_is_a_case_of_every_kind() -> None:
    assert {name.partition("_")[0] for name in CASES} == set(KINDS)


@pytest.mark.parametrize("name", CASES)
def test_case_is_within_its_limits(name: str) -> None:
    lines = lines_of(GOLDEN / name)
    assert not [line.record() for line in lines if not line.ok]
    judged = {line.output for line in lines}
    outputs = GOLDEN / name / "outputs.safetensors"
    assert not outputs.is_file() or set(load_file(outputs)) <= judged
    assert all(line.max_abs is not None and line.limit is not None for line in lines)


def test_pipelines_are_judged_from_their_files_too() -> None:
    judged = {line.output for line in lines_of(GOLDEN / "pipeline_ti2i_dualcfg")}
    assert {"files.noise", "files.ref_image.0", "files.vae_cond.0", "files.negimg.enc_vae", "files.latents.3"} <= judged


def test_an_output_that_nobody_judges_fails(copied: Path) -> None:
    outputs = load_file(copied / "outputs.safetensors")
    save_file({**outputs, "dbg.novel": torch.zeros(3), "novel_bf16": torch.zeros(3)}, copied / "outputs.safetensors")
    found = off(copied)
    assert set(found) == {"dbg.novel", "novel_bf16"}
    assert "nobody judges" in found["dbg.novel"]


@pytest.mark.parametrize("value", [1e-4, float("nan"), float("inf")])
def test_a_wrong_value_fails(copied: Path, value: float) -> None:
    outputs = load_file(copied / "outputs.safetensors")
    outputs["velocity"][0, 1, 0, 3, 2] += value
    save_file(outputs, copied / "outputs.safetensors")
    assert "velocity" in off(copied)


def test_a_wrong_shape_fails(copied: Path) -> None:
    outputs = load_file(copied / "outputs.safetensors")
    outputs["velocity"] = outputs["velocity"][..., :-1].contiguous()
    save_file(outputs, copied / "outputs.safetensors")
    assert "shape" in off(copied)["velocity"]


def test_broken_cases_say_what_is_wrong(copied: Path) -> None:
    assert "no such directory" in off(copied.parent / "mmdit_absent")["*"]
    assert "kind 'e2e'" in off(copied.parent / "e2e_ckpt")["*"]
    save_file({"t": torch.zeros(1)}, copied / "inputs.safetensors")
    found = off(copied)
    assert "no input 'latents'" in found["*"]
    assert "not reached" in found["velocity"]
    (copied / "outputs.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00notjson!")
    assert "Safetensor" in off(copied)["*"]


def test_a_table_with_a_wrong_row_or_an_unknown_column_fails(tmp_path: Path) -> None:
    case = tmp_path / "preproc_more"
    case.mkdir()
    row = {"w": 480, "h": 848, "max_area": 407040, "h_new": 848, "w_new": 480, "cropped_hw": [848, 480]}
    (case / "calc_target_resolution.json").write_text(json.dumps({"rows": [row, {**row, "w_new": 481, "extra": 1}]}))
    (case / "novel.json").write_text("[]")
    found = off(case)
    assert set(found) == {"calc_target_resolution.json:w_new", "calc_target_resolution.json:extra", "novel.json"}
    assert "row 1" in found["calc_target_resolution.json:w_new"]


def test_the_command_prints_a_line_per_output_and_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(GOLDEN / "scheduler")]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"case", "output", "max_abs", "limit", "ok"} <= records[0].keys()
    assert {"t_4_5", "dt_50_7", "scheduler.json:delta_t"} <= {record["output"] for record in records}
    assert main([str(GOLDEN / "scheduler"), str(GOLDEN / "keymap")]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["ok"] is False
