"""The choice of an implementation: exact and nearest entries, the rule, its reasons, tables that are refused.

What the implementations compute, and that their claims hold, is in test_choice_bodies.py.
"""

import ast
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.policy.import_rules import imports
from tests.policy.source import ROOT, Source
from vino_kernels import choice
from vino_kernels.choice import OPERATIONS, Choice, Device, Needs, Shape, Table, choose, read_table, render, row_class

GPU = Device("cuda", "Some GPU", (9, 0), frozenset({"triton", "flash", "cudnn"}), (("torch", "2.13.0"),))
ATTENTION = Shape(torch.bfloat16, 35_000, 128, 24)
TIMES = {"vino": 400.0, "sdpa_cudnn": 300.5, "sdpa_flash": 500.0, "flex": 10.0}


def entry(**changes: object) -> dict[str, Any]:
    times = {name: {"median": t, "p10": t, "p90": t, "runs": 20} for name, t in TIMES.items()}
    found = {
        "operation": "boundary_attention", "gpu": GPU.name, "capability": "9.0", "dtype": "bfloat16", "heads": 24,
        "channels": 128, "rows": 32768, "segments": 1, "variant": "", "microseconds": times,
        "versions": {"torch": "2.13.0"}, "commit": "abc",
    }  # fmt: skip
    return {**found, **changes}


def table(*entries: dict[str, Any]) -> Table:
    return read_table(json.dumps({"format": 1, "entries": entries}), "test.json")


def chosen(measured: Table, shape: Shape = ATTENTION, device: Device = GPU, **needs: bool) -> Choice:
    return choose("boundary_attention", shape, device, Needs(**needs), measured)


@pytest.mark.parametrize(
    ("rows", "expected"), [(0, 0), (1, 1), (1600, 2048), (4800, 4096), (35_000, 32_768), (105_000, 131_072)]
)
def test_rows_have_a_class(rows: int, expected: int) -> None:
    assert row_class(rows) == expected


def test_the_fastest_of_the_own_class_is_taken_and_comparisons_are_not() -> None:
    found = chosen(table(entry(), entry(rows=2048)))
    assert found.implementation == "sdpa_cudnn"
    assert found.reason == (
        "measured on this GPU: sdpa_cudnn 300.5 us, vino 400.0 us, sdpa_flash 500.0 us at about 32,768 rows, 24 heads, "
        "1 segment, commit abc"
    )


def test_what_cannot_serve_is_passed_over() -> None:
    assert chosen(table(entry()), host_bounds=False).implementation == "vino"
    assert chosen(table(entry()), deterministic=True).implementation == "vino"
    assert chosen(table(entry()), capture=True).implementation == "sdpa_cudnn"
    without = replace(GPU, parts=frozenset({"flash", "cudnn"}))
    assert chosen(table(entry()), device=without, deterministic=True).implementation == "sdpa_flash"


def test_the_nearest_class_is_taken_and_named() -> None:
    near = entry(rows=16384, microseconds={"vino": entry()["microseconds"]["vino"]})
    found = chosen(table(near, entry(rows=2048)))
    assert found.implementation == "vino"
    assert found.reason.startswith(
        "bfloat16, 35,000 rows, 24 x 128 was not measured; nearest on this GPU: vino 400.0 us at about 16,384 rows"
    )


@pytest.mark.parametrize(
    "other",
    [{"gpu": "Another GPU"}, {"capability": "8.0"}, {"dtype": "float16"}, {"channels": 64}, {"variant": "isolated"}],
)
def test_other_gpus_dtypes_and_heads_say_nothing(other: dict[str, object]) -> None:
    found = chosen(table(entry(**other)))
    assert found.implementation == "vino"
    assert found.reason.startswith("not measured on this GPU: our kernel is taken because it serves all segments")


def test_the_rule_where_our_kernel_cannot_serve() -> None:
    assert chosen(Table(), device=replace(GPU, parts=frozenset())) == Choice(
        "torch",
        "not measured on this GPU: PyTorch's operations are taken because our kernel cannot serve: triton is not there",
    )
    old = replace(GPU, capability=(7, 5))
    assert "7.5 is below 8.0" in chosen(Table(), device=old).reason
    with pytest.raises(ValueError, match=r"no implementation .* triton is not there; torch: it needs the segment boun"):
        chosen(Table(), device=replace(GPU, parts=frozenset()), host_bounds=False)


def test_calls_with_gradients_are_not_judged_by_other_times() -> None:
    found = chosen(table(entry()), gradients=True)
    assert found.implementation == "vino"
    assert found.reason.startswith("times with gradients are not in the table: our kernel")


def test_the_kernel_for_hopper_is_taken_where_it_was_measured_faster_and_nowhere_else() -> None:
    times = {
        name: {"median": t, "p10": t, "p90": t, "runs": 20} for name, t in {"vino": 400.0, "vino_tma": 310.0}.items()
    }
    measured = table(entry(microseconds=times))
    assert chosen(measured).implementation == "vino_tma"
    assert chosen(measured, gradients=True).implementation == "vino"
    assert chosen(Table()).implementation == "vino"
    odd = replace(ATTENTION, channels=20)
    assert chosen(table(entry(channels=20, microseconds=times)), odd).implementation == "vino"
    ampere = replace(GPU, capability=(8, 0))
    assert chosen(table(entry(capability="8.0", microseconds=times)), device=ampere).implementation == "vino"


