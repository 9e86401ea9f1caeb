"""The choice: a pure function of a call's sizes, the device, the requirements and the table. Nothing runs here."""

import math
from functools import lru_cache

from vino_kernels.choice.facts import Choice, Device, Needs, Shape, count, row_class
from vino_kernels.choice.implementations import OPERATIONS, Implementation
from vino_kernels.choice.table import DTYPES, Entry, Table, packaged

ON_A_CPU = Choice("torch", "PyTorch's operations: no CUDA device")
ONE_PASS = "it reads and writes memory once, where PyTorch's operations do so several times"
WHY_OURS = {
    "boundary_attention": "it serves all segments in one launch, reads their bounds on the device and skips what no "
    "row sees",
    "qk_norm_rope": ONE_PASS,
    "norm_modulate": ONE_PASS,
    "gated_residual": ONE_PASS,
    "guide_and_step": ONE_PASS,
}
SHOWN_COMMIT = 12
"""Characters of a commit's hash that a reason shows."""


def choose(
    operation: str, shape: Shape, device: Device, needs: Needs | None = None, table: Table | None = None
) -> Choice:
    """The fastest measured implementation of an operation that supports this call, else the preferred one.

    Uses the table's entry for the shape's class on this GPU; else that of the nearest class with the same dtype,
    channels and variant; else, and for calls with gradients, which are not measured, the first in the order of
    `OPERATIONS` that supports the call. The reason says which of these applied. table: None for the packaged one.
    Raises ValueError for an unknown operation, or saying why each implementation refuses if none supports the call.
    """
    if operation not in OPERATIONS:
        raise ValueError(f"no operation is called {operation!r}; there are {', '.join(OPERATIONS)}")
    return _choose(operation, shape, device, needs or Needs(), table or packaged())


@lru_cache(maxsize=4096)
def _choose(operation: str, shape: Shape, device: Device, needs: Needs, table: Table) -> Choice:
    if device.kind != "cuda":
        return ON_A_CPU
    refusals = {known: known.refusal(shape, device, needs) for known in OPERATIONS[operation]}
    able = [known for known, refusal in refusals.items() if refusal is None and not known.comparison]
    if not able:
        lacks = "; ".join(f"{known.name}: {refusal or 'for comparison only'}" for known, refusal in refusals.items())
        raise ValueError(f"no implementation of {operation} can serve {shape} on {device.name}: {lacks}")
    names = {known.name for known in able}
    near = (
        []
        if needs.gradients
        else [e for e in _comparable(operation, shape, device, table) if names & {*e.microseconds}]
    )
    if not near:
        return _by_rule(operation, able[0], refusals, needs)
    entry = min(near, key=lambda e: (_distance(e, shape), e.key))
    times = sorted((time.median, name) for name, time in entry.microseconds.items() if name in names)
    told = ", ".join(f"{name} {median:,.1f} us" for median, name in times)
    exact = _distance(entry, shape) == 0
    found = "measured on this GPU" if exact else f"{shape} was not measured; nearest on this GPU"
    return Choice(times[0][1], f"{found}: {told} at {_class(entry)}, {_origin(entry, device)}")


def _comparable(operation: str, shape: Shape, device: Device, table: Table) -> list[Entry]:
    capability = f"{device.capability[0]}.{device.capability[1]}"
    wanted = operation, device.name, capability, shape.dtype, shape.channels, shape.variant
    return [
        e for e in table.entries if (e.operation, e.gpu, e.capability, DTYPES[e.dtype], e.channels, e.variant) == wanted
    ]


def _distance(entry: Entry, shape: Shape) -> float:
    """Distance between an entry and a shape in rows, heads and segments, in powers of two; 0 in the same class."""
    pairs = (entry.rows, row_class(shape.rows)), (entry.heads, shape.heads), (entry.segments, shape.segments)
    return sum(abs(math.log2(max(a, 1) / max(b, 1))) for a, b in pairs)


def _by_rule(operation: str, first: Implementation, refusals: dict[Implementation, str | None], needs: Needs) -> Choice:
    why = "times with gradients are not in the table" if needs.gradients else "not measured on this GPU"
    if first.name == "vino":
        return Choice("vino", f"{why}: our kernel is taken because {WHY_OURS[operation]}")
    ours = next(refusal for known, refusal in refusals.items() if known.name == "vino")
    return Choice(first.name, f"{why}: PyTorch's operations are taken because our kernel cannot serve: {ours}")


def _class(entry: Entry) -> str:
    return f"about {entry.rows:,} rows, {count(entry.heads, 'head')}, {count(entry.segments, 'segment')}"


def _origin(entry: Entry, device: Device) -> str:
    here = dict(device.versions)
    other = [f"{name} {v} (here {here[name]})" for name, v in entry.versions.items() if here.get(name, v) != v]
    return f"commit {entry.commit[:SHOWN_COMMIT]}" + (f", with {', '.join(other)}" if other else "")
