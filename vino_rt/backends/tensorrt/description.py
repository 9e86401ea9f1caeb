"""`engine.json` beside a plan: what it was built from and for, and what TensorRT's inspector says of it.

A plan itself tells its tensors and profiles, but not whose weights are inside or on which GPU it may run.
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
"""The network without its weights' values, beside a plan that is given them when it is opened."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a plan does not say of itself."""

    kind: str
    tensorrt: str
    """Version of the library that built it, the only one that opens it."""
    target: tuple[str, ...]
    """The GPU it was built on."""
    variant: str
    """`native` or `plugin`."""
    inputs: tuple[str, ...]
    """Those of the kind that the network reads, in order."""
    weights: str | None
    """Digest of the weights that are constants of the plan and were stripped from it; None: they are inputs."""
    profiles: tuple[Mapping[str, tuple[int, int, int]], ...]
    """Smallest, best and largest value of every dynamic size."""
    layers: Any = None
    """The inspector's JSON."""


def write_description(path: Path, description: Description) -> None:
    """Put `engine.json` beside the plan at `path`."""
    text = json.dumps({"format": FORMAT, **asdict(description)}, indent=1)
    path.with_name(NAME).write_text(text, encoding="utf-8")


def read_description(path: Path) -> Description:
    """What stands beside the plan at `path`; EngineError where it cannot be read."""
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
    """SHA-256 over names, types and values, the same on every device and in every order."""
    total = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
