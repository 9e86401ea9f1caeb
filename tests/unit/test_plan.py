"""The packed sequence: what each row is, where it sits, who sees whom, and what does not fit."""

import itertools

import pytest
import torch
from torch import Tensor

from vino_rt.errors import InputError
from vino_rt.plan import MAX_BRANCHES, BranchShape, Grid, Plan, boundary_rows, grid_positions, group, pack, volume

TARGET: Grid = (2, 3, 5)
REFERENCES: tuple[Grid, ...] = ((1, 2, 3), (3, 1, 2))
THREE = (BranchShape((0, 1), 7), BranchShape((0, 1), 5), BranchShape((1,), 11))
CASES = [
    (TARGET, (), (BranchShape((), 3),)),
    (TARGET, REFERENCES[:1], (BranchShape((0,), 4), BranchShape((0,), 9))),
    (TARGET, REFERENCES, THREE),
    ((1, 1, 1), REFERENCES, (BranchShape((0, 1), 1), BranchShape((1,), 2), BranchShape((), 3))),
]


def segments(plan: Plan) -> list[tuple[int, int]]:
    return list(itertools.pairwise(plan.offsets.tolist()))


def stream_rows(plan: Plan, branch: int) -> Tensor:
    """Stream rows of one branch in joint order."""
    start, end = segments(plan)[branch]
    return plan.joint_index[start:end]


def test_image_stream_of_one_image() -> None:
    # Spec section 4: vs, patches, ve, then the target at t = 3.
    plan = pack((1, 2, 2), [(1, 1, 2)], [BranchShape((0,), 3)])
    assert plan.image_index.tolist() == [3, 1, 2, 4, 5, 6, 7, 8]
    assert plan.positions[:8].tolist() == [
        [0, 0, 0], [1, 0, 0], [1, 0, 1], [2, 0, 0], [3, 0, 0], [3, 0, 1], [3, 1, 0], [3, 1, 1],
    ]  # fmt: skip
    assert plan.positions[8:].tolist() == [[0, 0, 0]] * 3
    assert plan.joint_index.tolist() == list(range(11))
    assert plan.offsets.tolist() == [0, 11, 11, 11, 11]
    assert plan.text_offsets.tolist() == [0, 3, 3, 3, 3]
    assert plan.target_index.tolist() == [4, 5, 6, 7]


def test_running_time_over_images_and_a_video() -> None:
    plan = pack((3, 3, 4), [(1, 3, 3), (1, 4, 2), (3, 3, 4)], [BranchShape((0, 1, 2), 36)])
    times = plan.positions[: plan.image_tokens, 0]
    starts = [int(times[plan.image_index == boundary]) for boundary in range(1 + 53, 1 + 53 + 6)]
    assert starts == [0, 2, 3, 5, 6, 10]
    assert sorted(set(times[-36:].tolist())) == [11, 12, 13]
    assert plan.image_tokens == 95


@pytest.mark.parametrize(("target", "references", "branches"), CASES)
@pytest.mark.parametrize("padding", [(0, 0), (13, 0), (0, 7), (17, 5)])
def test_every_row_is_where_it_belongs(
    target: Grid, references: tuple[Grid, ...], branches: tuple[BranchShape, ...], padding: tuple[int, int]
) -> None:
    bare = pack(target, references, branches)
    image, text = bare.image_tokens + padding[0], bare.text_tokens + padding[1]
    plan = pack(target, references, branches, image_tokens=image, text_tokens=text)
    assert (plan.image_tokens, plan.text_tokens, len(plan.positions)) == (image, text, image + text)
    assert torch.equal(plan.joint_index[plan.stream_index], torch.arange(image + text))
    assert torch.equal(plan.joint_index.sort().values, torch.arange(image + text))
    first_target = 1 + sum(map(volume, references)) + boundary_rows(branches)
    for number, branch in enumerate(branches):
        rows = stream_rows(plan, number)
        in_image, in_text = rows[rows < image], rows[rows >= image] - image
        assert torch.equal(rows, torch.cat((in_image, in_text + image)))
        assert len(in_text) == branch.text_tokens
        assert plan.text_branch[in_text].eq(number).all()
        assert in_text.tolist() == list(range(*plan.text_offsets[number : number + 2].tolist()))
        expected = sum(volume(references[r]) + 2 for r in branch.references) + volume(target)
        assert len(in_image) == expected
        target_rows = plan.target_index.reshape(len(branches), -1)[number]
        found = plan.image_index[plan.joint_index[target_rows]]
        assert torch.equal(found, torch.arange(first_target, first_target + volume(target)))
        assert torch.equal(in_image[-volume(target) :], plan.joint_index[target_rows])
    padded = stream_rows(plan, MAX_BRANCHES)
    assert len(padded) == sum(padding)
    assert plan.positions[padded].eq(0).all()
    assert plan.image_index[bare.image_tokens :].eq(0).all()


