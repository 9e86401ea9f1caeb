"""What this machine is: processor, memory, GPUs and the versions that decide which engines fit; knows no model."""

import os
import platform
from importlib import metadata
from pathlib import Path

PACKAGES = ("vino-rt", "torch", "onnxruntime", "onnx", "triton", "tensorrt", "av")
CPU_INFO = Path("/proc/cpuinfo")


def describe_machine() -> dict[str, object]:
    """Facts by name, ready for JSON; memory in bytes."""
    import torch

    from vino_rt.memory import available_bytes

    gpus = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        capability = f"{device.major}.{device.minor}"
        gpus.append({"name": device.name, "memory": device.total_memory, "capability": capability})
    return {
        "system": platform.platform(),
        "cpu": _field(CPU_INFO, "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "memory_free": available_bytes(),
        "gpus": gpus,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


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
