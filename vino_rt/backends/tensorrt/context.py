"""Execution contexts: one for each plan and set of shapes, shared by all layers that run the plan.

A context's shapes never change. A layer's weights and the caller's tensors are bound before each launch, so the first
request in a bucket creates one context per kind, not one per layer.

A caller may record launches in a CUDA graph of its own (`vino_rt.backends.cuda_graph`). After a change of shapes,
NVIDIA requires one launch before a launch may be recorded; the caller's first run is that launch. Changed addresses
need no extra launch: a graph keeps the addresses that each launch was recorded with. Later runs at the same shapes only
bind addresses and launch, both of which are allowed during a recording.
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
"""Most contexts per plan for sizes out of a range; the least recently used is dropped. Contexts of profiles with a
single size are kept: a caller may have recorded their launches, and a replay does not show up here as a use.
"""


class SizedContext:
    """Runs a plan on inputs of one set of shapes.

    Raises EngineError for shapes that the plan was not built for, and OutOfMemory.
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
        """Launch the plan, in order with the caller's stream, and return newly allocated outputs.

        inputs: checked against the spec. weights: of one layer. Tensors that do not begin at a multiple of `ALIGNMENT`,
        such as slices of a table, are copied.
        """
        device = self._plan.device
        outputs = {name: device.empty(shape, dtype) for name, (shape, dtype) in self._outputs.items()}
        with device.ordered():
            self._use_memory()
            # Copies are made on the launch's stream and stay referenced until the launch is enqueued.
            bound = {name: aligned(tensor, device) for name, tensor in (*inputs.items(), *weights.items())}
            for name, tensor in (*bound.items(), *outputs.items()):
                self._point(name, tensor)
            self._plan.must(self._context.execute_async_v3(device.stream), "to run")
        return tuple(outputs.values())

    def _use_memory(self) -> None:
        """Set the scratch block that the context computes in, if it has changed."""
        block = self._plan.scratch.block()
        if block is not self._block:
            self._check_address("its memory", block)
            self._context.set_device_memory(block.data_ptr(), block.numel())
            self._block = block

    def _point(self, name: str, tensor: Tensor) -> None:
        # An empty tensor has a null address, which TensorRT refuses.
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
    """The contexts of a plan by the shapes of its inputs, shared by engines that `join` and `leave`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._made: OrderedDict[tuple[Shape, ...], SizedContext] = OrderedDict()
        self._users = 0

    def __len__(self) -> int:
        return len(self._made)

    def get(self, shapes: Mapping[str, Shape]) -> SizedContext:
        """The context for inputs of these shapes, created on first use; raises as `SizedContext` does."""
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
        """Register an engine that uses the contexts."""
        self._users += 1

    def leave(self) -> None:
        """Unregister an engine; the last one waits for pending work and frees the contexts."""
        self._users -= 1
        if not self._users:
            self.plan.device.synchronize()
            self._made.clear()


def aligned(tensor: Tensor, device: Device) -> Tensor:
    """The tensor on the device, contiguous and aligned to `ALIGNMENT` bytes; copied only if it is not so already."""
    there = tensor.to(device.device).contiguous()
    return there if there.data_ptr() % ALIGNMENT == 0 else device.empty(tuple(there.shape), there.dtype).copy_(there)
