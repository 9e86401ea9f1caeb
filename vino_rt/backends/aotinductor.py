"""AOTInductor behind the engine protocol: one compiled package per kind, weights as arguments, no compiler needed.

A package holds machine code for the processor it was built on and, for a GPU, Triton kernels (ours and the compiler's)
for its architecture. On the CPU two operators stay calls into PyTorch: attention, which reads its segment offsets on
the host (`vino_rt.models.vino.ops`), and `linear` below. Layers of a kind share the package and pass their own weights
on every call, so weights exist once in memory.

The GPU side has not run on a GPU yet: tests drive it with a stand-in for the loader.
"""

import functools
import hashlib
import json
import platform
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vino_rt.backends.base import (
    CPU,
    REBUILD,
    SMALLER,
    Backend,
    BackendOptions,
    Engine,
    Kind,
    run_elsewhere,
    torch_version,
)
from vino_rt.backends.driver import gpu_architecture
from vino_rt.errors import EngineError, EngineMismatch, OutOfMemory
from vino_rt.memory import detail, is_shortage

if TYPE_CHECKING:
    from torch._C._aoti import AOTIModelPackageLoader

DESCRIPTION = "vino_rt"
"""Key of a package's metadata that holds the output of `describe`."""
MODEL = "model"
"""Name of a package's only program, the library's default."""
ANY_DEVICE = -1
CPUINFO = Path("/proc/cpuinfo")
DESCRIBED = ("kind", "precision", "torch", "processor", "device")
"""Fields of a package's description besides its weights; all must match where it is opened."""


def _onednn_multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN can multiply matrices of this dtype on this processor: on x86, bfloat16 needs AVX-512."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    # With weights as arguments, a compiled package would call the BLAS library and then run GELU in a separate loop;
    # oneDNN fuses the two and is faster (bench/LOG.md).
    if x.shape[0] == 0 or not _onednn_multiplies(x.dtype):
        out = F.linear(x, weight, bias)
        return F.gelu(out, approximate="tanh") if gelu else out
    name, algorithm = ("gelu", "tanh") if gelu else ("none", "")
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, name, [], algorithm)
    return product


linear = torch.library.custom_op("vino::linear", _linear, mutates_args=())
"""Linear layer on the CPU, with tanh GELU if `gelu`: x [L, I], weight [O, I], bias [O] or None -> [L, O], all float32
or all bfloat16. A single node in packages.
"""


@linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


@functools.cache
def processor() -> str:
    """What machine code depends on: the vector instructions that torch uses, and a hash of the processor's flags."""
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.is_file() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    digest = hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:8]
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {digest}"


def describe(kind: Kind, device: torch.device = CPU) -> dict[str, Any]:
    """Description to put into a package: kind and precision, the weights it takes in order, and where it may run."""
    with torch.device("meta"):
        weights = {name: list(tensor.shape) for name, tensor in kind.build().state_dict().items()}
    return {"weights": weights, **_here(kind, device)}


def _here(kind: Kind, device: torch.device) -> dict[str, str]:
    # A CPU's features are part of `processor`.
    architecture = "cpu" if device.type == "cpu" else gpu_architecture(device)
    values = (kind.name, kind.precision, torch_version(), processor(), architecture)
    return dict(zip(DESCRIBED, values, strict=True))


class AotInductorEngine(Engine):
    """One layer: the shared package, and references to the layer's weights in the order the package takes them."""

    def __init__(
        self,
        kind: Kind,
        package: "AOTIModelPackageLoader",
        weights: Mapping[str, Tensor],
        threads: int | None,
        device: torch.device = CPU,
    ) -> None:
        super().__init__(kind.spec, device)
        self._package, self._threads = package, threads
        self._weights = [tensor.to(device).contiguous() for tensor in weights.values()]

    @torch.inference_mode()
    def _run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        try:
            with _threads(self._threads):
                return tuple(self._package.boxed_run([*inputs.values(), *self._weights]))
        except (RuntimeError, MemoryError) as error:
            raise _explain(self.spec.kind, error) from error


