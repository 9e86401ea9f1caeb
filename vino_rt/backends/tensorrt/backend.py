"""TensorRT behind the engine protocol: a plan per kind, a context per size, weights as inputs or given when opened."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vino_rt.backends.base import REBUILD, Backend, Engine, Kind
from vino_rt.backends.tensorrt.context import SizedContext, aligned
from vino_rt.backends.tensorrt.description import NETWORK, Description, digest, read_description
from vino_rt.backends.tensorrt.device import Device, TorchDevice
from vino_rt.backends.tensorrt.library import load, make_logger
from vino_rt.backends.tensorrt.plan import Plan, Scratch, Shape
from vino_rt.errors import EngineError, EngineMismatch

CONTEXTS = 8
"""Sizes out of ranges that an engine keeps a context for; the one that was not used for longest goes first. Those of
profiles of one size, a context for each, stay: a caller may have recorded them, and replays without asking here.
"""


class TensorRtEngine(Engine):
    """One layer: a plan, shared where weights are inputs, and this layer's weights."""

    def __init__(self, plan: Plan, weights: Mapping[str, Tensor], *, graphs: bool, plain_allowed: bool) -> None:
        super().__init__(plan.kind.spec, plan.device.device)
        plan.check_tensors(weights)
        self._plan, self._weights = plan, weights
        self._graphs, self._plain_allowed = graphs, plain_allowed
        self._contexts: OrderedDict[tuple[Shape, ...], SizedContext] = OrderedDict()

    def fit(self, **tensors: Tensor) -> dict[str, Tensor]:
        """As of every engine, and at addresses that TensorRT takes."""
        return {name: aligned(tensor, self._plan.device) for name, tensor in super().fit(**tensors).items()}

    def _run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        read = {name: inputs[name] for name in self._plan.inputs}
        return self._context({name: tuple(tensor.shape) for name, tensor in read.items()}).run(read)

    def _context(self, shapes: Mapping[str, Shape]) -> SizedContext:
        key = tuple(shapes.values())
        if key not in self._contexts:
            graph, plain = self._graphs, self._plain_allowed
            self._contexts[key] = SizedContext(self._plan, shapes, self._weights, graph=graph, plain_allowed=plain)
            loose = [shapes for shapes, context in self._contexts.items() if not context.exact]
            if len(loose) > CONTEXTS:
                self._plan.device.synchronize()
                del self._contexts[loose[0]]
        self._contexts.move_to_end(key)
        return self._contexts[key]

    def close(self) -> None:
        """Give back the contexts, after what they were given to do."""
        self._plan.device.synchronize()
        self._contexts.clear()


class TensorRtBackend(Backend):
    """Plans on one GPU, one after another on one stream.

    graphs: record each size's launch and replay it; without, a caller may record engines in a graph of his own.
    plain_allowed: launch plainly where CUDA refuses to record; otherwise that is an error.
    """

    name = "tensorrt"
    sized = True
    engine = TensorRtEngine
    """What runs a layer."""

    def __init__(
        self,
        device: torch.device | None = None,
        *,
        graphs: bool = True,
        plain_allowed: bool = False,
        cuda: Device | None = None,
    ) -> None:
        self._where, self._graphs, self._plain_allowed = device or torch.device("cuda", 0), graphs, plain_allowed
        self._cuda, self._scratch = cuda, None if cuda is None else Scratch(cuda)

    def version(self) -> str:
        """Version of the installed library; EngineError when it is not there or not supported."""
        return str(load().__version__)

    def target(self) -> tuple[str, ...]:
        """Architecture and name of the GPU: a plan runs on no other."""
        return self._open_device()[0].target()

    def open(self, kind: Kind, artefact: Path | None, weights: Sequence[Mapping[str, Tensor]]) -> list[Engine]:
        """Deserialise the plan, once if weights are inputs, else once for each layer, and give it its weights.

        Raises EngineMismatch for a plan of another kind, library, GPU or other weights, EngineError for one that
        cannot be read, OutOfMemory.
        """
        library = load()
        if artefact is None:
            raise EngineError(f"backend 'tensorrt' needs a built engine for kind {kind.name!r}")
        said = read_description(artefact)
        self._check_description(kind, said, str(library.__version__))
        options = {"graphs": self._graphs, "plain_allowed": self._plain_allowed}
        if said.weights is not None:
            return [self.engine(self._refitted(kind, library, artefact, said, w), {}, **options) for w in weights]
        plan = self._plan(kind, library, artefact, said)
        there = [{name: aligned(x, plan.device) for name, x in layer.items()} for layer in weights]
        return [self.engine(plan, layer, **options) for layer in there]

    def _open_device(self) -> tuple[Device, Scratch]:
        if self._cuda is None or self._scratch is None:
            if not torch.cuda.is_available():
                raise EngineError("backend 'tensorrt' runs on an NVIDIA GPU; PyTorch sees none on this machine")
            self._cuda = TorchDevice(self._where)
            self._scratch = Scratch(self._cuda)
        return self._cuda, self._scratch

    def _check_description(self, kind: Kind, said: Description, version: str) -> None:
        here = {"kind": kind.name, "tensorrt": version, "target": self.target()}
        for name, wanted in here.items():
            if (found := getattr(said, name)) != wanted:
                raise EngineMismatch(f"{kind.name}: the plan is for {name} {found!r}, this is {wanted!r}; {REBUILD}")

    def _plan(self, kind: Kind, library: Any, artefact: Path, said: Description) -> Plan:
        device, scratch = self._open_device()
        logger = make_logger(library)
        runtime = library.Runtime(logger)
        engine = runtime.deserialize_cuda_engine(artefact.read_bytes())
        if engine is None:
            raise EngineError(
                f"{kind.name}: TensorRT cannot read {artefact} ({logger.said()}); delete {artefact.parent} and build "
                "again"
            )
        return Plan(kind, said.inputs, library, runtime, engine, logger, device, scratch)

    def _refitted(
        self, kind: Kind, library: Any, artefact: Path, said: Description, weights: Mapping[str, Tensor]
    ) -> Plan:
        """A plan whose weights were stripped, with them put back: the very ones it was built with."""
        if digest(weights) != said.weights:
            raise EngineMismatch(f"{kind.name}: the plan was built with other weights of this model; {REBUILD}")
        plan = self._plan(kind, library, artefact, said)
        refitter = library.Refitter(plan.engine, plan.logger)
        parser = library.OnnxParserRefitter(refitter, plan.logger)
        on_host = {name: tensor.cpu().contiguous() for name, tensor in weights.items()}
        plan.must(parser.load_model_proto(artefact.with_name(NETWORK).read_bytes()), "the network beside the plan")
        for name, tensor in on_host.items():
            plan.must(parser.load_initializer(name, tensor.data_ptr(), tensor.nbytes), f"weight {name!r}")
        plan.must(parser.refit_model_proto(), "the weights")
        if missing := refitter.get_missing_weights():
            raise EngineError(f"{kind.name}: the plan still lacks weights {missing}; {REBUILD}")
        plan.must(refitter.refit_cuda_engine_async(plan.device.stream), "to take the weights")
        plan.device.synchronize()
        return plan
