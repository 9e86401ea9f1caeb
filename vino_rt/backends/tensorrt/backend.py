"""TensorRT behind the engine protocol: a plan per kind and a context per size; weights are inputs or refitted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vino_rt.backends.base import REBUILD, Backend, Engine, Kind
from vino_rt.backends.tensorrt.context import Contexts, aligned
from vino_rt.backends.tensorrt.description import NETWORK, Description, digest, read_description
from vino_rt.backends.tensorrt.device import Device, TorchDevice
from vino_rt.backends.tensorrt.library import load, made, make_logger
from vino_rt.backends.tensorrt.plan import Plan, Scratch
from vino_rt.errors import EngineError, EngineMismatch

CONVOLVING = frozenset({"vae"})
"""Parts of a model whose modules contain convolutions."""


class TensorRtEngine(Engine):
    """One layer: this layer's weights and the contexts of a plan, which layers share if weights are inputs."""

    def __init__(self, contexts: Contexts, weights: Mapping[str, Tensor]) -> None:
        plan = contexts.plan
        super().__init__(plan.kind.spec, plan.device.device)
        plan.check_tensors(weights)
        self._contexts, self._plan = contexts, plan
        self._weights = {name: aligned(tensor, plan.device) for name, tensor in weights.items()}
        self._open = True
        contexts.join()

    def fit(self, **tensors: Tensor) -> dict[str, Tensor]:
        """See `Engine.fit`; also places tensors at addresses aligned for TensorRT."""
        return {name: aligned(tensor, self._plan.device) for name, tensor in super().fit(**tensors).items()}

    def _run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        read = {name: inputs[name] for name in self._plan.inputs}
        return self._contexts.get({name: tuple(x.shape) for name, x in read.items()}).run(read, self._weights)

    def close(self) -> None:
        """Release this layer's share of the contexts; the last layer of a plan frees them."""
        if self._open:
            self._open = False
            self._contexts.leave()


class Room:
    """The GPU, stream and scratch memory that all plans of a runtime share; made on first use.

    cuda: stand-in for the device, for tests.
    """

    def __init__(self, place: torch.device, cuda: Device | None = None) -> None:
        self._place, self._cuda = place, cuda
        self._scratch: Scratch | None = None

    def open(self) -> tuple[Device, Scratch]:
        """Device and scratch memory; EngineError if there is no GPU."""
        if self._cuda is None:
            if not torch.cuda.is_available():
                raise EngineError("backend 'tensorrt' runs on an NVIDIA GPU; PyTorch sees none on this machine")
            self._cuda = TorchDevice(self._place)
        self._scratch = self._scratch or Scratch(self._cuda)
        return self._cuda, self._scratch


class TensorRtBackend(Backend):
    """Runs plans on one stream of one GPU; a caller may record their launches in a CUDA graph.

    cuda: stand-in for the device, for tests.
    """

    name = "tensorrt"
    sized = True
    engine = TensorRtEngine
    """Class of a layer's engine."""

    def __init__(self, device: torch.device | None = None, *, cuda: Device | None = None) -> None:
        super().__init__(device or torch.device("cuda", 0))
        self.room = Room(self.device, cuda)

    def version(self) -> str:
        """Version of the installed library; EngineError if it is missing or unsupported."""
        return str(load().__version__)

    def target(self) -> tuple[str, ...]:
        """Architecture and name of the GPU; a plan runs on no other."""
        return self.room.open()[0].target()

    def has_constants(self, kind: Kind) -> bool:
        """True for parts with convolutions, whose weights TensorRT requires to be constants of the plan."""
        return kind.part in CONVOLVING

    def share(self, other: "TensorRtBackend") -> None:
        """Use the stream and scratch memory of another backend of the same runtime.

        Safe because a runtime runs its plans one after the other. Two runtimes must not share: their graphs may run at
        the same time.
        """
        self.room = other.room

    def open(self, kind: Kind, artefact: Path | None, weights: Sequence[Mapping[str, Tensor]]) -> list[Engine]:
        """Deserialise the plan, once if weights are inputs, else once per layer, and supply the weights.

        Raises EngineMismatch for a plan built for another kind, library version, GPU or other weights, EngineError for
        one that cannot be read, OutOfMemory.
        """
        library, artefact = load(), self.required(kind, artefact)
        said = read_description(artefact)
        self._check_description(kind, said, str(library.__version__))
        if said.weights is not None:
            return [self.engine(Contexts(self._refitted(kind, library, artefact, said, w)), {}) for w in weights]
        contexts = Contexts(self._plan(kind, library, artefact, said))
        return [self.engine(contexts, layer) for layer in weights]

    def _check_description(self, kind: Kind, said: Description, version: str) -> None:
        here = {"kind": kind.name, "tensorrt": version, "target": self.target()}
        for name, wanted in here.items():
            if (found := getattr(said, name)) != wanted:
                raise EngineMismatch(f"{kind.name}: the plan is for {name} {found!r}, this is {wanted!r}; {REBUILD}")

    def _plan(self, kind: Kind, library: Any, artefact: Path, said: Description) -> Plan:
        device, scratch = self.room.open()
        logger, content = make_logger(library), _read(kind, artefact)
        runtime = library.Runtime(logger)
        what, way_out = f"{kind.name}: TensorRT cannot read {artefact}", f"delete {artefact.parent} and build again"
        engine = made(logger, what, lambda: runtime.deserialize_cuda_engine(content), way_out)
        return Plan(kind, said.inputs, library, runtime, engine, logger, device, scratch)

    def _refitted(
        self, kind: Kind, library: Any, artefact: Path, said: Description, weights: Mapping[str, Tensor]
    ) -> Plan:
        """A plan that was stored without its weights, refitted with them; they must be those that it was built with."""
        if digest(weights) != said.weights:
            raise EngineMismatch(f"{kind.name}: the plan was built with other weights of this model; {REBUILD}")
        plan = self._plan(kind, library, artefact, said)
        refitter = library.Refitter(plan.engine, plan.logger)
        parser = library.OnnxParserRefitter(refitter, plan.logger)
        on_host = {name: tensor.cpu().contiguous() for name, tensor in weights.items()}
        plan.must(parser.load_model_proto(_read(kind, artefact.with_name(NETWORK))), "the network beside the plan")
        for name, tensor in on_host.items():
            plan.must(parser.load_initializer(name, tensor.data_ptr(), tensor.nbytes), f"weight {name!r}")
        plan.must(parser.refit_model_proto(), "the weights")
        if missing := refitter.get_missing_weights():
            raise EngineError(f"{kind.name}: the plan still lacks weights {missing}; {REBUILD}")
        plan.must(refitter.refit_cuda_engine_async(plan.device.stream), "to take the weights")
        plan.device.synchronize()
        return plan


def _read(kind: Kind, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EngineError(f"{kind.name}: {path} cannot be read ({error}); {REBUILD}") from error
