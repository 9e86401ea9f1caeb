"""What TensorRT says when it refuses a call: told as it is, told as a shortage, and never blamed on another call."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.tensorrt.engines import WIDTH, make_plan, rows
from vino_rt.backends.tensorrt.context import SizedContext
from vino_rt.backends.tensorrt.library import made, make_logger, refusal
from vino_rt.backends.tensorrt.plan import Plan
from vino_rt.errors import EngineError, OutOfMemory

SHORTAGE = "IRuntime::deserializeCudaEngine: Error Code 2: OutOfMemory (Requested size was 9 bytes.)"


def sized(plan: Plan) -> SizedContext:
    return SizedContext(plan, {"x": (3, WIDTH)})


@pytest.mark.parametrize("what", ["context", "address", "run"])
@pytest.mark.parametrize(
    "said", [SHORTAGE, "Error Code 1: Cuda Runtime (out of memory)", "Cuda Driver (2)", "memory could not be allocated"]
)
def test_too_little_memory_is_told_as_such(what: str, said: str) -> None:
    plan, engine, device = make_plan()
    plan.logger = SimpleNamespace(said=lambda: said)
    engine.refused.add(what)
    with pytest.raises(OutOfMemory, match=r"twice: .*too little free memory.*leave out the largest \[\[bucket\]\]"):
        sized(plan).run({"x": rows(3, device)}, {})


def test_other_errors_are_no_shortage() -> None:
    for said in ("Error Code 2: Internal Error (Assertion failed)", "it did not say why"):
        assert type(refusal("a call", said, "try another")) is EngineError
        assert str(refusal("a call", said, "try another")) == f"a call: {said}; try another"


def test_what_finds_no_memory_is_made_again_without_pytorchs_unused_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    logger, events = real_logger(), list[str]()
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append("empty"))

    def maker(answers: list[Any], said: str) -> Callable[[], Any]:
        def make() -> Any:
            events.append("make")
            if (found := answers.pop(0)) is None:
                logger.log(SimpleNamespace(name="ERROR"), said)
            return found

        return make

    assert made(logger, "it", maker([None, "an engine"], SHORTAGE)) == "an engine"
    assert events == ["make", "empty", "make"]
    events.clear()
    with pytest.raises(OutOfMemory, match=r"it: the GPU has too little free memory \(IRuntime"):
        made(logger, "it", maker([None, None], SHORTAGE))
    assert events == ["make", "empty", "make"]
    events.clear()
    with pytest.raises(EngineError, match="it: another version; build again"):
        made(logger, "it", maker([None], "another version"), "build again")
    assert events == ["make"]


def real_logger() -> Any:
    """Of a library that has no more than the class of loggers."""

    class Logger:
        pass

    class Library:
        ILogger = Logger

    return make_logger(Library)


def test_all_plans_of_a_library_have_one_logger() -> None:
    """TensorRT keeps the first and ignores all others, which would then know nothing of an error."""

    class Library:
        ILogger = type("Logger", (), {})

    assert make_logger(Library) is make_logger(Library)
    assert make_logger(Library) is not real_logger()


def test_an_error_explains_no_later_failure() -> None:
    plan, _, _ = make_plan()
    logger = real_logger()
    plan.logger = logger
    logger.log(SimpleNamespace(name="ERROR"), "a tactic failed")
    plan.must(True, "this")
    with pytest.raises(EngineError, match="refused that: it did not say why"):
        plan.must(False, "that")
    logger.log(SimpleNamespace(name="INTERNAL_ERROR"), "the reason")
    with pytest.raises(EngineError, match="refused those: the reason"):
        plan.must(False, "those")


def test_no_room_for_the_block_it_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, _, device = make_plan()
    context, x = sized(plan), rows(3, device)

    def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        if dtype is torch.uint8:
            raise torch.OutOfMemoryError("tried to allocate")
        return torch.empty(shape, dtype=dtype)

    monkeypatch.setattr(device, "empty", empty)
    with pytest.raises(OutOfMemory, match=r"one block of 0.0 GiB; leave out the largest \[\[bucket\]\]"):
        context.run({"x": x}, {})
