"""The order of events of a run: what is set once, launched, recorded, replayed, and what ends in an error."""

import pytest
import torch

from tests.tensorrt.engines import KIND, WIDTH, make_plan, rows
from tests.tensorrt.small import FakeDevice
from vino_rt.backends.tensorrt import backend
from vino_rt.backends.tensorrt.backend import TensorRtEngine
from vino_rt.backends.tensorrt.context import SizedContext
from vino_rt.backends.tensorrt.plan import Plan, Scratch
from vino_rt.errors import EngineError, EngineMismatch, OutOfMemory

EXACT = {"x": (3, WIDTH)}


def sized(plan: Plan, count: int = 3, *, graph: bool = True, plain_allowed: bool = False) -> SizedContext:
    return SizedContext(plan, {"x": (count, WIDTH)}, {}, graph=graph, plain_allowed=plain_allowed)


def test_the_first_run_launches_then_records_and_the_next_replays() -> None:
    plan, engine, device = make_plan()
    context = sized(plan)
    device.events.clear()
    x = rows(3, device)
    (y,) = context.run({"x": x})
    assert torch.equal(y, 2 * x)
    one_launch = ["launch", "synchronise", "begin capture", "launch", "end capture"]
    assert device.events == ["after the caller", *one_launch, "before the caller"]
    device.events.clear()
    context.run({"x": rows(3, device)})
    assert device.events == ["after the caller", "replay", "before the caller"]
    assert len(engine.contexts) == 1


def test_a_replay_reads_and_writes_where_it_was_recorded() -> None:
    plan, engine, device = make_plan()
    context = sized(plan)
    context.run({"x": rows(3, device)})
    before = dict(engine.contexts[0].addresses)
    x = rows(3, device)
    (first,), (second,) = context.run({"x": x}), context.run({"x": x})
    assert engine.contexts[0].addresses == before
    assert torch.equal(plan.slot("x", (3, WIDTH), torch.float32), x)
    assert first.data_ptr() != second.data_ptr(), "outputs of two runs share memory"


def test_an_empty_tensor_has_an_address() -> None:
    plan, engine, _ = make_plan()
    context = sized(plan, 5, graph=False)
    context._point("x", torch.empty(0, WIDTH))
    assert engine.contexts[0].addresses["x"] == plan.scratch.block().data_ptr()


def test_sizes_from_a_range_are_launched_plainly() -> None:
    plan, engine, device = make_plan()
    context = sized(plan, 7)
    for _ in range(2):
        device.events.clear()
        x = rows(7, device)
        (y,) = context.run({"x": x})
        assert torch.equal(y, 2 * x)
        assert device.events == ["after the caller", "launch", "before the caller"]
    assert engine.contexts[0].profile == 1
    assert not plan.slots


def test_without_graphs_nothing_is_copied() -> None:
    plan, engine, device = make_plan()
    x = rows(3, device)
    (y,) = sized(plan, graph=False).run({"x": x})
    assert engine.contexts[0].addresses == {"x": x.data_ptr(), "y": y.data_ptr()}


def test_a_refused_recording_is_an_error_and_leaves_no_capture_open() -> None:
    plan, _, device = make_plan()
    device.refuses_to_record = True
    with pytest.raises(EngineError, match=r"twice: CUDA refused to record .*not permitted.*allow plain launches"):
        sized(plan).run({"x": rows(3, device)})
    assert device.events[-1] == "end capture"


def test_a_refused_recording_may_be_allowed() -> None:
    plan, _, device = make_plan()
    device.refuses_to_record = True
    context = sized(plan, plain_allowed=True)
    x = rows(3, device)
    assert torch.equal(context.run({"x": x})[0], 2 * x)
    device.events.clear()
    assert torch.equal(context.run({"x": x})[0], 2 * x)
    assert not context.graph
    assert device.events == ["after the caller", "launch", "before the caller"]


def test_plans_share_one_block_and_a_larger_one_is_recorded_anew() -> None:
    scratch = Scratch(FakeDevice())
    plan, engine, device = make_plan(scratch)
    context = sized(plan)
    context.run({"x": rows(3, device)})
    memory = engine.contexts[0].memory
    assert memory is not None
    assert memory[1] == max(engine.sizes)
    scratch.reserve(5000)
    device.events.clear()
    context.run({"x": rows(3, device)})
    assert device.events.count("launch") == 2
    assert "replay" not in device.events
    assert engine.contexts[0].memory == (scratch.block().data_ptr(), 5000)
    other, other_engine, other_device = make_plan(scratch)
    sized(other).run({"x": rows(3, other_device)})
    assert other_engine.contexts[0].memory == engine.contexts[0].memory


