"""The loader against a stand-in for the driver: what it calls, what it packs, what it refuses."""

import dataclasses
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.ahead_driver import GPU, CUfunction_attribute, StandIn, placed
from tests.kernels.ahead_folders import cubin_of, stand_in, write_folder
from tests.policy.source import ROOT
from vino_kernels.ahead.declare import variants
from vino_kernels.ahead.driver import CudaError
from vino_kernels.ahead.loader import Library
from vino_kernels.ahead.shapes import MINI
from vino_kernels.ahead.variant import Argument, Variant

ALL = variants([MINI], 90)
GATED = next(variant for variant in ALL if variant.operation == "gated_residual")
ATTENTION = next(variant for variant in ALL if variant.operation == "boundary_attention")
NUMBERS = Variant(
    arch=90,
    name="numbers",
    operation="none",
    kernel="none",
    arguments=(Argument("a", "i64", aligned=True), Argument("x", "*fp32", shape=("n",)), Argument("f", "fp32")),
    constants={},
    grid=("n",),
    warps=1,
)
WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
from pathlib import Path
import torch
from tests.kernels.ahead_driver import GPU, StandIn, placed
from vino_kernels.ahead.loader import Library
driver = StandIn({"gated_residual-bf16-192": 7})
x = placed(torch.zeros(5, 192, dtype=torch.bfloat16))
with Library.open(Path(sys.argv[1]), GPU, driver) as library:
    library.launch("gated_residual-bf16-192", stream=0, x_ptr=x, gate_ptr=x[0], y_ptr=x, out_ptr=x)