@pytest.mark.parametrize(("target", "references", "branches"), CASES)
def test_padding_moves_nothing_else(
    target: Grid, references: tuple[Grid, ...], branches: tuple[BranchShape, ...]
) -> None:
    bare = pack(target, references, branches)
    plan = pack(target, references, branches, image_tokens=bare.image_tokens + 3, text_tokens=bare.text_tokens + 2)
    assert torch.equal(plan.image_index[: bare.image_tokens], bare.image_index)
    assert torch.equal(plan.positions[: bare.image_tokens], bare.positions[: bare.image_tokens])
    assert torch.equal(plan.target_index, bare.target_index)
    assert torch.equal(plan.offsets[:-1], bare.offsets[:-1])
    assert plan.offsets[-1] == bare.offsets[-1] + 5


def test_boundaries_belong_to_one_branch_and_latents_to_all() -> None:
    plan = pack(TARGET, REFERENCES, THREE)
    used = [
        set(plan.image_index[rows[rows < plan.image_tokens]].tolist())
        for rows in map(lambda b: stream_rows(plan, b), range(3))
    ]
    first = 1 + sum(map(volume, REFERENCES))
    boundary = [{row for row in rows if first <= row < first + boundary_rows(THREE)} for rows in used]
    assert [sorted(rows) for rows in boundary] == [[13, 14, 15, 16], [17, 18, 19, 20], [21, 22]]
    second_reference = set(range(1 + volume(REFERENCES[0]), first))
    assert second_reference <= used[0] & used[1] & used[2]
    assert not set(range(1, 1 + volume(REFERENCES[0]))) & used[2]
    assert set.union(*used) == set(range(1, first + boundary_rows(THREE) + volume(TARGET)))


def test_a_branch_with_fewer_references_starts_its_time_again() -> None:
    plan = pack(TARGET, REFERENCES, THREE)
    rows = stream_rows(plan, 2)
    times = plan.positions[rows[rows < plan.image_tokens], 0].tolist()
    assert times == [0, 1, 1, 2, 2, 3, 3, 4, *[5] * 15, *[6] * 15]


def test_grid_positions() -> None:
    assert grid_positions((2, 1, 2), 4).tolist() == [[4, 0, 0], [4, 0, 1], [5, 0, 0], [5, 0, 1]]
    assert grid_positions((1, 1, 1), 0).dtype == torch.int32


def test_large_grids() -> None:
    # A clip of 89 frames of 480x848 with a reference clip as long, three branches: 210,000 rows.
    grid = (23, 30, 53)
    plan = pack(grid, [grid], [BranchShape((0,), 1500)] * 2 + [BranchShape((), 300)], image_tokens=190_000)
    assert plan.image_tokens == 190_000
    assert int(plan.offsets[3]) == 5 * volume(grid) + 4 + 3300
    assert plan.positions.amax(0).tolist() == [47, 29, 52]
    assert torch.equal(plan.joint_index[plan.stream_index], torch.arange(len(plan.joint_index)))
    assert plan.positions[stream_rows(plan, 2)[:1]].tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ({"image_tokens": 129}, "130 rows of image, its bucket has room for 129"),
        ({"text_tokens": 1}, "23 rows of text"),
    ],
)
def test_a_bucket_that_is_too_short_is_refused(lengths: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pack(TARGET, REFERENCES, THREE, **lengths)


def test_dtypes() -> None:
    plan = pack(TARGET, REFERENCES, THREE)
    indices = (plan.image_index, plan.joint_index, plan.stream_index, plan.text_branch, plan.target_index)
    assert {x.dtype for x in indices} == {torch.int64}
    assert {x.dtype for x in (plan.offsets, plan.text_offsets, plan.positions)} == {torch.int32}
    assert plan.offsets.shape == plan.text_offsets.shape == (MAX_BRANCHES + 2,)


def test_branches_are_grouped_up_to_a_number_of_rows() -> None:
    references = [(1, 2, 2)]
    with_reference, without = BranchShape((0,), 3), BranchShape((), 3)  # 4 + 3 + 4 + 2 rows, and 4 + 3
    branches = (with_reference, with_reference, without)
    target = (1, 2, 2)
    assert group(target, references, branches, None) == (branches,)
    assert group(target, references, branches, 33) == (branches,)
    assert group(target, references, branches, 32) == (branches[:2], branches[2:])
    assert group(target, references, branches, 25) == (branches[:1], branches[1:])
    assert group(target, references, branches, 1) == tuple((branch,) for branch in branches)
