"""The training loop on a toy: against a loop written out by hand, stopped, poisoned, and with workers that die."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unit.toy_objective import Batch, Block, Toy, bits, listening, log_lines, toy_stage
from vino_rt.errors import InputError, OutOfMemory, UsageError, VinoError
from vino_rt.train.directory import occupied
from vino_rt.train.loop import Call, train
from vino_rt.train.objective import Loss
from vino_rt.train.optimiser import learning_rate
from vino_rt.train.step import micro_seed
from vino_rt.weights import PartWeights


def weights(path: Path) -> dict[str, torch.Tensor]:
    part = PartWeights(path)
    return part.load(part.names())


def test_equals_a_loop_written_out_by_hand(tmp_path: Path) -> None:
    stage = toy_stage(tmp_path / "run", accumulate=2, log={"every": 1})
    stage = replace(stage, optimiser=replace(stage.optimiser, groups=()))
    outcome = train(stage, Toy())
    toy = Toy()
    by_name = {name: p for name, p in toy.model.named_parameters() if p.requires_grad and "spare" not in name}
    matrices = [p for p in by_name.values() if p.ndim == 2]
    vectors = [p for p in by_name.values() if p.ndim < 2]
    optimiser = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}])
    average = {name: p.detach().clone() for name, p in by_name.items()}
    for step, line in enumerate(log_lines(tmp_path / "run")):
        losses = []
        for index in (2 * step, 2 * step + 1):
            torch.manual_seed(micro_seed(3, index))
            loss = toy.loss(toy.batch(index), index).value
            torch.autograd.backward(loss / 2)
            losses.append(float(loss.detach()))
        norm = torch.nn.utils.clip_grad_norm_(list(by_name.values()), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(stage.optimiser, step, 8)
        optimiser.step()
        optimiser.zero_grad()
        keep = min(0.9, (step + 1) / (step + 5))
        average = {name: keep * old + (1 - keep) * by_name[name].detach() for name, old in average.items()}
        assert line["loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
        assert line["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
        assert line["parts"]["kind0"] == pytest.approx(losses[0], rel=1e-5)
        assert (line["step"], line["lr"]) == (step + 1, optimiser.param_groups[0]["lr"])
    saved = weights(outcome.checkpoint / "weights")
    for name, parameter in by_name.items():
        torch.testing.assert_close(saved[name], parameter.detach(), rtol=1e-4, atol=1e-6)
    assert outcome.model is not None
    exported = weights(outcome.model)
    for name, tensor in average.items():
        torch.testing.assert_close(exported[name], tensor, rtol=1e-4, atol=1e-6)


def test_tells_logs_draws_and_exports(tmp_path: Path) -> None:
    events, listen = listening()
    toy = Toy()
    stage = toy_stage(tmp_path / "run", log={"sheet_every": 3, "checkpoint_every": 5})
    outcome = train(stage, toy, Call(listen=listen))
    names = [name for name, _ in events if name != "step"]
    assert names == [
        "start",
        *(["log", "sheet"]),
        "checkpoint",
        *(["log", "sheet"]),
        "log",
        "checkpoint",
        "sheet",
        "export",
    ]
    assert [fields["step"] for name, fields in events if name == "step"] == list(range(1, 9))
    assert events[0][1]["logs"][0] == str(tmp_path / "run" / "log.jsonl")
    assert events[0][1]["parameters"] == sum(p.numel() for p in toy.model.parameters() if p.requires_grad)
    assert (outcome.step, outcome.why) == (8, "complete")
    assert [line["step"] for line in log_lines(stage.out)] == [3, 6, 8]
    sheets = sorted((stage.out / "sheets").iterdir())
    assert [sheet.name for sheet in sheets] == [f"step-{step:08d}.png" for step in (3, 6, 8)]
    drawn = np.asarray(Image.open(sheets[-1]))
    assert drawn.shape == (8, 10, 3)
    # Sheets and model have the averaged weights, the training its own.
    assert outcome.model is not None
    copy = Toy()
    with torch.no_grad():
        for name, parameter in copy.model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights(outcome.model)[name])
        torch.manual_seed(micro_seed(3, 8))
        assert float(copy.model(torch.ones(1, 5)).mean()) == toy.drawn[-1]
    trained = dict(toy.model.named_parameters())
    assert all(torch.equal(trained[n], t) for n, t in weights(outcome.checkpoint / "weights").items() if n in trained)


@pytest.mark.parametrize(("workers", "accumulate"), [(1, 1), (2, 2)])
def test_workers_give_the_same_run(tmp_path: Path, workers: int, accumulate: int) -> None:
    runs = [
        train(toy_stage(tmp_path / str(count), workers=count, accumulate=accumulate), Toy()) for count in (0, workers)
    ]
    assert bits(runs[0].checkpoint) == bits(runs[1].checkpoint)
    assert log_lines(tmp_path / "0") == log_lines(tmp_path / str(workers))


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("nan", r"step 7: the loss is nan in micro-batch 13 \(samples s13-0, s13-1, s13-2\); the weights were"),
        ("gradient", r"step 7: the norm of the gradient is \w+ in micro-batches 12 \(samples .*\), 13 \(samples s13-0"),
    ],
)
def test_what_is_not_finite_changes_nothing(tmp_path: Path, fault: str, told: str) -> None:
    changes: dict[str, Any] = {"accumulate": 2, "log": {"checkpoint_every": 3}}
    toy = Toy(faults={13: fault})
    with pytest.raises(VinoError, match=told):
        train(toy_stage(tmp_path / "bad", **changes), toy)
    good = train(toy_stage(tmp_path / "good", **changes), Toy(), Call(steps=6))
    kept = tmp_path / "bad" / "checkpoints" / "step-00000006"
    assert bits(kept) == bits(good.checkpoint)
    now = dict(toy.model.named_parameters())
    assert all(torch.equal(now[n], t) for n, t in weights(kept / "weights").items() if n in now)
    assert train(toy_stage(tmp_path / "bad", **changes), Toy()).why == "complete"


def test_a_killed_worker_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    stage = toy_stage(tmp_path / "run", workers=2, log={"checkpoint_every": 1})
    train(stage, Toy(), Call(steps=2))
    told = r"died twice over micro-batch 6 \(exit code -9.*; the last checkpoint is intact \(.*step-0000000\d\)"
    with pytest.raises(VinoError, match=told):
        train(stage, Toy(faults={6: "die"}))
    again = train(stage, Toy())
    assert bits(again.checkpoint) == bits(train(replace(stage, out=tmp_path / "whole"), Toy()).checkpoint)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_data_keeps_its_kind(tmp_path: Path, workers: int) -> None:
    with pytest.raises(InputError, match="sample 5 cannot be read"):
        train(toy_stage(tmp_path / "run", workers=workers), Toy(faults={5: "refuse"}))


def test_cancel_ends_after_the_step_with_a_checkpoint(tmp_path: Path) -> None:
    cancel = threading.Event()
    call = Call(cancel=cancel, listen=lambda name, fields: cancel.set() if fields.get("step") == 3 else None)
    outcome = train(toy_stage(tmp_path / "run"), Toy(), call)
    assert (outcome.step, outcome.why, outcome.model) == (3, "cancelled", None)
    assert outcome.checkpoint.name == "step-00000003"
    assert not (tmp_path / "run" / "model").exists()


def test_a_budget_of_time_cuts_a_run_into_pieces(tmp_path: Path) -> None:
    steps = []
    for _ in range(8):
        outcome = train(toy_stage(tmp_path / "cut", minutes=1e-6), Toy())
        steps.append((outcome.step, outcome.why))
    assert steps == [*((step, "minutes") for step in range(1, 8)), (8, "complete")]
    whole = train(toy_stage(tmp_path / "whole", log={"checkpoint_minutes": 1e-9}), Toy(), Call(minutes=60))
    assert bits(outcome.checkpoint) == bits(whole.checkpoint)
    assert log_lines(tmp_path / "cut") == log_lines(tmp_path / "whole")


def test_recomputing_gives_the_same_bits(tmp_path: Path) -> None:
    calls, runs = [], []
    for recompute in (False, True):
        toy = Toy()
        runs.append(train(toy_stage(tmp_path / str(recompute), recompute=recompute), toy))
        calls.append(sum(block.calls for block in toy.shards() if isinstance(block, Block)))
    assert bits(runs[0].checkpoint) == bits(runs[1].checkpoint)
    assert calls == [16, 32]


def test_bfloat16_is_the_forward_pass_alone(tmp_path: Path) -> None:
    full = train(toy_stage(tmp_path / "full"), Toy())
    half = train(toy_stage(tmp_path / "half", precision="bfloat16"), Toy())
    assert bits(full.checkpoint) != bits(half.checkpoint)
    assert all(tensor.dtype == torch.float32 for tensor in weights(half.checkpoint / "weights").values())
    for one, other in zip(log_lines(tmp_path / "full"), log_lines(tmp_path / "half"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=0.05)


def test_what_cannot_be_trained(tmp_path: Path) -> None:
    frozen = Toy()
    frozen.model.requires_grad_(False)
    with pytest.raises(UsageError, match="nothing to train"):
        train(toy_stage(tmp_path / "run"), frozen)
    for steps in (0, 9):
        with pytest.raises(UsageError, match=f"steps is {steps}, expected 1..8"):
            train(toy_stage(tmp_path / "run"), Toy(), Call(steps=steps))
    with occupied(tmp_path / "run"), pytest.raises(UsageError, match="another run is training in"):
        train(toy_stage(tmp_path / "run"), Toy())


def test_memory_that_ran_out_says_what_to_do(tmp_path: Path) -> None:
    class Large(Toy):
        def loss(self, batch: Batch, index: int) -> Loss:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(OutOfMemory, match="cpu ran out of memory; take smaller micro-batches"):
        train(toy_stage(tmp_path / "run"), Large())


def test_settings_of_the_process_come_back(tmp_path: Path) -> None:
    debug: Any = torch.utils.deterministic
    torch.use_deterministic_algorithms(False)
    try:
        seen: list[object] = []
        call = Call(listen=lambda name, fields: seen.append(torch.are_deterministic_algorithms_enabled()))
        before = (torch.get_num_threads(), debug.fill_uninitialized_memory)
        train(toy_stage(tmp_path / "run", threads=2), Toy(), call)
        assert set(seen) == {True}
        assert (torch.get_num_threads(), debug.fill_uninitialized_memory) == before
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)
