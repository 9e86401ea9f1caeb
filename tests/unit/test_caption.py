"""The caption objective: what is taught, that it can be learnt, and that all but the VLM stays as it was."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vino_rt.errors import UsageError
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.preset import init_preset
from vino_rt.train.caption import CaptionBatch, CaptionObjective
from vino_rt.train.lessons import Lessons
from vino_rt.train.probe import COLOUR, SHAPE, clip_centres, picture_centres
from vino_rt.world.scene import Motion, Scene, Thing
from vino_rt.world.split import HELD_OUT

EVERY = {
    "image": 1, "clip": 1, "which": 1, "t2i": 1, "t2v": 1, "i2v": 1, "ti2v": 1, "ti2i": 1, "ti2i/recolour": 1,
    "tv2v": 1, "tiv2v": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelDir:
    torch.set_num_threads(1)
    return init_preset("mini", tmp_path_factory.mktemp("caption") / "mini")


def opened(model: ModelDir, **data: object) -> CaptionObjective:
    return CaptionObjective(model, {"lessons": EVERY, "batch": 11, **data}, {}, 3)


def tensors(batch: CaptionBatch) -> list[Tensor]:
    return [
        tensor
        for chunk in batch.chunks
        for tensor in (chunk.rows, chunk.labels, chunk.spoken, chunk.inputs.input_ids, chunk.inputs.positions)
    ] + [patches.rows for chunk in batch.chunks for patches in chunk.inputs.patches]


@pytest.mark.parametrize("name", sorted(EVERY))
def test_lessons_are_pure_and_hold_no_unseen_pair(name: str) -> None:
    lessons = Lessons({"lessons": EVERY}, 0)
    for seed in range(20):
        first, again = (lessons.lesson(name, seed) for _ in range(2))
        assert (first.given.prompt, first.answer, first.key) == (again.given.prompt, again.answer, again.key)
        assert all(np.array_equal(a, b) for a, b in zip(first.given.images, again.given.images, strict=True))
        assert first.answer
        assert not HELD_OUT & {(thing.colour, thing.shape) for thing in first.example.target.things}
        shown = first.given
        assert shown.video is None or shown.video.shape == (8, 64, 64, 3)
        assert (len(shown.images) > 0 or shown.video is not None) == (name not in ("t2i", "t2v"))


def test_which_picture_is_told_by_its_number() -> None:
    lessons = Lessons({"lessons": EVERY}, 0)
    told = [lessons.lesson("which", seed) for seed in range(150)]
    assert {lesson.answer for lesson in told if lesson.answer.startswith("image")} == {"image 1", "image 2", "image 3"}
    assert {len(lesson.given.images) for lesson in told} == {2, 3}


def test_labels_are_the_answer_and_the_words_of_the_prompt(model: ModelDir) -> None:
    objective = opened(model)
    decode = objective.processor.tokenizer.decode
    lessons = {lesson.key: lesson for lesson in objective.lessons.batch(7)}
    batch = objective.batch(7)
    assert batch.keys == tuple(lessons)
    said = set()
    for chunk in batch.chunks:
        width = chunk.inputs.input_ids.shape[1]
        assert torch.equal(chunk.inputs.input_ids.flatten()[chunk.rows + 1], chunk.labels)
        for row in range(len(chunk.inputs.lengths)):
            mine = chunk.rows // width == row
            asked, answer = (chunk.labels[mine & part].tolist() for part in (~chunk.spoken, chunk.spoken))
            said.add((decode(asked), decode(answer)))
    assert said == {(lesson.given.prompt, lesson.answer) for lesson in lessons.values()}


def test_a_batch_is_pure_and_travels(model: ModelDir) -> None:
    objective, other = opened(model), opened(model)
    for index in (0, 5):
        sent = pickle.loads(pickle.dumps(objective.batch(index)))
        for a, b in zip(tensors(sent), tensors(other.batch(index)), strict=True):
            assert torch.equal(a, b)
        assert torch.equal(objective.loss(sent, index).value, other.loss(sent, index).value)


def test_chunks_only_save_padding(model: ModelDir) -> None:
    whole, parts = (CaptionObjective(model, {"lessons": EVERY, "batch": 11}, {"chunks": n}, 3) for n in (1, 3))
    one, three = whole.loss(whole.batch(0), 0), parts.loss(parts.batch(0), 0)
    assert one.value.item() == pytest.approx(three.value.item(), rel=1e-5)
    assert one.parts == pytest.approx(three.parts, rel=1e-5)


def test_every_weight_learns_and_the_loss_falls(model: ModelDir) -> None:
    objective = opened(model)
    batch = objective.batch(0)
    optimiser = torch.optim.AdamW(objective.model.parameters(), lr=1e-3)
    losses = []
    for step in range(6):
        loss = objective.loss(batch, step)
        torch.autograd.backward(loss.value)
        if step == 0:
            unmoved = [n for n, p in objective.model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
            assert unmoved == []
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.value.item())
    assert losses[-1] < 0.6 * losses[0]
    head, embedding = objective.model.vlm.lm_head.weight, objective.model.vlm.model.language_model.embed_tokens.weight
    assert head is embedding


def test_without_speaking_the_tower_learns_alone(model: ModelDir) -> None:
    table = {"lessons": {"image": 1, "clip": 1}, "batch": 8}
    objective = CaptionObjective(model, table, {"speak": False}, 3)
    batch, found = objective.batch(0), []
    optimiser = torch.optim.AdamW([p for p in objective.model.parameters() if p.requires_grad], lr=1e-3)
    for step in range(25):
        loss = objective.loss(batch, step)
        torch.autograd.backward(loss.value)
        optimiser.step()
        optimiser.zero_grad()
        found.append(loss.parts)
    assert {name for name, p in objective.model.named_parameters() if p.requires_grad and "visual" not in name} == {
        "probe.norm.weight", "probe.norm.bias", "probe.read.weight", "probe.read.bias",
    }  # fmt: skip
    assert found[-1]["probe"] < 0.6 * found[0]["probe"]
    assert found[-1]["shape"] > 0.5 > found[0]["shape"]
    assert found[-1].keys() == {"probe", "shape"}
    with pytest.raises(UsageError, match="leaves nothing to learn"):
        CaptionObjective(model, table, {"speak": False, "probe": 0.0}, 3)


def test_export_changes_the_vlm_alone(model: ModelDir, tmp_path: Path) -> None:
    objective = opened(model)
    with torch.no_grad():
        for parameter in objective.model.parameters():
            parameter.mul_(1.25)
    objective.export(tmp_path / "out")
    out = ModelDir.open(tmp_path / "out")
    changed = {name for name, record in out.files.items() if record != model.files[name]}
    assert changed == {"vlm/model.safetensors"}
    assert out.config_hash == model.config_hash
    name = "model.visual.blocks.0.attn.qkv.weight"
    before, after = model.part("vlm").read(name), out.part("vlm").read(name)
    assert torch.equal(after, (before.float() * 1.25).bfloat16())
    batch = objective.batch(0)
    answer, again = (each.loss(batch, 0).parts["answer"] for each in (objective, opened(out)))
    assert again == pytest.approx(answer, rel=0.05)


def test_sheet(model: ModelDir) -> None:
    sheet = opened(model).sheet()
    assert sheet.dtype == np.uint8
    assert sheet.ndim == 3
    assert sheet.shape[2] == 3


def test_the_probe_is_told_what_each_token_shows(model: ModelDir) -> None:
    moving = Thing("star", "blue", 0.3, 0.7, motion=Motion("right", "quickly"))
    scene = Scene("black", (moving, Thing("ring", "red", 0.9, 0.1)))
    still = picture_centres(scene, (1, 4, 4), 2)
    assert still.shape.tolist() == [0, SHAPE["ring"], SHAPE["star"], 0]
    assert still.colour.tolist() == [0, COLOUR["red"], COLOUR["blue"], 0]
    assert still.offset[2].tolist() == pytest.approx([-0.1, 0.1])
    clip = clip_centres(scene, 17, 8.0, (4, 4, 4), 2)
    # A quarter of the width in a second: the star's centre is in the right half before the clip's middle pair ends.
    assert [clip.shape[4 * pair + 2 : 4 * pair + 4].tolist().index(SHAPE["star"]) for pair in range(4)] == [0, 0, 1, 1]
    for chunk in opened(model).batch(0).chunks:
        assert len(chunk.centres.shape) == sum(len(patches.index) for patches in chunk.inputs.patches)


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        ({"lessons": {"images": 1}}, {}, "lesson 'images' is unknown; there are image, clip, which"),
        ({"lessons": {"ti2i/none": 1}}, {}, "lesson 'ti2i/none' is unknown"),
        ({"lessons": {}}, {}, "give at least one"),
        ({"lessons": {"image": 0}}, {}, "weights above 0"),
        ({"lessons": {"image": 1}, "split": "all"}, {}, "split is 'all'"),
        ({"lessons": {"image": 1}, "batch": 0}, {}, "batch is 0"),
        ({"lessons": {"image": 1}, "sizes": [64, 64]}, {}, "give pairs of width and height"),
        ({"lessons": {"image": 1}, "source": "files"}, {}, "captions are taught on 'world' alone"),
        ({"lessons": {"image": 1}, "colour": 1}, {}, r"unknown \['colour'\]"),
        ({"lessons": {"image": 1}}, {"prompt": -1}, "prompt is -1"),
        ({"lessons": {"image": 1}}, {"probe": -0.5}, "probe is -0.5"),
        ({"lessons": {"image": 1}}, {"chunks": 0}, "chunks is 0"),
        ({"lessons": {"image": 1}}, {"export": "int8"}, "export is 'int8', expected one of"),
    ],
)
def test_bad_tables(model: ModelDir, data: dict[str, object], settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CaptionObjective(model, data, settings, 0)