def test_the_smallest_profile_that_takes_the_inputs() -> None:
    plan, _, _ = make_plan()
    assert plan.profile_for(EXACT).index == 0
    assert plan.profile_for({"x": (9, WIDTH)}).index == 1
    with pytest.raises(EngineError, match=r"\(4, 4\).* fit no profile of the plan: .*\(5, 4\).*\[\[bucket\]\]"):
        plan.profile_for({"x": (4, WIDTH)})


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("profile", "refused profile 0: it is tired"),
        ("shape", r"refused shape \(3, 4\) of 'x'"),
        ("infer", "cannot tell the shapes of"),
        ("address", "refused the address of"),
        ("run", "refused to run: it is tired"),
    ],
)
def test_what_tensorrt_refuses(what: str, told: str) -> None:
    plan, engine, device = make_plan()
    engine.refused.add(what)
    with pytest.raises(EngineError, match=told):
        sized(plan, graph=False).run({"x": rows(3, device)})


def test_no_room_for_a_context() -> None:
    plan, engine, _ = make_plan()
    engine.refused.add("context")
    with pytest.raises(OutOfMemory, match="no execution context: it is tired"):
        sized(plan)


def test_a_part_of_a_tensor_has_no_address_for_tensorrt() -> None:
    plan, _, device = make_plan()
    part = rows(4, device)[1:]
    with pytest.raises(EngineError, match=r"tensor 'x' begins at .*multiple of 256.*clone"):
        sized(plan, graph=False).run({"x": part})
    engine = TensorRtEngine(plan, {}, graphs=False, plain_allowed=False)
    (y,) = engine.run(**engine.fit(x=part))
    assert torch.equal(y, 2 * part)


def test_an_engine_keeps_a_context_for_each_size() -> None:
    plan, made, device = make_plan()
    engine = TensorRtEngine(plan, {}, graphs=True, plain_allowed=False)
    for count in (3, 5, 3, 5):
        x = rows(count, device)
        assert torch.equal(engine.run(x=x)[0], 2 * x) or "replay" in device.events
    assert [context.shapes["x"][0] for context in made.contexts] == [3, 5]
    engine.close()
    assert not engine._contexts


def test_contexts_of_a_range_make_way_and_one_of_a_single_size_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller may have recorded it: then it is replayed, and not asked for."""
    monkeypatch.setattr(backend, "CONTEXTS", 2)
    plan, _, device = make_plan()
    engine = TensorRtEngine(plan, {}, graphs=False, plain_allowed=False)
    for count in (3, 5, 6, 7, 6, 8):
        engine.run(x=rows(count, device))
    assert [shape[0] for (shape,) in engine._contexts] == [3, 6, 8]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"dtypes": {"x": "HALF", "y": "FLOAT"}},
            r"tensor 'x' of the plan is torch.float16, the model's is torch.float32",
        ),
        (
            {"shapes": {"x": (-1, 8), "y": (-1, WIDTH)}},
            r"tensor 'x' of the plan has shape \(-1, 8\), the model's \(-1, 4\)",
        ),
        ({"place": "host"}, "read on the host"),
        ({"num_io_tensors": 1}, r"the plan differs in tensors \['y'\]"),
    ],
)
def test_a_plan_of_other_tensors(change: dict[str, object], told: str) -> None:
    plan, engine, _ = make_plan()
    vars(engine).update(change)
    with pytest.raises(EngineMismatch, match=told):
        TensorRtEngine(plan, {}, graphs=True, plain_allowed=False)


def test_inputs_are_checked_before_anything_else() -> None:
    plan, made, _ = make_plan()
    engine = TensorRtEngine(plan, {}, graphs=True, plain_allowed=False)
    with pytest.raises(EngineError, match="expected float32"):
        engine.run(x=torch.zeros(3, WIDTH, dtype=torch.float64))
    assert not made.contexts
    assert engine.spec is KIND.spec
