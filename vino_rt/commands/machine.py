"""This machine: processor, memory, GPUs and the library versions that decide which engines fit; knows no model."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PACKAGES = ("vino-rt", "torch", "onnxruntime", "onnx", "triton", "tensorrt", "av")
CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Gpu:
    """One CUDA device."""

    name: str
    memory: int
    """Bytes."""
    capability: str
    """CUDA compute capability, such as 9.0."""


@dataclass(frozen=True)
class Machine:
    """The hardware and the installed versions; `inspect --json` prints these fields under these names."""

    system: str
    cpu: str
    cores: int | None
    """Cores that this process may run on; None where the system does not say."""
    memory: int
    """Bytes installed."""
    memory_free: int | None
    """Bytes available without swapping; None where the system does not say."""
    gpus: tuple[Gpu, ...]
    python: str
    versions: Mapping[str, str | None]
    """Version of each of `PACKAGES`; None for one that is not installed."""


def describe_machine() -> Machine:
    """Ask the system, PyTorch and the package metadata for the facts of a `Machine`."""
    import torch

    from vino_rt.memory import available_bytes

    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return Machine(
        system=platform.platform(),
        cpu=_field(CPU_INFO, "model name") or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        memory_free=available_bytes(),
        gpus=tuple(Gpu(device.name, device.total_memory, f"{device.major}.{device.minor}") for device in devices),
        python=platform.python_version(),
        versions={name: _version(name) for name in PACKAGES},
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _field(path: Path, name: str) -> str | None:
    """Value of the first `name : value` line; None where the system has no such file."""
    if not path.is_file():
        return None
    pairs = (line.partition(":") for line in path.read_text(errors="replace").splitlines())
    return next((value.strip() for key, _, value in pairs if key.strip() == name), None)
