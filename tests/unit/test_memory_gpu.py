"""Memory of a GPU as `vino_rt.memory` sees it, over a stand-in for what the device says."""

import weakref

import pytest
import torch
from torch import Tensor

from vino_rt.errors import OutOfMemory
from vino_rt.memory import GIB, check_room, named_shortage


def test_room_is_looked_for_where_the_work_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []

    def free(device: torch.device) -> tuple[int, int]:
        asked.append(device)
        return 2 * GIB, 80 * GIB

    monkeypatch.setattr(torch.cuda, "mem_get_info", free)
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda *, include_traces: [])
    gpu = torch.device("cuda", 0)
    check_room(2 * GIB, "decoding", "ask for less", gpu)
    with pytest.raises(OutOfMemory, match=r"decoding needs up to 3.0 GiB and 2.0 GiB are free; ask for less"):
        check_room(3 * GIB, "decoding", "ask for less", gpu)
    assert asked == [gpu, gpu]


def segment(device: int, total: int, allocated: int, pool: tuple[int, int] = (0, 0)) -> dict[str, object]:
    """What PyTorch's allocator says of a block of so many GiB."""
    sizes = {"total_size": total * GIB, "allocated_size": allocated * GIB}
    return {"device": device, "segment_pool_id": pool, **sizes}


def test_blocks_that_pytorch_keeps_count_as_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the device's common pool, and not those of a graph's pool or of another device."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (GIB, 80 * GIB))
    segments = [segment(0, 30, 25), segment(0, 20, 15), segment(1, 9, 0), segment(0, 7, 2, pool=(0, 3))]
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda *, include_traces: segments)
    gpu = torch.device("cuda", 0)
    check_room(11 * GIB, "decoding", "ask for less", gpu)
    with pytest.raises(OutOfMemory, match=r"needs up to 12.0 GiB and 11.0 GiB are free"):
        check_room(12 * GIB, "decoding", "ask for less", gpu)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OutOfMemory("memory ran out in an engine; ask for less"),
    ],
)
def test_a_gpu_that_runs_out_is_told_like_a_host(error: Exception) -> None:
    taken: list[weakref.ref[Tensor]] = []

    def work() -> None:
        activations = torch.zeros(1)
        taken.append(weakref.ref(activations))
        raise error

    with pytest.raises(OutOfMemory, match=r"memory ran out.*; ask for less") as caught, named_shortage("ask for less"):
        work()
    assert error in (caught.value, caught.value.__cause__)
    assert taken[0]() is None, "who keeps the error keeps no tensors"


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="an illegal memory access"), named_shortage("ask for less"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
