"""`bench build` and `bench buckets`: what their rows say of times that are known, and that the latter runs."""

from pathlib import Path

import pytest

from bench import buckets, build


def test_a_build_that_grows_with_the_blocks_is_a_failure() -> None:
    for many, failures in ((14.0, 0), (16.0, 1)):
        found = build.outcome({"2 blocks": [(10.0, 1.0)] * 3, "60 blocks": [(many, 3.0)] * 3}, quick=False)
        (ratio,) = (m for m in found.measures if m.unit == "x")
        assert ratio.value == pytest.approx(many / 10)
        assert ratio.ceiling == build.LIMIT
        assert [m.value for m in found.measures if m.metric == "open"] == [1000.0, 3000.0]
        assert len(found.failures) == failures
    assert not build.outcome({"2 blocks": [(1.0, 1.0)], "60 blocks": [(9.0, 1.0)]}, quick=True).failures


def test_models_differ_in_their_blocks_alone(tmp_path: Path) -> None:
    few, many = (build.model_of(blocks, tmp_path / str(blocks)) for blocks in ((1, 1), (2, 3)))
    assert (many.transformer.num_layers, many.transformer.num_single_layers) == (2, 3)
    assert few.transformer.width == many.transformer.width
    assert few.vae == many.vae


def test_a_switch_is_binding_and_what_the_first_step_costs_more() -> None:
    visits = [buckets.Visit(0.010, 0.120, 0.100), buckets.Visit(0.012, 0.130, 0.100), buckets.Visit(0.011, 0.1, 0.1)]
    bind, step, switch = buckets.rows("here", visits)
    assert (bind.value, step.value, switch.value) == pytest.approx((11.0, 100.0, 30.0))
    assert switch.ceiling == buckets.LIMIT


@pytest.mark.slow
def test_four_sizes_take_turns() -> None:
    _, cases = buckets.scene(quick=True)
    assert len({case.plan().image_tokens for case in cases}) == len(cases) == 4
    found = buckets.run(quick=True).measures
    assert len(found) == 3 * len(cases) * len(buckets.BACKENDS)
    assert all(m.value > 0 for m in found if m.metric != "switch")
