"""Packed training batches: the same rows, positions and answers as one plan for each sample."""

import pytest
import torch

from vino_rt.models.vino.config import TransformerConfig
from vino_rt.models.vino.mmdit import MMDiT
from vino_rt.models.vino.ops import boundary_attention
from vino_rt.plan import BranchShape, Plan, pack, volume
from vino_rt.train.pack import SampleShape, pack_samples

SHAPES = (
    SampleShape((1, 4, 4), (), 7),
    SampleShape((3, 2, 5), ((1, 2, 5), (3, 1, 2)), 11),
    SampleShape((1, 3, 1), ((1, 3, 1),), 1),
    SampleShape((2, 2, 2), (), 4),
    SampleShape((1, 1, 1), ((1, 1, 1), (1, 2, 2), (2, 1, 1)), 9),
    SampleShape((1, 4, 4), (), 7),
)
CONFIG = TransformerConfig(
    in_channels=2, out_channels=2, num_attention_heads=2, attention_head_dim=8, num_layers=1, num_single_layers=2,
    num_refiner_layers=1, mlp_ratio=2.0, patch_size=2, patch_size_t=1, qk_norm="rms_norm", guidance_embeds=True,
    text_embed_dim=6, pooled_projection_dim=4, rope_theta=256.0, rope_axes_dim=(4, 2, 2), image_condition_type=None,
)  # fmt: skip


def alone(shape: SampleShape) -> Plan:
    return pack(shape.target, shape.references, [BranchShape(tuple(range(len(shape.references))), shape.text_tokens)])


def values(shape: SampleShape, number: int) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(number)
    references = sum(map(volume, shape.references))
    sizes = (volume(shape.target), 8), (references, 8), (2 * len(shape.references), 16), (shape.text_tokens, 6)
    return tuple(torch.randn(size, generator=draw) for size in sizes)


def test_every_row_of_a_batch_is_that_of_its_sample() -> None:
    rows, plans = pack_samples(SHAPES), [alone(shape) for shape in SHAPES]
    starts = rows.offsets.tolist()
    for number, (shape, plan) in enumerate(zip(SHAPES, plans, strict=True)):
        joint = rows.joint_index[starts[number] : starts[number + 1]]
        assert len(joint) == shape.rows
        stream = torch.cat((rows.positions[: rows.image_tokens], rows.positions[rows.image_tokens :]))
        assert torch.equal(stream[joint], plan.positions[plan.joint_index])
    assert rows.text_lengths == tuple(shape.text_tokens for shape in SHAPES)
    assert torch.equal(rows.stream_index[rows.joint_index], torch.arange(len(rows.joint_index)))
    assert starts[-1] == starts[-2] == sum(shape.rows for shape in SHAPES)


def test_the_source_table_holds_references_then_boundaries_then_targets() -> None:
    rows = pack_samples(SHAPES)
    references = sum(volume(grid) for shape in SHAPES for grid in shape.references)
    boundaries = 2 * sum(len(shape.references) for shape in SHAPES)
    targets = sum(volume(shape.target) for shape in SHAPES)
    assert torch.equal(rows.image_index.sort().values, 1 + torch.arange(references + boundaries + targets))
    own = rows.image_index[rows.joint_index[rows.target_index]]
    assert torch.equal(own, 1 + references + boundaries + torch.arange(targets))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_with_own_times_equals_its_samples_one_by_one(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    model = MMDiT(CONFIG).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    given = [tuple(x.to(dtype) for x in values(shape, number)) for number, shape in enumerate(SHAPES)]
    times = torch.linspace(3.0, 990.0, len(SHAPES), dtype=dtype)
    with torch.no_grad():
        target, references, boundary, text = (torch.cat(part) for part in zip(*given, strict=True))
        together = model.velocity(target, references, boundary, text, pack_samples(SHAPES), times)
        single = [
            model(*own, alone(shape), times[number : number + 1])[0]
            for number, (own, shape) in enumerate(zip(given, SHAPES, strict=True))
        ]
    scale = float(torch.cat(single).abs().max())
    assert torch.allclose(together, torch.cat(single), rtol=0, atol=scale * (1e-5 if dtype == torch.float32 else 1e-12))


def test_one_time_for_all_equals_the_same_time_for_each() -> None:
    torch.manual_seed(4)
    model = MMDiT(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    given = zip(*(values(shape, number) for number, shape in enumerate(SHAPES)), strict=True)
    target, references, boundary, text = (torch.cat(part) for part in given)
    rows = pack_samples(SHAPES)
    with torch.no_grad():
        one = model.velocity(target, references, boundary, text, rows, torch.tensor([420.0]))
        each = model.velocity(target, references, boundary, text, rows, torch.full((len(SHAPES),), 420.0))
    assert torch.allclose(one, each, atol=1e-5)


def test_attention_over_many_segments_equals_one_call_each_with_gradients() -> None:
    torch.manual_seed(5)
    lengths = [3, 1, 8, 2, 5, 7]
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist(), 29], dtype=torch.int32)
    q, k, v = (torch.randn(29, 2, 4, requires_grad=True) for _ in range(3))
    out = boundary_attention(q, k, v, offsets)
    assert torch.equal(out[26:], torch.zeros(3, 2, 4))
    weight = torch.randn(29, 2, 4)
    torch.autograd.backward((out * weight).sum())
    together = [x.grad.clone() for x in (q, k, v) if x.grad is not None]
    for x in (q, k, v):
        x.grad = None
    parts, start = [], 0
    for length in lengths:
        cut = slice(start, start + length)
        parts.append(boundary_attention(q[cut], k[cut], v[cut], torch.tensor([0, length, length], dtype=torch.int32)))
        start += length
    torch.autograd.backward((torch.cat(parts) * weight[:26]).sum())
    assert torch.allclose(out[:26], torch.cat(parts), atol=1e-6)
    for mine, x in zip(together, (q, k, v), strict=True):
        assert x.grad is not None
        assert torch.allclose(mine, x.grad, atol=1e-5)
