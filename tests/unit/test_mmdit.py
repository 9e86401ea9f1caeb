"""Packing is free: padding, neighbours and order change nothing that they must not; and the engines are the model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vino_rt.backends.eager import EagerBackend
from vino_rt.errors import InputError, ModelError
from vino_rt.models.vino.config import TransformerConfig
from vino_rt.models.vino.kinds import transformer_kinds
from vino_rt.models.vino.mmdit import MMDiT
from vino_rt.models.vino.patches import patch_grid, patchify, unpatchify
from vino_rt.models.vino.transformer import Transformer
from vino_rt.plan import BranchShape, Grid, Plan, boundary_rows, pack, volume
from vino_rt.schedule import make_schedule

CONFIG = TransformerConfig(
    in_channels=3, out_channels=3, num_attention_heads=3, attention_head_dim=16, num_layers=2, num_single_layers=2,
    num_refiner_layers=1, mlp_ratio=4.0, patch_size=2, patch_size_t=1, qk_norm="rms_norm", guidance_embeds=True,
    text_embed_dim=20, pooled_projection_dim=12, rope_theta=256.0, rope_axes_dim=(4, 6, 6), image_condition_type=None,
)  # fmt: skip
TARGET: Grid = (2, 3, 5)
REFERENCES: tuple[Grid, ...] = ((1, 3, 3), (2, 1, 5))
SHAPES = (BranchShape((0, 1), 7), BranchShape((0, 1), 13), BranchShape((1,), 5))
TIME = torch.tensor([832.5])
# Measured: at most 1.1e-6 between ways to pack, for velocities of about 1.
LIMIT = 1e-5


@dataclass(frozen=True, eq=False)
class Rows:
    """Everything a forward reads but the plan; boundary and text are per branch."""

    target: Tensor
    references: Tensor
    boundary: tuple[Tensor, ...]
    text: tuple[Tensor, ...]


def draw(target: Grid, references: Sequence[Grid], shapes: Sequence[BranchShape]) -> Rows:
    generator = torch.Generator().manual_seed(5)

    def rows(count: int, width: int) -> Tensor:
        return torch.randn(count, width, generator=generator)

    p, d, z = CONFIG.patch_values, CONFIG.width, CONFIG.text_embed_dim
    return Rows(
        rows(volume(target), p),
        rows(sum(map(volume, references)), p),
        tuple(rows(boundary_rows([shape]), d) for shape in shapes),
        tuple(rows(shape.text_tokens, z) for shape in shapes),
    )


@torch.no_grad()
def run(model: MMDiT, rows: Rows, plan: Plan) -> Tensor:
    boundary, text = torch.cat(rows.boundary), torch.cat(rows.text)
    out: Tensor = model(rows.target, rows.references, boundary, text, plan, TIME)
    return out


@pytest.fixture(scope="module")
def model() -> MMDiT:
    """Random weights as large as trained ones, or every block would be the identity."""
    torch.manual_seed(1)
    module = MMDiT(CONFIG).eval().requires_grad_(False)
    for name, parameter in module.named_parameters():
        scale = 0.3 if parameter.dim() == 1 else parameter.flatten(1).shape[1] ** -0.5
        offset = 1.0 if "norm" in name and name.endswith("weight") and parameter.dim() == 1 else 0.0
        parameter.copy_(torch.randn(parameter.shape) * scale + offset)
    return module


@pytest.fixture(scope="module")
def rows() -> Rows:
    return draw(TARGET, REFERENCES, SHAPES)


@pytest.fixture(scope="module")
def packed(model: MMDiT, rows: Rows) -> Tensor:
    out = run(model, rows, pack(TARGET, REFERENCES, SHAPES))
    assert out.shape == (3, volume(TARGET), CONFIG.patch_values)
    assert out.std() > 0.3
    return out


@pytest.mark.parametrize("padding", [(0, 1), (37, 0), (101, 53)])
def test_padding_to_a_bucket_changes_nothing(
    model: MMDiT, rows: Rows, packed: Tensor, padding: tuple[int, int]
) -> None:
    bare = pack(TARGET, REFERENCES, SHAPES)
    image, text = bare.image_tokens + padding[0], bare.text_tokens + padding[1]
    plan = pack(TARGET, REFERENCES, SHAPES, image_tokens=image, text_tokens=text)
    # What lies in the padding must not matter either, however large.
    filled = replace(rows, text=(*rows.text, torch.full((padding[1], CONFIG.text_embed_dim), 1e3)))
    torch.testing.assert_close(run(model, filled, plan), packed, rtol=0, atol=LIMIT)


def test_a_bucket_that_is_too_short_is_refused() -> None:
    needed = pack(TARGET, REFERENCES, SHAPES)
    for stream, length in (("image", needed.image_tokens), ("text", needed.text_tokens)):
        assert pack(TARGET, REFERENCES, SHAPES, **{f"{stream}_tokens": length}).offsets[-2] == needed.offsets[-1]
        with pytest.raises(InputError, match=f"{length} rows of {stream}, its bucket has room for {length - 1}"):
            pack(TARGET, REFERENCES, SHAPES, **{f"{stream}_tokens": length - 1})


@pytest.mark.parametrize("branch", [0, 1, 2])
def test_packed_branches_are_separate_passes(model: MMDiT, rows: Rows, packed: Tensor, branch: int) -> None:
    alone = replace(rows, boundary=rows.boundary[branch : branch + 1], text=rows.text[branch : branch + 1])
    out = run(model, alone, pack(TARGET, REFERENCES, SHAPES[branch : branch + 1]))
    torch.testing.assert_close(out[0], packed[branch], rtol=0, atol=LIMIT)


def test_references_a_branch_does_not_show_do_not_exist_for_it(model: MMDiT, rows: Rows, packed: Tensor) -> None:
    shown = replace(
        rows, references=rows.references[volume(REFERENCES[0]) :], boundary=rows.boundary[2:], text=rows.text[2:]
    )
    out = run(model, shown, pack(TARGET, REFERENCES[1:], [BranchShape((0,), SHAPES[2].text_tokens)]))
    torch.testing.assert_close(out[0], packed[2], rtol=0, atol=LIMIT)


def test_order_of_text_rows_is_nothing_to_the_target(model: MMDiT, rows: Rows, packed: Tensor) -> None:
    shuffled = replace(rows, text=tuple(text[torch.randperm(len(text))] for text in rows.text))
    assert not torch.equal(shuffled.text[1], rows.text[1])
    out = run(model, shuffled, pack(TARGET, REFERENCES, SHAPES))
    torch.testing.assert_close(out, packed, rtol=0, atol=LIMIT)


def test_order_of_references_is_not(model: MMDiT, rows: Rows, packed: Tensor) -> None:
    out = run(model, rows, pack(TARGET, REFERENCES, [BranchShape((1, 0), 7), *SHAPES[1:]]))
    assert (out[0] - packed[0]).abs().max() > 1000 * LIMIT
    assert torch.equal(out[1:], packed[1:])


@pytest.mark.parametrize("branch", [0, 1, 2])
@pytest.mark.parametrize("what", ["boundary", "text"])
def test_a_branch_sees_only_its_own(model: MMDiT, rows: Rows, packed: Tensor, branch: int, what: str) -> None:
    parts = list(getattr(rows, what))
    # Rolled, not shifted: the first norm would take a constant out again.
    parts[branch] = parts[branch].roll(1, -1)
    changed = replace(rows, text=tuple(parts)) if what == "text" else replace(rows, boundary=tuple(parts))
    out = run(model, changed, pack(TARGET, REFERENCES, SHAPES))
    for other in {0, 1, 2} - {branch}:
        assert torch.equal(out[other], packed[other])
    assert (out[branch] - packed[branch]).abs().max() > 100 * LIMIT


def test_a_reference_reaches_the_branches_that_show_it(model: MMDiT, rows: Rows, packed: Tensor) -> None:
    changed = rows.references.clone()
    changed[: volume(REFERENCES[0])] += 1
    out = run(model, replace(rows, references=changed), pack(TARGET, REFERENCES, SHAPES))
    assert torch.equal(out[2], packed[2])
    for branch in (0, 1):
        assert (out[branch] - packed[branch]).abs().max() > 100 * LIMIT


def test_large_grids(model: MMDiT) -> None:
    # 23 latent frames, the longest clip; sides near those of 848x480 one at a time keep the test short.
    for target in ((23, 1, 3), (1, 30, 2), (1, 1, 53)):
        references, shapes = [(21, 1, 2)], [BranchShape((0,), 31), BranchShape((), 3)]
        rows = draw(target, references, shapes)
        out = run(model, rows, pack(target, references, shapes))
        assert out.isfinite().all()
        single = replace(rows, boundary=rows.boundary[:1], text=rows.text[:1])
        torch.testing.assert_close(
            run(model, single, pack(target, references, shapes[:1]))[0], out[0], rtol=0, atol=LIMIT
        )


@pytest.mark.parametrize("padding", [0, 19])
def test_engines_are_the_model(model: MMDiT, rows: Rows, padding: int) -> None:
    bare, backend, state = pack(TARGET, REFERENCES, SHAPES), EagerBackend(), model.state_dict()
    plan = pack(
        TARGET, REFERENCES, SHAPES, image_tokens=bare.image_tokens + padding, text_tokens=bare.text_tokens + padding
    )
    engines = {}
    for name, kind in transformer_kinds(CONFIG).items():
        with torch.device("meta"):
            names = list(kind.build().state_dict())
        prefixes = [kind.prefix.format(layer=layer) for layer in range(kind.layers)]
        engines[name] = backend.open(kind, None, [{n: state[prefix + n] for n in names} for prefix in prefixes])
    schedule = make_schedule(4, 5.0)
    transformer = Transformer(CONFIG, engines)
    boundary, text = torch.cat(rows.boundary), torch.cat(rows.text)
    with torch.inference_mode():
        bound = transformer.bind(plan, rows.references, boundary, text, transformer.modulation(schedule))
        for step in (0, 2, 3):
            expected = model(rows.target, rows.references, boundary, text, bare, schedule.timesteps[step : step + 1])
            torch.testing.assert_close(bound.velocity(torch.tensor([step]), rows.target), expected, rtol=0, atol=LIMIT)


def test_patches_and_back() -> None:
    latents = torch.randn(3, 5, 6, 10)
    grid = patch_grid(CONFIG, 5, 6, 10)
    rows = patchify(latents, CONFIG)
    assert grid == (5, 3, 5)
    assert rows.shape == (volume(grid), CONFIG.patch_values)
    assert torch.equal(unpatchify(rows, grid, CONFIG), latents)
    assert torch.equal(rows[1], latents[:, 0, :2, 2:4].flatten())


def test_names_and_shapes_are_the_released_ones() -> None:
    keymap = Path(__file__).parents[1] / "golden" / "vino" / "keymap"
    config = TransformerConfig.from_json(json.loads((keymap / "configs.json").read_text())["transformer"])
    with torch.device("meta"):
        state = MMDiT(config).state_dict()
    released = json.loads((keymap / "transformer.json").read_text())
    assert len(state) == 1264
    assert {name: list(tensor.shape) for name, tensor in state.items()} == released


def test_another_transformer_is_refused() -> None:
    with pytest.raises(ModelError, match="add up"):
        replace(CONFIG, rope_axes_dim=(4, 6, 4))
    with pytest.raises(ModelError, match="image_condition_type"):
        replace(CONFIG, image_condition_type="token_replace")