assert len(driver.launches) == 1
"""
LOADED = ["cuCtxPushCurrent", "cuModuleLoadData", "cuModuleGetFunction", "cuCtxPopCurrent"]


def gated_tensors(rows: int = 5) -> dict[str, Any]:
    x, y, out = (placed(torch.zeros(rows, 192, dtype=torch.bfloat16)) for _ in range(3))
    return {"x_ptr": x, "gate_ptr": placed(torch.zeros(192, dtype=torch.bfloat16)), "y_ptr": y, "out_ptr": out}


def opened(folder: Path, *wanted: Variant, shared: int = 0) -> tuple[Library, StandIn]:
    driver = stand_in(wanted)
    return Library.open(write_folder(folder, wanted, shared), GPU, driver), driver


def test_calls_of_a_life(tmp_path: Path) -> None:
    library, driver = opened(tmp_path, GATED)
    start = ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuDeviceGetAttribute", "cuDeviceGetAttribute"]
    assert driver.names == [*start, *LOADED]
    assert ("cuModuleLoadData", (cubin_of(GATED),)) in driver.calls
    assert library.names == (GATED.name,)
    driver.calls.clear()
    with library:
        library.launch(GATED.name, stream=7, **gated_tensors())
        assert driver.names == ["cuCtxPushCurrent", "cuLaunchKernel", "cuCtxPopCurrent"]
        driver.calls.clear()
    assert driver.names == ["cuCtxPushCurrent", "cuModuleUnload", "cuCtxPopCurrent", "cuDevicePrimaryCtxRelease"]
    assert driver.stack == []
    library.close()
    assert driver.names[-1] == "cuDevicePrimaryCtxRelease"
    assert len(driver.names) == 4, "a second close does nothing"
    with pytest.raises(RuntimeError, match="was closed"):
        library.launch(GATED.name, stream=7, **gated_tensors())


def test_what_a_launch_packs(tmp_path: Path) -> None:
    library, driver = opened(tmp_path, GATED, shared=1536)
    tensors = gated_tensors(rows=37)
    library.launch(GATED.name, stream=7, **tensors)
    pointers = [tensors[name].data_ptr() for name in ("x_ptr", "gate_ptr", "y_ptr", "out_ptr")]
    (launch,) = driver.launches
    assert launch.packed[:4] == tuple(struct.pack("<Q", pointer) for pointer in pointers)
    assert launch.packed[4] == struct.pack("<ii", 37, 0)
    assert launch.packed[5:] == (bytes(8), bytes(8)), "Triton's two scratch pointers are null"
    assert launch.grid == (5, 1, 1), "tiles of 8 rows and 256 columns"
    assert (launch.block, launch.shared, launch.stream) == ((128, 1, 1), 1536, 7)


def test_numbers_of_every_type(tmp_path: Path) -> None:
    library, driver = opened(tmp_path, NUMBERS)
    library.launch("numbers", stream=0, a=-(2**40), x=placed(torch.zeros(3)), f=0.5)
    packed = driver.launches[0].packed
    assert (packed[0], packed[2]) == (struct.pack("<q", -(2**40)), struct.pack("<fi", 0.5, 0))


@pytest.mark.parametrize(("shared", "asked"), [(48 * 1024, []), (48 * 1024 + 16, [48 * 1024 + 16])])
def test_shared_memory_above_48_kib_is_asked_for(tmp_path: Path, shared: int, asked: list[int]) -> None:
    _, driver = opened(tmp_path, GATED, shared=shared)
    most = CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    found = [arguments for name, arguments in driver.calls if name == "cuFuncSetAttribute"]
    assert found == [(GATED.name, most, value) for value in asked]


def test_a_launch_needs_no_triton(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TRITON, str(write_folder(tmp_path, [GATED]))]
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    done = subprocess.run(command, env=path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_empty_grid_is_not_launched(tmp_path: Path) -> None:
    library, driver = opened(tmp_path, GATED)
    library.launch(GATED.name, stream=0, **gated_tensors(rows=0))
    assert driver.launches == []


def wrong(name: str) -> tuple[dict[str, Any], type[Exception], str]:
    """A launch of `GATED` that must be refused: what to change, the error, its words."""
    bf16 = torch.bfloat16
    cases: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
        "dtype": ({"x_ptr": placed(torch.zeros(5, 192))}, TypeError, r"x_ptr is torch\.float32, must be.*bfloat16"),
        "device": ({"x_ptr": torch.zeros(5, 192, dtype=bf16)}, ValueError, "x_ptr lies on cpu, must lie on cuda:0"),
        "missing": ({"x_ptr": None}, TypeError, "x_ptr is NoneType"),
        "unknown": ({"z": 3}, TypeError, "has no argument z; it has"),
        "width": ({"gate_ptr": placed(torch.zeros(191, dtype=bf16))}, ValueError, r"gate_ptr has shape \(191,\), must"),
        "rows": ({"y_ptr": placed(torch.zeros(4, 192, dtype=bf16))}, ValueError, r"\[rows, 192\]; 4 is not 5"),
        "dimensions": ({"x_ptr": placed(torch.zeros(5, 1, 192, dtype=bf16))}, ValueError, r"must be \[rows, 192\]"),
        "number": ({"rows": 6}, ValueError, "5 is not 6"),
        "float": ({"rows": 5.0}, TypeError, "rows is 5.0, must be an integer"),
        "layout": ({"y_ptr": placed(torch.zeros(192, 5, dtype=bf16).T)}, ValueError, "y_ptr is not contiguous"),
        "address": ({"x_ptr": placed(torch.zeros(961, dtype=bf16)[1:].view(5, 192))}, ValueError, "multiple of 16"),
    }
    return cases[name]


@pytest.mark.parametrize(
    "name",
    ["dtype", "device", "missing", "unknown", "width", "rows", "dimensions", "number", "float", "layout", "address"],
)
def test_arguments_that_do_not_fit(tmp_path: Path, name: str) -> None:
    library, driver = opened(tmp_path, GATED)
    changes, error, words = wrong(name)
    with pytest.raises(error, match=words):
        library.launch(GATED.name, stream=0, **{**gated_tensors(), **changes})
    assert driver.launches == []
    assert driver.stack == []


def test_numbers_that_do_not_fit(tmp_path: Path) -> None:
    library, _ = opened(tmp_path, NUMBERS)
    x = placed(torch.zeros(3))
    with pytest.raises(ValueError, match="a is 8, must be a multiple of 16"):
        library.launch("numbers", stream=0, a=8, x=x, f=0.5)
    with pytest.raises(ValueError, match=r"a is \d+, must be -\d+ to \d+"):
        library.launch("numbers", stream=0, a=2**63, x=x, f=0.5)
    with pytest.raises(TypeError, match="f is missing"):
        library.launch("numbers", stream=0, a=16, x=x)
    with pytest.raises(TypeError, match="f is str, must be a number"):
        library.launch("numbers", stream=0, a=16, x=x, f="half")  # type: ignore[arg-type]


def attention_tensors(segments: int) -> dict[str, Tensor]:
    packed = placed(torch.zeros(20, 3, 3, 64, dtype=torch.bfloat16))
    tensors = {name: packed[:, i] for i, name in enumerate("qkv")}
    cuts = placed(torch.zeros(segments + 1, dtype=torch.int32))
    out = placed(torch.zeros(20, 3, 64, dtype=torch.bfloat16))
    return {**tensors, "offsets": cuts, "groups": cuts, "out": out, "lse": placed(torch.zeros(20, 3))}


def test_strides_and_counts_are_read_off_the_tensors(tmp_path: Path) -> None:
    library, driver = opened(tmp_path, ATTENTION)
    library.launch(ATTENTION.name, stream=0, **attention_tensors(4))
    numbers = [struct.unpack("<ii", value)[0] for value in driver.launches[0].packed[5:14]]
    assert numbers == [576, 64, 576, 64, 576, 64, 3, 4, 4]
    own = ATTENTION.constants["OWN"]
    assert isinstance(own, int)
    assert driver.launches[0].grid == (20 // own + 4, 3, 1)


def test_more_segments_than_a_kernel_was_compiled_for(tmp_path: Path) -> None:
    library, _ = opened(tmp_path, ATTENTION)
    with pytest.raises(ValueError, match=r"n_segments is 16, must be .* to 15"):
        library.launch(ATTENTION.name, stream=0, **attention_tensors(16))


def test_a_grid_beyond_cuda(tmp_path: Path) -> None:
    tall = dataclasses.replace(NUMBERS, grid=(1, "n"))
    library, _ = opened(tmp_path, tall)
    with pytest.raises(ValueError, match=r"a grid of \(1, 65536, 1\), the limit is"):
        library.launch("numbers", stream=0, a=0, x=placed(torch.zeros(65536)), f=0.0)


def test_a_kernel_that_is_not_there(tmp_path: Path) -> None:
    library, _ = opened(tmp_path, GATED)
    with pytest.raises(KeyError, match="elsewhere is not loaded; there are gated_residual"):
        library.launch("elsewhere", stream=0)


@pytest.mark.parametrize("function", ["cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute"])
def test_a_load_that_fails_leaves_nothing_behind(tmp_path: Path, function: str) -> None:
    driver = stand_in([GATED])
    driver.failing = function
    doing = "asking for 65536 bytes of shared memory for" if function == "cuFuncSetAttribute" else "loading"
    with pytest.raises(CudaError, match=rf"CUDA_ERROR_OUT_OF_MEMORY .* while {doing} gated_residual"):
        Library.open(write_folder(tmp_path, [GATED], shared=65536), GPU, driver)
    assert driver.stack == []
    assert driver.names.count("cuModuleUnload") == (function != "cuModuleLoadData")
    assert driver.names[-1] == "cuDevicePrimaryCtxRelease"


def test_a_launch_that_fails(tmp_path: Path) -> None:
    library, driver = opened(tmp_path, GATED)
    driver.failing = "cuLaunchKernel"
    with pytest.raises(CudaError, match=r"while launching gated_residual-bf16-192 with a grid of \(1, 1, 1\)"):
        library.launch(GATED.name, stream=0, **gated_tensors())
    assert driver.stack == []


def test_threads(tmp_path: Path) -> None:
    """Launches from eight threads: each enters the context itself, and none is mixed with another."""
    library, driver = opened(tmp_path, GATED)
    failures: list[BaseException] = []

    def work(rows: int) -> None:
        try:
            for _ in range(20):
                library.launch(GATED.name, stream=rows, **gated_tensors(rows))
            assert driver.stack == []
        except (CudaError, AssertionError, RuntimeError) as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(rows,)) for rows in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(driver.launches) == 160
    assert all(struct.unpack("<ii", launch.packed[4]) == (launch.stream, 0) for launch in driver.launches)
