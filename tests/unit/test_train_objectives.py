"""The objectives `vae` and `flow` on a tiny model: pure batches, losses that fall, exports that open."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.small_model import make_small_model
from vino_rt.errors import ModelError, UsageError
from vino_rt.model_dir import ModelDir
from vino_rt.train.caption import CaptionObjective
from vino_rt.train.export import export_model
from vino_rt.train.feed import to_device
from vino_rt.train.flow import FlowObjective
from vino_rt.train.flow_batch import spread_normal
from vino_rt.train.objective import Objective
from vino_rt.train.vae import Autoencoder, VaeObjective, edge_difference, pixel_tensor, start_fresh
from vino_rt.train.world_data import WorldData

STILL = {"size": [32, 48], "frames": 1, "share": 1.0}
MOVING = {"size": [48, 32], "frames": 5, "share": 1.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelDir:
    torch.set_num_threads(1)
    return make_small_model(tmp_path_factory.mktemp("small") / "model")


def world(*buckets: dict[str, object], budget: int = 60, **tasks: float) -> WorldData:
    table = {
        "source": "world",
        "tasks": tasks,
        "buckets": list(buckets),
        "budget": budget,
        "overhead": 8,
        "examples": 9,
    }
    return WorldData(table, 5)


def fall(objective: Objective, steps: int, lr: float) -> tuple[float, float]:
    """Loss on the first batch before and after training on it."""
    trained = [p for p in objective.model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=lr)
    batch, losses = objective.batch(0), []
    for _ in range(steps):
        loss = objective.loss(batch, 0)
        losses.append(loss.value.item())
        optimiser.zero_grad()
        torch.autograd.backward(loss.value)
        optimiser.step()
    return losses[0], losses[-1]


def test_the_autoencoder_learns_and_its_export_opens(model: ModelDir, tmp_path: Path) -> None:
    objective = VaeObjective(model, world(STILL, MOVING, t2i=1, t2v=1), {}, 1)
    first, last = fall(objective, 12, 3e-3)
    assert last < 0.8 * first
    objective.export(tmp_path / "out")
    out = ModelDir.open(tmp_path / "out")
    assert out.vae.scaling_factor == pytest.approx(1 / objective.latent_spread(), rel=1e-5)
    again = VaeObjective(out, objective.source, {}, 1)
    pixels = torch.rand(1, 3, 5, 16, 24) * 2 - 1
    with torch.no_grad():
        assert torch.equal(again.model.encoder_part(pixels), objective.model.encoder_part(pixels))
    assert out.files["vlm/tokenizer.json"] == model.files["vlm/tokenizer.json"]
    assert out.files["transformer/model.safetensors"] == model.files["transformer/model.safetensors"]


def test_the_start_in_closed_form_is_far_better_than_random_weights(
    model: ModelDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vino_rt.train.vae.START_BATCHES", 3)
    monkeypatch.setattr("vino_rt.train.vae.START_SAMPLES", 12)
    monkeypatch.setattr("vino_rt.train.vae_start.ROWS", 6000)
    source = world({**MOVING, "frames": 9}, budget=300, t2v=1)
    clips = pixel_tensor(torch.from_numpy(np.stack([sample.target for sample in source.load(0).samples])))
    torch.manual_seed(0)
    vae = Autoencoder(replace(model.vae, block_out_channels=(16, 16, 32, 32), norm_num_groups=4))

    def error() -> float:
        moments = vae.encoder_part(clips[:3])
        return float((vae.decoder_part(moments.chunk(2, dim=1)[0]) - clips[:3]).square().mean())

    with torch.no_grad():
        before = error()
        start_fresh(vae, source)
        assert error() < before / 8


def test_the_sheet_of_the_autoencoder_shows_truth_above_what_comes_back(model: ModelDir) -> None:
    objective = VaeObjective(model, world(MOVING, t2v=1), {}, 1)
    sheet = objective.sheet()
    truth = objective.source.held_out().load(0).samples[0].target
    assert np.array_equal(sheet[2:34, 2:50], truth[0])
    assert not np.array_equal(sheet[36:68, 2:50], truth[0])


def test_differences_of_edges_do_not_see_a_shift_in_brightness() -> None:
    first = torch.rand(2, 3, 5, 6, 7)
    assert edge_difference(first + 0.3, first).item() == pytest.approx(0, abs=1e-6)
    assert edge_difference(first, first.flip(4)).item() > 0.1


@pytest.mark.parametrize("settings", [{}, {"queries": False}, {"boundary": False}, {"train": ["connectors"]}])
def test_the_transformer_learns(model: ModelDir, settings: dict[str, object]) -> None:
    source = world(MOVING, budget=90, t2v=1, i2v=1, tv2v=1, tiv2v=1)
    # What begins at zero lets nothing through to the connectors.
    objective = FlowObjective(model, source, {"fresh": "train" not in settings, **settings}, 2)
    before = {name: p.detach().clone() for name, p in objective.model.named_parameters()}
    first, last = fall(objective, 10, 5e-3)
    assert last < first
    moved = {name.split(".")[0] for name, p in objective.model.named_parameters() if not torch.equal(p, before[name])}
    expected = {"queries", "connectors", "transformer"} if not settings.get("train") else {"connectors"}
    assert moved == expected - ({"queries"} if settings.get("queries") is False else set())


def test_batches_and_losses_depend_on_the_index_alone(model: ModelDir) -> None:
    source = world(STILL, MOVING, t2i=1, ti2i=1, t2v=1, ti2v=1)
    one, two = (FlowObjective(model, source, {"drop_prompt": 0.3, "drop_all": 0.2}, 7) for _ in range(2))
    keys = [one.batch(index).keys for index in range(4)]
    assert keys == [two.batch(index).keys for index in range(4)]
    assert len(set(keys)) > 1
    with torch.no_grad():
        # The first objective has met the samples of batch 2 before and kept their latents.
        losses = [one.loss(one.batch(index), index).value for index in (2, 0, 2)]
        assert torch.equal(losses[0], losses[2])
        assert torch.equal(losses[0], two.loss(two.batch(2), 2).value)
        assert not torch.equal(losses[0], two.loss(two.batch(2), 3).value)


def test_samples_stay_on_the_host(model: ModelDir) -> None:
    """A GPU would keep all that were ever met."""
    objective = FlowObjective(model, world(STILL, t2i=1, ti2i=1), {}, 7)
    batch = to_device(objective.batch(0), torch.device("meta"))
    tensors = [part for sample in batch.samples for part in (sample.unprompted, sample.prompt.input_ids)]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    # Others are moved as a whole, chunk by chunk.
    lessons = CaptionObjective(model, {"lessons": {"image": 1.0}, "batch": 2}, {}, 1)
    chunks = to_device(lessons.batch(0), torch.device("meta")).chunks
    assert {chunk.labels.device.type for chunk in chunks} == {"meta"}


def test_an_exported_transformer_draws_the_same_picture(model: ModelDir, tmp_path: Path) -> None:
    source = world(STILL, t2i=1, ti2i=1)
    objective = FlowObjective(model, source, {}, 2)
    fall(objective, 2, 1e-2)
    objective.export(tmp_path / "out")
    again = FlowObjective(ModelDir.open(tmp_path / "out"), source, {}, 2)
    batch = objective.batch(1).samples[:3]
    mine, theirs = objective.draw(batch, 4), again.draw(batch, 4)
    assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert [frames.shape for frames in mine] == [(1, 48, 32, 3)] * 3


def test_a_model_exported_in_bfloat16_is_all_bfloat16(model: ModelDir, tmp_path: Path) -> None:
    source = world(STILL, t2i=1)
    wide = VaeObjective(model, source, {}, 1)
    wide.export(tmp_path / "wide")
    given = ModelDir.open(tmp_path / "wide")
    assert given.describe()["parts"]["vae"]["dtypes"] == ["float32"]
    FlowObjective(given, source, {"export": "bfloat16"}, 2).export(tmp_path / "out")
    parts = ModelDir.open(tmp_path / "out").describe()["parts"]
    assert {name: part["dtypes"] for name, part in parts.items()} == {name: ["bfloat16"] for name in parts}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"train": ["vae"]}, "queries, connectors, transformer"),
        ({"drop_prompt": 0.9}, "0 to 0.5"),
        ({"time_spread": 0.0}, "above 0"),
        ({"export": "int8"}, "bfloat16"),
        ({"learning": 1}, "unknown"),
        ({"fresh": "yes"}, "'yes'"),
    ],
)
def test_settings_that_cannot_be_used_are_named(model: ModelDir, table: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        FlowObjective(model, world(STILL, t2i=1), table, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tasks": {"t2x": 1.0}}, "t2x"),
        ({"tasks": {"t2i/triple": 1.0}}, "triple"),
        ({"buckets": []}, "buckets"),
        ({"buckets": [{"size": [30, 32], "frames": 1, "share": 1}]}, "multiples of 16"),
        ({"buckets": [{"size": [32, 32], "frames": 4, "share": 1}]}, "frames"),
        ({"buckets": [{"size": [32, 32], "frames": 5, "share": 1}]}, "no task"),
        ({"split": "all"}, "train, test, unseen"),
        ({"budget": 0}, "budget"),
        ({"color": 1}, "unknown"),
    ],
)
def test_data_tables_that_cannot_be_used_are_named(change: dict[str, object], words: str) -> None:
    table = {"source": "world", "tasks": {"t2i": 1.0}, "buckets": [STILL]}
    with pytest.raises(UsageError, match=words):
        WorldData({**table, **change}, 0)


def test_an_export_with_another_shape_is_refused(model: ModelDir, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"connector_vae_branch\.norm_qwen\.weight"):
        export_model(model, tmp_path / "out", {"connector": {"metaquery": torch.zeros(3, 16)}})


def test_times_are_normal_and_one_lies_in_each_range() -> None:
    drawn = spread_normal(64, torch.Generator().manual_seed(3))
    quantiles = torch.special.ndtr(drawn) * 64
    assert sorted(quantiles.long().tolist()) == list(range(64))
    assert drawn.tolist() != sorted(drawn.tolist())
    many = torch.cat([spread_normal(7, torch.Generator().manual_seed(seed)) for seed in range(2000)])
    assert abs(many.mean().item()) < 0.02
    assert many.std().item() == pytest.approx(1, abs=0.02)
