"""Execution contexts: one for each plan and set of shapes, shared by all layers that run the plan.

A context's shapes never change. A layer's weights and the caller's tensors are bound before each launch, so that the
first request of a bucket makes one context per kind, not one per layer.

A caller may record launches in a CUDA graph of its own (`vino_rt.backends.cuda_graph`). NVIDIA requires one launch
after a change of shapes before a launch is recorded; the caller's first run is that launch. A change of addresses
requires none: a graph keeps the addresses that each launch was recorded with. Every later run at the same shapes does
nothing that a recording forbids: it binds addresses and launches.
"""

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor

from vino_rt.backends.base import DTYPES, REBUILD
from vino_rt.backends.tensorrt.device import Device
from vino_rt.backends.tensorrt.library import ALIGNMENT
from vino_rt.backends.tensorrt.plan import Plan, Shape
from vino_rt.errors import EngineError

CONTEXTS = 8
"""Sizes out of ranges that contexts of a plan are kept for; the one that was not used for longest goes first. Those of
profiles of one size stay: a caller may have recorded their launches, which are replayed without asking here.
"""


class SizedContext:
    """Runs a plan on inputs of one size.

    Raises EngineError for shapes that the plan was not built for, OutOfMemory.
    """

    def __init__(self, plan: Plan, shapes: Mapping[str, Shape]) -> None:
        self._plan = plan
        profile = plan.profile_for(shapes)
        self.exact = profile.exact
        self._context = plan.new_context()
        self._block: Tensor | None = None
        self._addresses: dict[str, int] = {}
        chosen = self._context.set_optimization_profile_async(profile.index, plan.device.stream)
        plan.must(chosen, f"profile {profile.index}")
        plan.device.synchronize()
        for name, shape in shapes.items():
            plan.must(self._context.set_input_shape(name, shape), f"shape {shape} of {name!r}")
        if unknown := self._context.infer_shapes():
            raise EngineError(f"{plan.kind.name}: TensorRT cannot tell the shapes of {unknown}; {REBUILD}")
        self._outputs = {
            spec.name: (tuple(self._context.get_tensor_shape(spec.name)), DTYPES[spec.dtype])
            for spec in plan.kind.spec.outputs
        }

    def run(self, inputs: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Outputs in memory of their own, in the order of the caller's stream; inputs are as the spec says.

        weights: of one layer. What does not begin at a multiple of `ALIGNMENT`, as a slice of a table may, is copied.
        """
        device = self._plan.device
        outputs = {name: device.empty(shape, dtype) for name, (shape, dtype) in self._outputs.items()}
        with device.ordered():
            self._use_memory()
            # Copies are made on the stream of the launch, and kept until it is given to the stream.
            bound = {name: aligned(tensor, device) for name, tensor in (*inputs.items(), *weights.items())}
            for name, tensor in (*bound.items(), *outputs.items()):
                self._point(name, tensor)
            self._plan.must(self._context.execute_async_v3(device.stream), "to run")
        return tuple(outputs.values())

    def _use_memory(self) -> None:
        """Give the context the block it computes in, where that is another than before."""
        block = self._plan.scratch.block()
        if block is not self._block:
            self._check_address("its memory", block)
            self._context.set_device_memory(block.data_ptr(), block.numel())
            self._block = block

    def _point(self, name: str, tensor: Tensor) -> None:
        # An empty tensor has no address, and TensorRT wants one.
        address = tensor.data_ptr() or self._plan.scratch.block().data_ptr()
        if self._addresses.get(name) == address:
            return
        self._check_address(f"tensor {name!r}", tensor)
        self._plan.must(self._context.set_tensor_address(name, address), f"the address of {name!r}")
        self._addresses[name] = address

    def _check_address(self, what: str, tensor: Tensor) -> None:
        if tensor.data_ptr() % ALIGNMENT:
            raise EngineError(
                f"{self._plan.kind.name}: {what} begins at {tensor.data_ptr():#x}, must be a multiple of {ALIGNMENT}; "
                "the allocator gave other memory: use PyTorch's own CUDA allocator"
            )


class Contexts:
    """The contexts of a plan by the shapes of its inputs; those who use it `join` and `leave`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._made: OrderedDict[tuple[Shape, ...], SizedContext] = OrderedDict()
        self._users = 0

    def __len__(self) -> int:
        return len(self._made)

    def get(self, shapes: Mapping[str, Shape]) -> SizedContext:
        """The context for inputs of these shapes, made when they first come; raises as `SizedContext`."""
        key = tuple(shapes.values())
        if key not in self._made:
            self._made[key] = SizedContext(self.plan, shapes)
            loose = [shapes for shapes, context in self._made.items() if not context.exact]
            if len(loose) > CONTEXTS:
                self.plan.device.synchronize()
                del self._made[loose[0]]
        self._made.move_to_end(key)
        return self._made[key]

    def join(self) -> None:
        """One more engine uses the contexts."""
        self._users += 1

    def leave(self) -> None:
        """One engine less; the last one gives them back, after what they were given to do."""
        self._users -= 1
        if not self._users:
            self.plan.device.synchronize()
            self._made.clear()


def aligned(tensor: Tensor, device: Device) -> Tensor:
    """The tensor on the device, contiguous, at a multiple of `ALIGNMENT`: itself where it is all that."""
    there = tensor.to(device.device).contiguous()
    return there if there.data_ptr() % ALIGNMENT == 0 else device.empty(tuple(there.shape), there.dtype).copy_(there)
