"""`engine.json` beside a plan: what it was built from and for, and the output of TensorRT's engine inspector.

A plan itself states its tensors and profiles, but not whose weights are inside or on which GPU it may run.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vino_rt.errors import EngineError

FORMAT = 1
NAME = "engine.json"
NETWORK = "engine.onnx"
"""File beside a plan without weights: the network, without weights either, which refitting needs."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """Facts about a plan that the plan itself does not state."""

    kind: str
    tensorrt: str
    """Version of the library that built the plan; no other can open it."""
    target: tuple[str, ...]
    """Architecture and name of the GPU that it was built on (`TensorRtBackend.target`)."""
    variant: str
    """`native` or `plugin`."""
    inputs: tuple[str, ...]
    """The kind's inputs that the network reads, in order."""
    weights: str | None
    """Digest of the weights, if they are constants that were stripped from the plan; None if they are inputs."""
    profiles: tuple[Mapping[str, tuple[int, int, int]], ...]
    """For each profile, the smallest, optimal and largest value of every dynamic size."""
    layers: Any = None
    """The inspector's JSON output."""


def write_description(path: Path, description: Description) -> None:
    """Write `engine.json` beside the plan at `path`."""
    text = json.dumps({"format": FORMAT, **asdict(description)}, indent=1)
    path.with_name(NAME).write_text(text, encoding="utf-8")


def read_description(path: Path) -> Description:
    """Read `engine.json` beside the plan at `path`; EngineError if that fails."""
    where = path.with_name(NAME)
    try:
        given: dict[str, Any] = json.loads(where.read_text(encoding="utf-8"))
        if given.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        profiles = tuple({n: (int(a), int(b), int(c)) for n, (a, b, c) in p.items()} for p in given.pop("profiles"))
        names = {name: tuple(given[name]) for name in ("target", "inputs")}
        return Description(**{**given, **names, "profiles": profiles})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise EngineError(f"{where} cannot be read ({error}); delete {path.parent} and build again") from error


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values; independent of device and order."""
    total = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
