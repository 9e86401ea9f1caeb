"""The check in front of every engine: nothing but the named, typed, shaped, contiguous tensors gets through."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from vino_rt.backends.base import Engine, EngineSpec, TensorSpec
from vino_rt.errors import EngineError

SPEC = EngineSpec(
    "mix",
    (TensorSpec("rows", ("L", 6)), TensorSpec("turn", ("L", 3)), TensorSpec("index", ("N",), "int64")),
    (TensorSpec("out", ("N", 6)),),
)


class Recorder(Engine):
    """Counts what gets past the check."""

    def __init__(self) -> None:
        super().__init__(SPEC)
        self.runs = 0

    def _run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        assert list(inputs) == [spec.name for spec in SPEC.inputs]
        self.runs += 1
        return (inputs["rows"].index_select(0, inputs["index"]),)


def good(rows: int = 5, picked: int = 2) -> dict[str, Tensor]:
    index = torch.arange(picked, dtype=torch.int64)
    return {"rows": torch.randn(rows, 6), "turn": torch.randn(rows, 3), "index": index}


@pytest.mark.parametrize(("rows", "picked"), [(5, 2), (1, 1), (0, 0), (7, 0)])
def test_sizes_come_back_by_name(rows: int, picked: int) -> None:
    assert SPEC.check(good(rows, picked)) == {"L": rows, "N": picked}


def test_runs_what_fits() -> None:
    engine, given = Recorder(), good()
    (out,) = engine.run(**given)
    assert torch.equal(out, given["rows"][:2])
    engine.close()
    assert engine.runs == 1


def test_the_order_of_named_tensors_is_the_engine_s_concern() -> None:
    engine, given = Recorder(), good()
    (out,) = engine.run(**dict(reversed(given.items())))
    assert torch.equal(out, given["rows"][:2])
    assert engine.runs == 1


def without(name: str) -> dict[str, Tensor]:
    return {key: value for key, value in good().items() if key != name}


REFUSED: dict[str, tuple[Callable[[], dict[str, Tensor]], str]] = {
    "missing": (lambda: without("turn"), "given tensors rows, index; expected rows, turn, index"),
    "unknown": (lambda: good() | {"mask": torch.ones(5)}, "given tensors rows, turn, index, mask; expected"),
    "renamed": (lambda: without("turn") | {"turns": torch.randn(5, 3)}, "given tensors rows, index, turns;"),
    "dtype": (lambda: good() | {"rows": torch.randn(5, 6).double()}, "'rows' is torch.float64, expected float32"),
    "half": (lambda: good() | {"turn": torch.randn(5, 3).bfloat16()}, "'turn' is torch.bfloat16, expected float32"),
    "int32": (lambda: good() | {"index": torch.arange(2, dtype=torch.int32)}, "'index' is torch.int32, expected int64"),
    "rank": (lambda: good() | {"rows": torch.randn(1, 5, 6)}, r"'rows' has shape \(1, 5, 6\), expected \('L', 6\)"),
    "scalar": (lambda: good() | {"index": torch.tensor(1)}, r"'index' has shape \(\), expected \('N',\)"),
    "fixed": (lambda: good() | {"rows": torch.randn(5, 7)}, r"'rows' has shape \(5, 7\); 6 is 6 in this call"),
    "one": (lambda: good() | {"rows": torch.randn(5, 1)}, r"'rows' has shape \(5, 1\)"),
    "dynamic": (lambda: good() | {"turn": torch.randn(4, 3)}, r"'turn' has shape \(4, 3\); L is 5 in this call"),
    "empty": (lambda: good() | {"turn": torch.randn(0, 3)}, r"'turn' has shape \(0, 3\); L is 5"),
    "transposed": (lambda: good() | {"rows": torch.randn(6, 5).t()}, r"'rows' is not contiguous \(strides \(1, 5\)\)"),
    "strided": (lambda: good() | {"rows": torch.randn(10, 6)[::2]}, r"'rows' is not contiguous.*\.contiguous\(\)"),
    "expanded": (lambda: good() | {"turn": torch.randn(1, 3).expand(5, 3)}, "'turn' is not contiguous"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_before_it_runs(make: Callable[[], dict[str, Tensor]], message: str) -> None:
    engine = Recorder()
    with pytest.raises(EngineError, match=f"^mix: .*{message}"):
        engine.run(**make())
    assert engine.runs == 0


def test_a_view_at_an_offset_is_contiguous() -> None:
    assert SPEC.check(good() | {"rows": torch.randn(9, 6)[4:]}) == {"L": 5, "N": 2}
