"""The benchmark of training: its formula is what PyTorch counts, its rows add up.

One tiny model is made for the whole file; how long its steps take means nothing.
"""

import json
import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench import train
from bench.harness import Spread, Timing
from bench.train_flops import flow_flops
from tests.unit.small_model import make_small_model
from vino_rt.errors import VinoError
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.prompt import ProcessedInput
from vino_rt.plan import Grid
from vino_rt.train.flow_model import FlowInputs, FlowModel
from vino_rt.train.vlm_batch import collate

CPU = torch.device("cpu")
SIZES = train.Sizes(rows=60, tokens=1, lessons=2, side=16, repeats=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelDir:
    torch.set_num_threads(1)
    return make_small_model(tmp_path_factory.mktemp("bench") / "model")


@pytest.fixture(scope="module")
def works(model: ModelDir) -> list[train.Work]:
    return [*train.flow_work(model, SIZES, CPU), *train.other_work(model, SIZES)]


def batch_of(model: FlowModel, *samples: tuple[int, Grid, bool]) -> FlowInputs:
    """Samples as (words, target, whether a picture is shown); random numbers."""
    ids = model.conditioner.vision_ids
    prompts: list[ProcessedInput] = []
    references: list[tuple[Grid, ...]] = []
    for words, _, shown in samples:
        seen = torch.tensor([ids.start, *[ids.image] * 6, ids.end] if shown else [], dtype=torch.int64)
        grids: tuple[Grid, ...] = ((1, 4, 6),) if shown else ()
        pixels = torch.rand(24, 3 * 2 * 16 * 16) if shown else None
        prompts.append(ProcessedInput(torch.cat((seen, torch.arange(words))), pixels, grids))
        references.append(((1, 3, 5),) if shown else ())
    targets = sum(math.prod(target) for _, target, _ in samples)
    return FlowInputs(
        prompts=collate(prompts, ids, queries=model.query_count),
        targets=torch.randn(targets, 64),
        references=torch.randn(15 * sum(map(len, references)), 64),
        target_grids=tuple(target for _, target, _ in samples),
        reference_grids=tuple(references),
        times=torch.rand(len(samples)),
    )


@pytest.mark.parametrize(
    "samples",
    [
        [(9, (1, 2, 3), False)],
        # Prompts of one length, so that the counter meets no padding.
        [(7, (2, 2, 3), True), (15, (1, 3, 3), False), (7, (1, 5, 1), True)],
    ],
)
def test_the_formula_is_what_runs(model: ModelDir, samples: list[tuple[int, Grid, bool]]) -> None:
    module = FlowModel(model, queries=True, boundary=True)
    module.load(model)
    module.transformer.time_text_embed.text_embedder.requires_grad_(False)
    given = batch_of(module, *samples)
    # The counter does not know the CPU's fused attention; spelled out it is products like any others.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        torch.autograd.backward(module(given).square().mean())
    flops = flow_flops(model, given)
    assert sum(flops.values()) == counter.get_total_flops()
    assert all(flops.values())


def test_works_are_drawn_and_encoded_and_hold_what_they_say(works: list[train.Work]) -> None:
    names = [work.name for work in works]
    assert names == [
        "flow, pictures 64x64", "flow, clips 64x64x17", "vae, pictures 64x64", "vae, clips 64x64x17",
        "caption, lessons 64x64",
    ]  # fmt: skip
    pictures, clips = works[:2]
    for work, grid in ((pictures, (1, 4, 4)), (clips, (5, 4, 4))):
        assert {sample.latents[0].grid for sample in work.batch.samples} == {grid}
        assert work.rows > work.samples * math.prod(grid)
    assert [work.batch.pixels.shape[1] for work in works[2:4]] == [1, 17]
    assert works[4].samples == SIZES.lessons
    assert all(math.fsum(work.flops.values()) > 0 for work in works[:2])


def test_every_trial_has_its_rows(model: ModelDir, works: list[train.Work], capfd: pytest.CaptureFixture[str]) -> None:
    trials, ceilings = train.trials_of(model.path, works, SIZES, CPU, [1])
    assert list(ceilings) == ["float32, 1 thread", "bfloat16, 1 thread"]
    found = train.series(trials, ceilings, SIZES)
    assert "round 2 of 2" in capfd.readouterr().err
    rows = {(row.case, row.metric): row for row in found}
    assert len(rows) == len(found) == 2 * (2 * 7 + 3 * 5 + 1)
    for trial in trials:
        parts = [rows[trial.name, phase].value for phase in train.PHASES]
        assert all(part > 0 for part in parts)
        spread = rows[trial.name, "step"].spread
        assert isinstance(spread, Spread)
        assert spread.runs == 2
        assert sum(parts) <= 2.1 * rows[trial.name, "step"].value
    assert rows["machine, float32, 1 thread", "ceiling: one matrix product"].value > 0


def test_a_step_at_half_the_rate_uses_half(works: list[train.Work], model: ModelDir) -> None:
    trials, _ = train.trials_of(model.path, works[:1], SIZES, CPU, [1])
    trial, flops = trials[0], sum(works[0].flops.values())
    trial.phases += [(9.0, 9.0, 9.0), (0.1, 0.3, 0.1), (0.2, 0.2, 0.1)]
    rows = {row.metric: row for row in train.trial_rows(trial, Timing((0.5, 0.5)), rate=4 * flops)}
    assert rows["MFU"].value == pytest.approx(50)
    assert rows["step"].ceiling is not None
    assert rows["step"].ceiling.value == pytest.approx(250)
    assert rows["forward"].value == pytest.approx(150)
    assert rows["samples"].value == pytest.approx(2 * works[0].samples)
    assert rows["joint rows"].value == pytest.approx(2 * works[0].rows)


def test_a_loss_that_is_not_finite_gives_no_number(model: ModelDir) -> None:
    work = train.flow_work(model, SIZES, CPU)[0]
    bias = dict(work.objective.model.named_parameters())["transformer.proj_out.bias"]
    torch.nn.init.constant_(bias, float("nan"))
    trials, _ = train.trials_of(model.path, [work], SIZES, CPU, [1])
    with pytest.raises(VinoError, match="the loss is nan"):
        trials[0].step()


@pytest.mark.slow
def test_quick_says_where_it_ran(
    model: ModelDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench import __main__ as command

    monkeypatch.setattr(train, "init_preset", lambda name, out: model)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["train", "--quick", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["case"].split(", ")[0] for row in rows} == {"cpu"}
    assert {row["metric"] for row in rows} >= {"step", "samples", "MFU", "operations: transformer"}