class AotInductorBackend(Backend):
    """Runs AOTInductor packages on the CPU or on a CUDA device.

    threads: CPU threads; None: torch's setting. max_autotune: whether the packages are built with it, see
    `vino_export.package`.
    """

    name = "aotinductor"
    embeds_kernels = True

    def __init__(self, threads: int | None = None, device: torch.device = CPU, *, max_autotune: bool = False) -> None:
        super().__init__(device)
        self.threads, self._max_autotune = threads, max_autotune

    @classmethod
    def create(cls, options: BackendOptions) -> "AotInductorBackend":
        """See `Backend.create`."""
        return cls(options.threads, options.device, max_autotune=options.max_autotune)

    def version(self) -> str:
        """Version of torch, which compiles and runs the packages, and on a CUDA device that of Triton.

        Packages run without Triton, but the version that built them is part of their key. Raises EngineError if Triton
        is needed and missing.
        """
        if self.device.type == "cpu":
            return torch_version()
        if find_spec("triton") is None:
            raise EngineError(
                "backend 'aotinductor' on a GPU needs Triton, which compiles what its packages hold; install it with: "
                "pip install 'vino-rt[gpu]'"
            )
        return f"{torch_version()} triton {metadata.version('triton')}"

    def target(self) -> tuple[str, ...]:
        """The processor, since others may lack instructions of the code, and whether kernels were autotuned."""
        return (processor(), *(("max_autotune",) if self._max_autotune else ()))

    def open(self, kind: Kind, artefact: Path | None, weights: Sequence[Mapping[str, Tensor]]) -> list[Engine]:
        """Load the package once and make one engine per layer; needs no compiler.

        Raises EngineMismatch for a package built for another kind, precision, torch, processor or device, EngineError
        for one that cannot be read or whose weights do not fit, OutOfMemory.
        """
        artefact = self.required(kind, artefact)
        said = read_description(kind, artefact)
        _check_package(kind, artefact, said, _here(kind, self.device))
        ordered = [_in_order(kind, said["weights"], layer) for layer in weights]
        try:
            # Not `torch._inductor.aoti_load_package`: it first compiles test programs to probe this processor.
            package = torch._C._aoti.AOTIModelPackageLoader(str(artefact), MODEL, *_loading(self.device))
        except (RuntimeError, MemoryError) as error:
            if is_shortage(error):
                raise _explain(kind.name, error) from error
            raise EngineError(
                f"{kind.name}: AOTInductor cannot open {artefact}: {str(error)[:500]}; delete {artefact.parent} and "
                "build again"
            ) from error
        return [AotInductorEngine(kind, package, layer, self.threads, self.device) for layer in ordered]


def _loading(device: torch.device) -> tuple[bool, int, int]:
    """The loader's arguments run_single_threaded, num_runners and device_index.

    Single-threaded on a GPU: otherwise the loader queries CUDA events, which is forbidden while a step is recorded, and
    engines are run from one thread at a time anyway.
    """
    return (False, 1, ANY_DEVICE) if device.type == "cpu" else (True, 1, device.index or 0)


def read_description(kind: Kind, artefact: Path) -> dict[str, Any]:
    """The description in a package, read without running its code; EngineError if there is none."""
    try:
        with zipfile.ZipFile(artefact) as archive:
            names = [name for name in archive.namelist() if name.endswith("_metadata.json")]
            found = [json.loads(archive.read(name)).get(DESCRIPTION) for name in names]
        said: dict[str, Any] = json.loads(next(text for text in found if text is not None))
        if {"weights", *DESCRIBED} - set(said):
            raise ValueError(f"its description is {said}")
        return said
    except (OSError, ValueError, TypeError, AttributeError, StopIteration, zipfile.BadZipFile) as error:
        raise EngineError(
            f"{kind.name}: package {artefact} cannot be read ({type(error).__name__}: {error}); "
            f"delete {artefact.parent} and build again"
        ) from error


def _check_package(kind: Kind, artefact: Path, said: Mapping[str, Any], here: Mapping[str, str]) -> None:
    """Raise EngineMismatch naming what differs, before machine code for another kind or machine is loaded."""
    for name, wanted in here.items():
        if said[name] != wanted:
            raise EngineMismatch(
                f"{kind.name}: package {artefact} was built for {name} {said[name]!r}, this is {wanted!r}; {REBUILD}"
            )


def _in_order(kind: Kind, taken: Mapping[str, list[int]], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A layer's weights in the package's order; EngineError names those that are missing, unknown or misshapen."""
    unknown, missing = sorted(set(weights) - set(taken)), sorted(set(taken) - set(weights))
    if unknown or missing:
        raise EngineError(f"{kind.name}: the engine takes no weights named {unknown} and needs {missing}; {REBUILD}")
    for name, shape in taken.items():
        given = weights[name]
        if list(given.shape) != shape or given.dtype is not kind.dtype:
            raise EngineError(
                f"{kind.name}: weight {name!r} is {given.dtype} {tuple(given.shape)}, the engine takes "
                f"{kind.dtype} {tuple(shape)}; {REBUILD}"
            )
    return {name: weights[name] for name in taken}


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Inside the block, let torch and the package use this many threads; None: leave the setting alone."""
    before = torch.get_num_threads()
    if count in (None, before):
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _explain(kind: str, error: Exception) -> EngineError | OutOfMemory:
    if is_shortage(error):
        return OutOfMemory(f"{kind}: AOTInductor ran out of memory{detail(error)}; {SMALLER}")
    return EngineError(f"{kind}: AOTInductor failed: {str(error)[:500]}; {run_elsewhere(kind)}")
