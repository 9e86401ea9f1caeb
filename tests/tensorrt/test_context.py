"""The order of events of a run: what is set once, bound before each launch, shared by layers, and what is an error."""

import weakref

import pytest
import torch

from tests.tensorrt.engines import KIND, LIBRARY, WIDTH, make_plan, rows
from tests.tensorrt.small import FakeDevice
from vino_rt.backends.tensorrt.backend import TensorRtBackend, TensorRtEngine
from vino_rt.backends.tensorrt.context import Contexts, SizedContext
from vino_rt.backends.tensorrt.plan import Plan, Scratch
from vino_rt.errors import EngineError, EngineMismatch

EXACT = {"x": (3, WIDTH)}
ONE_RUN = ["after the caller", "launch", "before the caller"]


def sized(plan: Plan, count: int = 3) -> SizedContext:
    return SizedContext(plan, {"x": (count, WIDTH)})


@pytest.mark.parametrize("count", [3, 7])
def test_a_context_is_set_up_once_and_then_only_launches(count: int) -> None:
    """Nothing but addresses and a launch: a caller records the second run in a graph, which allows no more."""
    plan, engine, device = make_plan()
    engine_of_layer = TensorRtEngine(Contexts(plan), {})
    for number in range(3):
        device.events.clear()
        x = rows(count, device)
        (y,) = engine_of_layer.run(x=x)
        assert torch.equal(y, 2 * x)
        assert device.events == ([] if number else ["synchronise"]) + ONE_RUN
        assert engine.contexts[0].addresses == {"x": x.data_ptr(), "y": y.data_ptr()}
    assert len(engine.contexts) == 1
    assert engine.contexts[0].profile == (0 if count == 3 else 1)


def test_after_the_first_run_a_context_is_told_addresses_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, engine, device = make_plan()
    context = sized(plan)
    context.run({"x": rows(3, device)}, {})

    def refuse(*_: object) -> None:
        raise AssertionError("not while a graph is recorded")

    for name in ("set_optimization_profile_async", "set_input_shape", "infer_shapes", "set_device_memory"):
        monkeypatch.setattr(engine.contexts[0], name, refuse)
    x = rows(3, device)
    assert torch.equal(context.run({"x": x}, {})[0], 2 * x)


def test_outputs_of_two_runs_do_not_share_memory() -> None:
    plan, _, device = make_plan()
    context, x = sized(plan), rows(3, device)
    (first,), (second,) = context.run({"x": x}, {}), context.run({"x": x}, {})
    assert first.data_ptr() != second.data_ptr()


def test_layers_share_a_context_and_bind_their_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, made_engine, device = make_plan()
    monkeypatch.setattr(plan, "check_tensors", lambda weights: None)
    contexts = Contexts(plan)
    weights = [{"w": rows(3, device)} for _ in range(3)]
    layers = [TensorRtEngine(contexts, layer) for layer in weights]
    seen = []
    for layer in (*layers, *layers):
        layer.run(x=rows(3, device))
        seen.append(made_engine.contexts[0].addresses["w"])
    assert seen == 2 * [layer["w"].data_ptr() for layer in weights]
    assert len(made_engine.contexts) == 1


def test_contexts_go_with_the_last_layer() -> None:
    plan, _, device = make_plan()
    contexts = Contexts(plan)
    first, second = (TensorRtEngine(contexts, {}) for _ in range(2))
    first.run(x=rows(3, device))
    first.close()
    first.close()
    assert len(contexts) == 1, "the other layer may have recorded launches in it"
    device.events.clear()
    second.close()
    assert len(contexts) == 0
    assert device.events == ["synchronise"]


def test_an_empty_tensor_has_an_address() -> None:
    plan, engine, device = make_plan()
    sized(plan, 5).run({"x": rows(5, device)}, {"w": torch.empty(0, WIDTH)})
    assert engine.contexts[0].addresses["w"] == plan.scratch.block().data_ptr()


