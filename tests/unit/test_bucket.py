"""Choosing shapes: exact for static engines, anything legal for dynamic ones, and the layout told beforehand."""

import re
from dataclasses import replace

import pytest
import torch

from vino_rt.backends.recipe import load_recipe
from vino_rt.bucket import (
    Bucket,
    Layout,
    Lengths,
    Need,
    check_clip,
    choose,
    lay_out,
    padded_text,
    patch_grid,
    pick,
    usual_shapes,
)
from vino_rt.errors import InputError
from vino_rt.explanation import explain, why
from vino_rt.model_settings import ModelSettings, Sampling
from vino_rt.models.vino.prepare import crop_size, reference_box, video_size
from vino_rt.plan import BOUNDARY_ROWS, BranchShape, pack, volume

DEFAULTS = ModelSettings(
    name="test", family="vino", area=64 * 48, unit=16, max_frames=9, fps=24.0, default_size=(64, 48), default_frames=5,
    steps=4, image=Sampling(5.0, 5.0), video=Sampling(7.0, 7.0), negative_prompt="", negative_prompt_video="",
)  # fmt: skip
RELEASED = 480 * 848
"""Pixels that the released model scales references to."""
STILL = Bucket(frames=1, height=48, width=64, references=30, text_tokens=20, branches=3)
LARGE = Bucket(frames=1, height=48, width=64, references=60, text_tokens=20, branches=3)
CLIP = Bucket(frames=5, height=48, width=64, references=0, text_tokens=20)
BUCKETS = (LARGE, STILL, CLIP)


def need(references: int = 1, text: tuple[int, ...] = (11, 7, 5), clip: tuple[int, int, int] = (1, 48, 64)) -> Need:
    seen = tuple(range(references))
    return Need(clip, ((1, 3, 5),) * references, tuple(BranchShape(seen, rows) for rows in text))


def test_rows_a_request_needs() -> None:
    assert need().reference_rows == 3 * 17
    assert need().text_rows == 23
    assert patch_grid((9, 48, 80), 16) == (3, 3, 5)


def test_dynamic_shapes_are_not_padded() -> None:
    assert choose(need(), (), DEFAULTS) == Lengths(None, None)
    assert choose(need(clip=(9, 16, 80)), (), DEFAULTS) == Lengths(None, None)


@pytest.mark.parametrize("clip", [(1, 48, 72), (1, 96, 96), (13, 48, 64), (4, 48, 64), (0, 48, 64)])
def test_dynamic_shapes_off_the_grid_or_too_large(clip: tuple[int, int, int]) -> None:
    with pytest.raises(InputError):
        check_clip(clip, (), DEFAULTS)


def test_the_smallest_fitting_bucket() -> None:
    assert choose(need(), BUCKETS, DEFAULTS) == Lengths(3 * (30 + 12), 60)
    assert choose(need(references=3), BUCKETS, DEFAULTS) == Lengths(3 * (60 + 12), 60)
    assert choose(need(0, (20, 20), (5, 48, 64)), BUCKETS, DEFAULTS) == Lengths(2 * 24, 40)


def test_room_is_shared_by_the_branches() -> None:
    assert choose(need(text=(40, 10, 10)), BUCKETS, DEFAULTS).text_tokens == 60


def test_buckets_take_all_branches_in_one_sequence() -> None:
    asked = need()
    layouts = lay_out(asked, DEFAULTS, BUCKETS, pack_rows=1, pad_text=(64,))
    assert layouts == (Layout(asked.branches, Lengths(3 * (30 + 12), 60)),)


def test_long_branches_run_apart_and_text_is_padded() -> None:
    wide = replace(DEFAULTS, area=640 * 640)
    asked = need(0, (301, 205), (1, 640, 640))
    one, two = lay_out(asked, wide, (), pack_rows=3072, pad_text=(64,))
    assert (one.branches, two.branches) == (asked.branches[:1], asked.branches[1:])
    assert (one.lengths, two.lengths) == (Lengths(None, 320), Lengths(None, 256))
    (padded,) = lay_out(asked, wide, (), pad_text=(320, 64, 256))
    assert padded == Layout(asked.branches, Lengths(None, 2 * 256))
    (both,) = lay_out(asked, wide, (), pack_rows=4000)
    assert both == Layout(asked.branches, Lengths(None, 506))


