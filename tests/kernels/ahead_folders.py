"""Directories as `vino_kernels.ahead` writes them, without compiling: the manifest is right, the cubins are words."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from tests.kernels.ahead_driver import StandIn
from vino_kernels.ahead.manifest import NAME, Entry, Made, Manifest, write_bytes, write_json
from vino_kernels.ahead.resources import Resources
from vino_kernels.ahead.variant import Variant


def cubin_of(variant: Variant) -> bytes:
    """What stands for the cubin of a variant."""
    return f"cubin of {variant.name} for sm_{variant.arch}".encode()


def entry_of(variant: Variant, shared: int = 0) -> Entry:
    """As the compiler would describe the variant; its symbol is its name, so that it is known again at a launch."""
    made = Made(
        symbol=variant.name,
        warps=variant.warps,
        stages=variant.stages or 3,
        num_ctas=1,
        global_scratch=0,
        profile_scratch=0,
        used=Resources(registers=32, spilled=0, static_shared=0, dynamic_shared=shared),
    )
    return Entry(variant, hashlib.sha256(cubin_of(variant)).hexdigest(), made)


def write_folder(folder: Path, variants: Iterable[Variant], shared: int = 0) -> Path:
    """Cubins and manifest of these variants in `folder`, which is returned."""
    entries = tuple(entry_of(variant, shared) for variant in variants)
    for entry in entries:
        write_bytes(folder / entry.file, cubin_of(entry.variant))
    write_json(folder / NAME, Manifest("3.0", {}, {}, entries))
    return folder


def stand_in(variants: Iterable[Variant], arch: int = 90) -> StandIn:
    """A GPU that knows how many parameters these kernels have: their arguments and Triton's two."""
    return StandIn({variant.name: len(variant.arguments) + 2 for variant in variants}, arch)
