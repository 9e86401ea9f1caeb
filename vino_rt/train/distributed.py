"""One process or several: who am I, what do the others have, and how a model is sharded over them (FSDP2).

Several processes are started by torchrun. A tensor is then a DTensor of which a process holds a part: `local` gives
that part, `full` gathers the whole, `assign` fills the part from the whole. With one process all three do nothing.
"""

import gc
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vino_rt.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes of a run as one of them sees them."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """What every process gave, in the order of ranks; all of them must call it. Values are plain Python."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


@contextmanager
def open_world(device: str) -> Iterator[World]:
    """Join the processes that torchrun started, or be the only one; `device` is "cpu", "cuda" or "auto".

    UsageError when a CUDA device is asked for and there is none for this process.
    """
    launched = dist.is_torchelastic_launched()
    index = dist.get_node_local_rank() if launched else 0
    available = torch.cuda.device_count()
    wanted = device == "cuda" or (device == "auto" and available > 0)
    if wanted and index >= available:
        raise UsageError(
            f"device is {device!r}, process {index} of this machine finds {available} CUDA devices; write 'cpu', or "
            "start fewer processes"
        )
    chosen = torch.device("cuda", index) if wanted else torch.device("cpu")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if not launched:
        yield World(0, 1, chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), chosen)
    except BaseException as error:
        # Frames of the traceback hold the model, which holds the group.
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        dist.destroy_process_group()
        # Gloo's threads end with the last reference to the group, which lies in cycles of FSDP2's. One that still runs
        # when the interpreter ends aborts the process.
        gc.collect()


class Root(nn.Module):
    """The outermost module: what is done with a model is done inside its forward, where its weights are whole."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], T]) -> T:
        """Do `work`, which uses the model. FSDP2 sees tensors in tuples and dicts only, so that is what it returns."""
        return work()

    def release(self) -> None:
        """Drop weights gathered by a forward that no backward followed: the next one must gather them anew."""
        if isinstance(self, FSDPModule):
            self.reshard()


def make_root(model: nn.Module, shards: Sequence[nn.Module], world: World) -> Root:
    """The model below a root; several processes share it out: `shards` one by one in their order, then the rest.

    Frozen parameters outside of `shards` stay whole in every process: they are often called past `forward`, where
    nothing would gather them. Gradients become the mean over the processes. UsageError for a trained scalar.
    """
    root = Root(model)
    if world.size == 1:
        return root
    scalars = [name for name, parameter in model.named_parameters() if parameter.requires_grad and not parameter.ndim]
    if scalars:
        raise UsageError(f"the parameters {scalars} are scalars, which are not sharded; train in one process")
    mesh = init_device_mesh(world.device.type, (world.size,))
    for shard in shards:
        fully_shard(shard, mesh=mesh)
    inside = {parameter for shard in shards for parameter in shard.parameters()}
    frozen = {p for p in model.parameters() if not p.requires_grad and p not in inside}
    fully_shard(root, mesh=mesh, reshard_after_forward=False, ignored_params=frozen)
    return root


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor; all processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assign(tensor: Tensor, whole: Tensor) -> None:
    """Fill this process's part of `tensor` from `whole`, of the same global shape; nothing is sent."""
    with torch.no_grad():
        if isinstance(tensor, DTensor):
            whole = whole.to(tensor.device)
            whole = distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None).to_local()
        local(tensor).copy_(whole)


@contextmanager
def whole_weights(model: nn.Module, world: World) -> Iterator[None]:
    """While the body runs the leading process has whole weights in the model, on the CPU; the others wait at its end.

    The body may read the model, not call it. All processes must enter.
    """
    if world.size == 1:
        yield
        return
    swapped: list[tuple[nn.Module, str, nn.Parameter]] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(parameter, DTensor):
                whole = full(parameter.detach())
                if world.leads:
                    swapped.append((module, name, parameter))
                    module._parameters[name] = nn.Parameter(whole.cpu(), requires_grad=parameter.requires_grad)
                del whole
    try:
        yield
    finally:
        for module, name, parameter in swapped:
            module._parameters[name] = parameter
        world.gather(None)


def trained(model: nn.Module) -> Mapping[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