def test_plans_share_one_block_and_keep_the_one_they_outgrow() -> None:
    """Launches that a caller recorded go on computing in it."""
    scratch = Scratch(FakeDevice())
    plan, engine, device = make_plan(scratch)
    context = sized(plan)
    context.run({"x": rows(3, device)}, {})
    first, outgrown = engine.contexts[0].memory, weakref.ref(scratch.block())
    assert first is not None
    assert first[1] == max(engine.sizes)
    scratch.reserve(5000)
    context.run({"x": rows(3, device)}, {})
    assert engine.contexts[0].memory == (scratch.block().data_ptr(), 5000)
    kept = outgrown()
    assert kept is not None, "a recorded launch would write to freed memory"
    assert kept.data_ptr() == first[0]
    other, other_engine, other_device = make_plan(scratch)
    sized(other).run({"x": rows(3, other_device)}, {})
    assert other_engine.contexts[0].memory == engine.contexts[0].memory


def test_backends_of_a_runtime_compute_in_one_block() -> None:
    one, other = TensorRtBackend(cuda=FakeDevice()), TensorRtBackend(cuda=FakeDevice())
    assert one.room.open()[1] is one.room.open()[1]
    assert one.room.open()[1] is not other.room.open()[1], "two runtimes may run at once"
    other.share(one)
    assert one.room.open() == other.room.open()


def test_the_smallest_profile_that_takes_the_inputs() -> None:
    plan, _, _ = make_plan()
    assert plan.profile_for(EXACT).index == 0
    assert plan.profile_for({"x": (9, WIDTH)}).index == 1
    with pytest.raises(EngineError, match=r"\(4, 4\).* fit no profile of the plan: .*\(5, 4\).*\[\[bucket\]\]"):
        plan.profile_for({"x": (4, WIDTH)})


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("context", "made no execution context: it is tired"),
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
        sized(plan).run({"x": rows(3, device)}, {})


@pytest.mark.parametrize("rows_before", [1, 2, 5])
def test_a_slice_of_a_table_is_copied_to_where_tensorrt_takes_it(rows_before: int) -> None:
    """As the modulation of an odd block of the bundled model is: 3 * 192 bfloat16 are no multiple of 256 bytes."""
    plan, made_engine, device = make_plan()
    part = rows(rows_before + 3, device)[rows_before:]
    assert part.data_ptr() % 256
    (y,) = TensorRtEngine(Contexts(plan), {}).run(x=part)
    assert torch.equal(y, 2 * part)
    assert made_engine.contexts[0].addresses["x"] % 256 == 0


def test_memory_at_an_address_that_tensorrt_does_not_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, _, device = make_plan()
    context = sized(plan)
    monkeypatch.setattr(device, "empty", lambda shape, dtype: rows(4, FakeDevice())[1:])
    with pytest.raises(EngineError, match=r"its memory begins at .*multiple of 256"):
        context.run({"x": rows(3, FakeDevice())}, {})


def test_an_engine_keeps_a_context_for_each_size() -> None:
    plan, engine, device = make_plan()
    layer = TensorRtEngine(Contexts(plan), {})
    for count in (3, 5, 3, 5):
        x = rows(count, device)
        assert torch.equal(layer.run(x=x)[0], 2 * x)
    assert [context.shapes["x"][0] for context in engine.contexts] == [3, 5]


def test_contexts_of_a_range_make_way_and_one_of_a_single_size_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller may have recorded it: then it is replayed, and not asked for."""
    monkeypatch.setattr("vino_rt.backends.tensorrt.context.CONTEXTS", 2)
    plan, engine, device = make_plan()
    contexts = Contexts(plan)
    layer = TensorRtEngine(contexts, {})
    for count in (3, 5, 6, 7, 6, 8):
        layer.run(x=rows(count, device))
    assert len(contexts) == 3
    made = len(engine.contexts)
    for count in (3, 6, 8):
        layer.run(x=rows(count, device))
    assert len(engine.contexts) == made, "one of these sizes had made way"


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
        TensorRtEngine(Contexts(plan), {})


def test_inputs_are_checked_before_anything_else() -> None:
    plan, made_engine, _ = make_plan()
    engine = TensorRtEngine(Contexts(plan), {})
    with pytest.raises(EngineError, match="expected float32"):
        engine.run(x=torch.zeros(3, WIDTH, dtype=torch.float64))
    assert not made_engine.contexts
    assert engine.spec is KIND.spec
    assert plan.library is LIBRARY