def test_flash_attention_that_reads_bounds_on_the_device_serves_where_the_host_knows_none() -> None:
    times = {
        name: {"median": t, "p10": t, "p90": t, "runs": 20}
        for name, t in {"vino": 400.0, "flash_varlen": 320.0, "sdpa_flash": 310.0}.items()
    }
    measured = table(entry(microseconds=times), entry(microseconds=times, variant="isolated"))
    assert chosen(measured).implementation == "sdpa_flash"
    assert chosen(measured, host_bounds=False, capture=True).implementation == "flash_varlen"
    assert chosen(measured, host_bounds=False, gradients=True).implementation == "vino"
    assert chosen(measured, replace(ATTENTION, variant="isolated"), host_bounds=False).implementation == "vino"
    assert chosen(Table(), host_bounds=False).implementation == "vino"


def test_another_version_is_told() -> None:
    assert "with torch 2.12.0 (here 2.13.0)" in chosen(table(entry(versions={"torch": "2.12.0"}))).reason


def test_a_cpu_has_pytorch() -> None:
    for operation in OPERATIONS:
        found = choose(operation, ATTENTION, Device.of(torch.device("cpu")))
        assert found == Choice("torch", "PyTorch's operations: no CUDA device")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_has_a_rule(operation: str) -> None:
    found = choose(operation, ATTENTION, GPU, table=Table())
    assert found.implementation == "vino"
    assert found.reason.startswith("not measured on this GPU: our kernel is taken because it ")


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no operation is called 'softmax'; there are boundary_attention"):
        choose("softmax", ATTENTION, GPU)


def test_the_same_arguments_give_the_same_object() -> None:
    measured = table(entry())
    assert chosen(measured) is chosen(measured)


TIME = {"median": 1.0, "p10": 1.0, "p90": 1.0, "runs": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "unknown fields ['colour']"),
        ({"operation": "softmax"}, "no operation is called 'softmax'"),
        ({"microseconds": {"sdpa_fastest": TIME}}, "no implementation called 'sdpa_fastest'"),
        ({"microseconds": {}}, "at least one implementation"),
        ({"microseconds": {"vino": {**TIME, "median": float("nan")}}}, "median is nan"),
        ({"microseconds": {"vino": {**TIME, "p90": float("inf")}}}, "p90 is inf"),
        ({"microseconds": {"vino": {**TIME, "median": -1.0}}}, "median is -1.0"),
        ({"microseconds": {"vino": {**TIME, "median": True}}}, "median is True"),
        ({"microseconds": {"vino": {**TIME, "median": 0}}}, "median is 0"),
        ({"microseconds": {"vino": {**TIME, "median": 2.0}}}, "lies outside 1.0 to 1.0"),
        ({"microseconds": {"vino": {**TIME, "runs": 1.5}}}, "runs is 1.5"),
        ({"microseconds": {"vino": {"median": 1.0}}}, "missing fields ['p10', 'p90', 'runs']"),
        ({"microseconds": {"vino": 1.0}}, "is float, expected an object"),
        ({"rows": 35_000}, "rows must be a power of two"),
        ({"rows": True}, "rows is True, expected int"),
        ({"segments": 0}, "at least 1"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"versions": {"torch": 2}}, "versions must be texts"),
        ({"commit": None}, "commit is None"),
    ],
)
def test_a_bad_table_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=r"test\.json: entry 1") as caught:
        table(entry(), entry(**{"rows": 2048, **changes}))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is list, expected an object"),
        ('{"format": 1}', r"missing fields \['entries'\]"),
        ('{"format": 2, "entries": []}', "format is 2; this version reads 1"),
        (json.dumps({"format": 1, "entries": [entry(), entry(commit="other")]}), "given twice"),
    ],
)
def test_what_is_no_table_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_table(text, "test.json")


def test_a_table_is_written_sorted_and_new_entries_replace_old_ones() -> None:
    old = table(entry(), entry(rows=2048), entry(operation="boundary_attention", gpu="Another GPU"))
    merged = old.merged(table(entry(commit="new")))
    assert [e.key for e in merged.entries] == sorted(e.key for e in old.entries)
    assert [e.commit for e in merged.entries] == ["abc", "abc", "new"]
    text = render(Table(merged.entries[::-1]))
    assert render(read_table(text, "again")) == text


def test_the_packaged_table_is_as_it_is_written() -> None:
    assert render(choice.packaged()) == choice.PATH.read_text(encoding="utf-8")


def test_nothing_is_timed() -> None:
    for path in Path(choice.__file__).parent.glob("*.py"):
        source = Source(path.name, path.read_text(encoding="utf-8"))
        assert not {item.top for item in imports(source)} & {"time", "timeit"}
        named = {node.attr for node in source.nodes() if isinstance(node, ast.Attribute)}
        assert not named & {"Event", "synchronize", "perf_counter", "autotune", "do_bench"}, path.name


def test_choosing_loads_no_kernel() -> None:
    program = "import sys, vino_kernels.choice; print({'triton', 'vino_kernels.choice.dispatch'} & {*sys.modules})"
    path = {"PYTHONPATH": str(ROOT / "kernels")}
    done = subprocess.run([sys.executable, "-c", program], env=path, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