@pytest.mark.parametrize(("rows", "expected"), [(1, 200), (200, 200), (201, 300), (300, 300), (301, 600), (901, 1200)])
def test_text_is_padded_to_the_least_length_that_holds_it(rows: int, expected: int) -> None:
    """The lengths are those of a branch; beyond the largest, multiples of it."""
    assert padded_text(rows, 2, (150, 100)) == expected
    assert padded_text(rows, 2, ()) == rows


def test_usual_shapes_are_the_buckets_or_the_defaults() -> None:
    """The most rows first."""
    assert usual_shapes((CLIP, LARGE, STILL), DEFAULTS) == (LARGE, STILL, CLIP)
    assert usual_shapes((), DEFAULTS) == ((5, 48, 64), (1, 48, 64))
    assert usual_shapes((), replace(DEFAULTS, default_frames=1)) == ((1, 48, 64),)


def test_a_size_without_engine_names_those_there_are() -> None:
    with pytest.raises(InputError, match="no bucket for 1 frames of 48x64; its buckets are for 1 of 64x48, 5 of 64x48"):
        choose(need(clip=(1, 64, 48)), BUCKETS, DEFAULTS)


@pytest.mark.parametrize("asked", [need(references=9), need(text=(60, 1, 1))])
def test_too_many_rows(asked: Need) -> None:
    with pytest.raises(InputError, match=r"needs \d+ reference and \d+ text rows in its 3 .* 1 x 64x48 .*shorter"):
        choose(asked, BUCKETS, DEFAULTS)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            need(0, (5,)),
            "has 1 branch; .* of 64x48 have 3 branches: for 3 branches set --guidance and --image-",
        ),
        (need(text=(5, 5)), "has 2 branches; .* have 3 branches: for 3 branches set --guidance and --image-guidance"),
        (need(1, (5, 5, 5), (5, 48, 64)), "has 3 branches; .* have 2 branches: .* leave --image-guidance at 1; or add"),
    ],
)
def test_another_number_of_branches_is_named_as_the_cause(asked: Need, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        choose(asked, BUCKETS, DEFAULTS)
    assert "shorter prompt" not in str(caught.value)


def test_the_choice_is_explained() -> None:
    asked = need(references=3)
    chosen = pick(asked, BUCKETS, DEFAULTS)
    assert chosen is LARGE
    told = why(asked, chosen, BUCKETS)
    assert told.startswith("of 2 for this size and 3 branches the smallest with room for")
    assert told.endswith("; 1 smaller one has not")
    assert pick(asked, (), DEFAULTS) is None


@pytest.mark.parametrize("name", ["tensorrt", "torch-tensorrt", "onnxruntime-tensorrt"])
@pytest.mark.parametrize("photo", [(4032, 3024), (3000, 2000), (1024, 1024), (1920, 1080), (1080, 1920), (600, 3000)])
def test_shipped_buckets_take_prompts_photos_and_image_guidance(name: str, photo: tuple[int, int]) -> None:
    buckets, box = load_recipe(name).buckets, reference_box("photo", *photo, RELEASED, DEFAULTS.unit)
    one = patch_grid((1, box.height, box.width), DEFAULTS.unit)
    for clip in {bucket.clip for bucket in buckets if not bucket.references}:
        for references, branches in ((0, 2), (1, 2), (1, 3), (3, 2), (1, 1)):
            shapes = (BranchShape(tuple(range(references)), 600),) * branches
            lengths = choose(Need(clip, (one,) * references, shapes), buckets, DEFAULTS)
            rows = branches * (volume(patch_grid(clip, DEFAULTS.unit)) + references * (volume(one) + BOUNDARY_ROWS))
            assert lengths.image_tokens is not None
            assert rows <= lengths.image_tokens <= rows + 80 * references * branches


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-plugin"])
@pytest.mark.parametrize("video", [(1920, 1080), (1080, 1920), (1280, 720), (848, 480), (480, 848)])
@pytest.mark.parametrize("frames", [25, 49, 85])
def test_shipped_buckets_take_usual_videos_and_a_photo(name: str, video: tuple[int, int], frames: int) -> None:
    clip = frames, *crop_size(*video_size(*video, RELEASED), DEFAULTS.unit)
    references = (1, 40, 40), patch_grid(clip, DEFAULTS.unit)
    asked = Need(clip, references, (BranchShape((0, 1), 4000),) * 2)
    lengths = choose(asked, load_recipe(name).buckets, DEFAULTS)
    assert lengths.image_tokens is not None
    assert lengths.image_tokens >= asked.reference_rows + 2 * volume(patch_grid(clip, DEFAULTS.unit))


@pytest.mark.parametrize(
    "fields",
    [{"frames": 2}, {"height": 0}, {"references": -1}, {"text_tokens": 0}, {"branches": 4}, {"branches": 0}],
)
def test_bad_buckets(fields: dict[str, int]) -> None:
    with pytest.raises(InputError, match="bucket"):
        Bucket(**{"frames": 1, "height": 16, "width": 16, "references": 0, "text_tokens": 1, **fields})


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({}, "bucket with no fields: missing fields: frames, height, references, text_tokens, width"),
        (
            {"frames": 1, "depth": 3, "height": 16, "width": 16},
            "bucket with frames = 1, depth = 3, height = 16, width = 16: "
            "missing fields: references, text_tokens; unknown fields: depth",
        ),
        (
            {"frames": "1", "height": 16, "width": 16, "references": 0, "text_tokens": 1},
            "bucket with frames = '1', height = 16, width = 16, references = 0, text_tokens = 1: "
            "not whole numbers: frames",
        ),
    ],
)
def test_bad_tables_of_a_recipe(table: dict[str, object], told: str) -> None:
    expected = f"{told}; the fields are frames, height, width, references, text_tokens, branches"
    with pytest.raises(InputError, match=f"^{re.escape(expected)}$"):
        Bucket.from_table(table)


