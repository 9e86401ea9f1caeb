"""`vino-rt inspect` says which implementation of each operation this machine takes, and why."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vino_kernels.choice import OPERATIONS, Device
from vino_rt.cli import main
from vino_rt.kernel_choices import kernel_choices
from vino_rt.model_dir import ModelDir, bundled_model

GPU = Device("cuda", "Some GPU", (9, 0), frozenset({"triton", "flash", "cudnn"}))


def inspected(capsys: pytest.CaptureFixture[str], store: Path, *options: str) -> str:
    recipe = store / "kernels.toml"
    recipe.write_text('like = "eager"\nbackend = "triton"\n')
    assert main(["inspect", "--store", str(store), "--recipe", str(recipe), *options]) == 0
    return capsys.readouterr().out


def test_a_cpu_runs_pytorchs_operations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    lines: list[dict[str, Any]] = [json.loads(line) for line in inspected(capsys, tmp_path, "--json").splitlines()]
    (model,) = (line for line in lines if line["event"] == "model")
    assert [(c["case"], c["operation"]) for c in model["kernels"]] == [
        (case, operation) for case in ("picture", "clip") for operation in OPERATIONS
    ]
    assert {(c["implementation"], c["reason"]) for c in model["kernels"]} == {
        ("torch", "PyTorch's operations: no CUDA device")
    }
    said = inspected(capsys, tmp_path)
    assert "all: torch (PyTorch's operations: no CUDA device)" in said
    assert "for the kinds that backend triton runs (guide_and_step: if it runs head)" in said
    assert main(["inspect", "--store", str(tmp_path), "--recipe", "eager"]) == 0
    assert "kernels" not in capsys.readouterr().out, "no kind of that recipe runs on them"


def test_a_gpu_that_was_not_measured_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Device, "of", lambda device: GPU)
    said = inspected(capsys, tmp_path)
    assert said.count("not measured on this GPU: our kernel is taken because it ") == 2 * len(OPERATIONS)
    assert "boundary_attention picture  vino " in said


def test_shapes_are_those_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "of", lambda device: GPU)
    model = ModelDir.open(bundled_model())
    shapes = {(c.case, c.operation): c.shape for c in kernel_choices(model, torch.device("cuda"))}
    config, (width, height) = model.transformer, model.settings.default_size
    branches = 2 if model.settings.image.guidance > 1 else 1
    patches = width * height // model.settings.unit**2
    rows = branches * (patches + model.connector.num_queries)
    heads = f"{config.num_attention_heads} x {config.attention_head_dim}"
    assert shapes["picture", "boundary_attention"] == f"bfloat16, {rows:,} rows, {heads}, 3 segments"
    assert shapes["picture", "norm_modulate"] == f"bfloat16, {rows:,} rows, {config.width} channels"
    assert shapes["picture", "guide_and_step"].startswith(f"float32, {patches:,} rows, {config.patch_values} channels")


def test_what_nothing_can_serve_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vino_rt.kernel_choices.choose", lambda *arguments: refuse())
    choices = kernel_choices(ModelDir.open(bundled_model()), torch.device("cpu"))
    assert {(c.implementation, c.reason) for c in choices} == {(None, "nothing can serve this")}


def refuse() -> None:
    raise ValueError("nothing can serve this")
