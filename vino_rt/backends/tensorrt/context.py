"""One execution context at one set of shapes, for good: launched plainly, or once and then replayed from a graph.

A CUDA graph keeps the shapes, the addresses and the memory it was recorded with. So a context's shapes never change,
recorded launches read and write memory of their own, and a context whose memory changed is launched and recorded anew.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from vino_rt.backends.base import DTYPES, REBUILD
from vino_rt.backends.tensorrt.device import Device
from vino_rt.backends.tensorrt.library import ALIGNMENT
from vino_rt.backends.tensorrt.plan import Plan, Shape
from vino_rt.errors import EngineError


class SizedContext:
    """Runs a plan on inputs of one size with one layer's weights.

    graph: record the launch; `plain_allowed`: go on without a recording where CUDA refuses to make one, else that is
    an EngineError. Raises EngineError for shapes that the plan was not built for, OutOfMemory.
    """

    def __init__(
        self,
        plan: Plan,
        shapes: Mapping[str, Shape],
        weights: Mapping[str, Tensor],
        *,
        graph: bool,
        plain_allowed: bool = False,
    ) -> None:
        self._plan, self._weights, self._plain_allowed = plan, weights, plain_allowed
        profile = plan.profile_for(shapes)
        # Sizes from a range come and go: what is recorded for one would not be used again.
        self.exact = profile.exact
        self.graph = graph and self.exact
        self._context = plan.new_context()
        self._block: Tensor | None = None
        self._replay: Callable[[], None] | None = None
        chosen = self._context.set_optimization_profile_async(profile.index, plan.device.stream)
        plan.must(chosen, f"profile {profile.index}")
        plan.device.synchronize()
        for name, shape in shapes.items():
            plan.must(self._context.set_input_shape(name, shape), f"shape {shape} of {name!r}")
        if unknown := self._context.infer_shapes():
            raise EngineError(f"{plan.kind.name}: TensorRT cannot tell the shapes of {unknown}; {REBUILD}")
        for name, tensor in weights.items():
            self._point(name, tensor)
        self._outputs = {
            spec.name: (tuple(self._context.get_tensor_shape(spec.name)), DTYPES[spec.dtype])
            for spec in plan.kind.spec.outputs
        }

    def run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Outputs in memory of their own, in the order of the caller's stream; inputs are as the spec says."""
        device = self._plan.device
        outputs = {name: device.empty(shape, dtype) for name, (shape, dtype) in self._outputs.items()}
        with device.ordered():
            self._use_memory()
            if self.graph:
                self._run_recorded(inputs, outputs)
            else:
                for name, tensor in (*inputs.items(), *outputs.items()):
                    self._point(name, tensor)
                self._enqueue()
        return tuple(outputs.values())

    def _run_recorded(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        slots = {n: self._plan.slot(n, tuple(x.shape), x.dtype) for n, x in (*inputs.items(), *outputs.items())}
        for name, tensor in inputs.items():
            slots[name].copy_(tensor)
        if self._replay is not None:
            self._replay()
        else:
            for name, slot in slots.items():
                self._point(name, slot)
            # The first launch may allocate and choose, which must not be recorded.
            self._enqueue()
            self._plan.device.synchronize()
            self._record()
        for name, tensor in outputs.items():
            tensor.copy_(slots[name])

    def _record(self) -> None:
        try:
            self._replay = self._plan.device.capture(self._enqueue)
        except (RuntimeError, EngineError) as error:
            if not self._plain_allowed:
                raise EngineError(
                    f"{self._plan.kind.name}: CUDA refused to record a launch ({error}); allow plain launches"
                ) from error
            self.graph = False

    def _use_memory(self) -> None:
        """Give the context the block it computes in; what was recorded with another is dropped."""
        block = self._plan.scratch.block()
        if block is not self._block:
            self._check_address("its memory", block)
            self._context.set_device_memory(block.data_ptr(), block.numel())
            self._block, self._replay = block, None

    def _point(self, name: str, tensor: Tensor) -> None:
        self._check_address(f"tensor {name!r}", tensor)
        # An empty tensor has no address, and TensorRT wants one.
        address = tensor.data_ptr() or self._plan.scratch.block().data_ptr()
        self._plan.must(self._context.set_tensor_address(name, address), f"the address of {name!r}")

    def _check_address(self, what: str, tensor: Tensor) -> None:
        if tensor.data_ptr() % ALIGNMENT:
            raise EngineError(
                f"{self._plan.kind.name}: {what} begins at {tensor.data_ptr():#x}, must be a multiple of {ALIGNMENT}; "
                "it is a part of another tensor: call .clone() first"
            )

    def _enqueue(self) -> None:
        self._plan.must(self._context.execute_async_v3(self._plan.device.stream), "to run")


def aligned(tensor: Tensor, device: Device) -> Tensor:
    """The tensor on the device, contiguous, at a multiple of `ALIGNMENT`: itself where it is all that."""
    there = tensor.to(device.device).contiguous()
    return there if there.data_ptr() % ALIGNMENT == 0 else device.empty(tuple(there.shape), there.dtype).copy_(there)
