"""Deliberate mistakes are far outside the limits that the right code is far inside of.

Each test makes the smallest wrong change and asks the same measure as the golden cases for at least ten times the
limit; that the measure is fine without the change is what test_golden shows.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vino_rt.step
import vino_rt.tiling
from tests.parity import files, mmdit, pipeline, vae
from tests.parity.case import Case
from tests.parity.measure import MMDIT, PIPELINE, VAE, Judge, Line, distance
from vino_rt.backends.base import Engine
from vino_rt.backends.recipe import load_recipe
from vino_rt.backends.store import Store
from vino_rt.conditioning import Conditioning
from vino_rt.engines import open_engines
from vino_rt.model_dir import ModelDir
from vino_rt.plan import BranchShape, Plan, pack, volume
from vino_rt.schedule import guide

GOLDEN = Path(__file__).parents[1] / "golden" / "vino"
FAR = 10
Opened = tuple[Case, ModelDir, Mapping[str, list[Engine]]]
Change = Callable[[Plan], Plan]


def measured(name: str, judge: Callable[[Case, Judge], None], output: str) -> float:
    """Deviation that the judge of a case finds in one output."""
    case, lines = Case(GOLDEN / name), list[Line]()
    judge(case, Judge(name, case.outputs, lines.append))
    (found,) = (line.max_abs for line in lines if line.output == output)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def dual() -> Iterator[Opened]:
    """The golden pipeline with three branches, opened."""
    case = Case(GOLDEN / "pipeline_ti2i_dualcfg")
    with case.model() as model:
        yield case, model, open_engines(model, load_recipe("eager"), Store(model.path.parent / "store"), None)


def pipeline_gap(opened: Opened, output: str) -> float:
    case, model, engines = opened
    return distance(pipeline.run(pipeline.recorded(case, model), engines)[output][None], case.outputs[output])


def changed_pack(change: Change) -> Callable[..., Plan]:
    def wrong(*args: Any, **kwargs: Any) -> Plan:
        return change(pack(*args, **kwargs))

    return wrong


def late_target(plan: Plan) -> Plan:
    """The target one step of time too late."""
    positions = plan.positions.clone()
    end = 0
    for shape in plan.branches:
        end += sum(volume(plan.references[r]) + 2 for r in shape.references) + volume(plan.target)
        positions[end - volume(plan.target) : end, 0] += 1
    return dataclasses.replace(plan, positions=positions)


def swapped_boundaries(plan: Plan) -> Plan:
    """Start and end row of every reference exchanged."""
    first = 1 + sum(volume(grid) for grid in plan.references)
    count = 2 * sum(len(shape.references) for shape in plan.branches)
    index = plan.image_index.clone()
    boundary = (index >= first) & (index < first + count)
    index[boundary] = first + ((index[boundary] - first) ^ 1)
    return dataclasses.replace(plan, image_index=index)


def turned_text(plan: Plan) -> Plan:
    """Text rows rotated as if each stood one step of time after the last."""
    positions = plan.positions.clone()
    positions[plan.image_tokens :, 0] = torch.arange(plan.text_tokens, dtype=torch.int32)
    return dataclasses.replace(plan, positions=positions)


@pytest.mark.parametrize("name", ["mmdit_img1", "mmdit_imgvid"])
@pytest.mark.parametrize("change", [late_target, swapped_boundaries, turned_text])
def test_plan_of_one_forward(monkeypatch: pytest.MonkeyPatch, name: str, change: Change) -> None:
    assert measured(name, mmdit.judge, "velocity") <= MMDIT
    monkeypatch.setattr(mmdit, "pack", changed_pack(change))
    assert measured(name, mmdit.judge, "velocity") > FAR * MMDIT


def test_turned_text_without_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmdit, "pack", changed_pack(turned_text))
    assert measured("mmdit_t2i", mmdit.judge, "velocity") > FAR * MMDIT


@pytest.mark.parametrize("change", [late_target, swapped_boundaries, turned_text])
def test_plan_of_packed_branches(monkeypatch: pytest.MonkeyPatch, dual: Opened, change: Change) -> None:
    assert pipeline_gap(dual, "latents.3") <= PIPELINE
    monkeypatch.setattr(pipeline, "pack", changed_pack(change))
    assert pipeline_gap(dual, "latents.3") > FAR * PIPELINE


def test_negative_branches_exchanged(monkeypatch: pytest.MonkeyPatch, dual: Opened) -> None:
    case, model, engines = dual
    # At the case's own strengths, 5 and 3, both weigh -2 in the mix: the branches' own velocities tell them apart, and
    # so does the mix at any other strength.
    right = dataclasses.replace(pipeline.recorded(case, model), image_guidance=2.0)
    golden = pipeline.run(right, engines)["latents.3"]
    monkeypatch.setattr(pipeline, "branch_names", lambda _: ["pos", "negimg", "neg"])
    for output in ("velocity_neg.0", "velocity_negimg.0", "velocity_neg.3"):
        assert pipeline_gap(dual, output) > FAR * PIPELINE, output
    wrong = dataclasses.replace(pipeline.recorded(case, model), image_guidance=2.0)
    assert distance(pipeline.run(wrong, engines)["latents.3"], golden) > FAR * PIPELINE


def test_negative_branches_exchanged_on_the_way_from_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BRANCHES", {"pos": "prompt", "neg": "negative_no_images", "negimg": "negative"})
    case, lines = Case(GOLDEN / "pipeline_ti2i_dualcfg"), list[Line]()
    with case.model() as model:
        engines = open_engines(model, load_recipe("eager"), Store(model.path.parent / "store"), None)
        files.judge(case, Judge(case.name, case.outputs, lines.append), files.Parts(model, engines))
    off = {line.output for line in lines if not line.ok}
    assert {"files.branches", "files.neg.enc_vlm", "files.negimg.enc_vlm", "files.neg.positions"} <= off


def test_guidances_exchanged(monkeypatch: pytest.MonkeyPatch, dual: Opened) -> None:

    def wrong(velocity: Sequence[Tensor], guidance: float, image_guidance: float) -> Tensor:
        return guide(velocity, image_guidance, guidance)

    for module in (vino_rt.step, pipeline):
        monkeypatch.setattr(module, "guide", wrong)
    for output in ("velocity.0", "latents.0", "latents.3"):
        assert pipeline_gap(dual, output) > FAR * PIPELINE, output


def test_first_references_instead_of_the_last(dual: Opened) -> None:
    # No golden case with a base image is at hand: the right answer is ours, of a branch that shows one of two.
    case, model, engines = dual
    setup = pipeline.recorded(case, model)
    other = torch.randn(setup.references[0].shape, generator=torch.Generator().manual_seed(3))
    condition = setup.conditions[0]

    def velocity(shown: tuple[int, ...]) -> Tensor:
        conditions = [Conditioning(condition.text, condition.boundary, shown)]
        references = [other, setup.references[0]]
        plan = pack(setup.plan.target, setup.plan.references * 2, [BranchShape(shown, condition.text.shape[0])])
        one = dataclasses.replace(setup, plan=plan, references=references, conditions=conditions)
        return pipeline.steps(one, pipeline.bind(one, engines))["velocity_pos.0"]

    with torch.inference_mode():
        golden = case.outputs["velocity_pos.0"][0]
        assert distance(velocity((1,)), golden) <= PIPELINE
        assert distance(velocity((0,)), golden) > FAR * PIPELINE


@pytest.mark.parametrize(("name", "output"), [("vae_decode_f5", "sample"), ("vae_encode_f17", "mean")])
def test_blend_one_frame_short(monkeypatch: pytest.MonkeyPatch, name: str, output: str) -> None:
    right = vino_rt.tiling.blend

    def wrong(before: Tensor, after: Tensor, axis: int, extent: int) -> None:
        right(before, after, axis, extent - 1)

    assert measured(name, vae.judge, output) <= VAE
    monkeypatch.setattr(vino_rt.tiling, "blend", wrong)
    assert measured(name, vae.judge, output) > FAR * VAE