def test_a_table_of_a_recipe() -> None:
    table = {"frames": 1, "height": 48, "width": 64, "references": 30, "text_tokens": 20}
    assert Bucket.from_table({**table, "branches": 3}) == STILL
    assert Bucket.from_table(table).branches == 2


@pytest.mark.parametrize("lengths", [Lengths(None, None), Lengths(211, 43)])
def test_the_explanation_is_what_the_plan_does(lengths: Lengths) -> None:
    shapes = (BranchShape((0, 1), 13), BranchShape((0,), 7), BranchShape((), 5))
    asked = Need((5, 48, 80), ((1, 3, 5), (2, 2, 3)), shapes)
    plan = pack((2, 3, 5), asked.references, shapes, image_tokens=lengths.image_tokens, text_tokens=lengths.text_tokens)
    told = explain(asked, 16, [Layout(shapes, lengths)])
    assert (told.image_tokens, told.text_tokens) == (plan.image_tokens, plan.text_tokens)
    assert sum(s.rows for s in told.segments) == len(plan.joint_index)
    real = [s for s in told.segments if s.branch is not None]
    ends = {s.branch: s.start + s.rows for s in real}
    assert [ends[b] for b in range(3)] == plan.offsets[1:4].tolist()
    times = plan.positions[:, 0][plan.joint_index]
    assert all(int(times[s.start]) == s.time for s in real if s.time is not None)
    branch_lengths = torch.diff(plan.offsets)[:3].long()
    assert told.attention_pairs == int((branch_lengths**2).sum())
    assert len(told.segments) - len(real) == (lengths.image_tokens is not None)


def test_the_explanation_of_two_sequences_is_what_their_plans_do() -> None:
    asked = need(2, (11, 7, 5))
    apart = (Layout(asked.branches[:2], Lengths(None, 32)), Layout(asked.branches[2:], Lengths(None, 16)))
    plans = [pack((1, 3, 4), asked.references, each.branches, **vars(each.lengths)) for each in apart]
    told = explain(asked, 16, apart)
    assert told.sequences == 2
    assert told.image_tokens == sum(plan.image_tokens for plan in plans)
    assert told.text_tokens == sum(plan.text_tokens for plan in plans) == 48
    for number, plan in enumerate(plans):
        rows = [segment for segment in told.segments if segment.sequence == number]
        assert rows[0].start == 0
        assert rows[-1].what == "padding"
        assert rows[-1].start + rows[-1].rows == len(plan.joint_index)
    assert [s.branch for s in told.segments if s.what == "target"] == [0, 1, 2]
