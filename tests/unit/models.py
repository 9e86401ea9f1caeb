"""Requests, references and values that several test files share; the fixtures made from them stand in conftest."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from vino_kernels.int8_attention import missing_instructions
from vino_rt.backends.recipe import Recipe
from vino_rt.backends.store import Manifest, Store
from vino_rt.build import BuildProgress
from vino_rt.request import Pixels, Reference, Request
from vino_rt.runtime import Runtime

AREA, SIZE = 48 * 64, (64, 48)
"""Pixels and default width and height of the golden pipelines."""
COMPILER = shutil.which("g++") or shutil.which("clang++")
RUNS_INT8_ATTENTION = pytest.mark.skipif(
    bool(missing_instructions()) or COMPILER is None, reason="needs AVX-512 VNNI and a C++ compiler"
)
BOTH = pytest.mark.parametrize("recipe", ["cpu", "eager"])
COMPILES = pytest.mark.compiles
"""For tests that use `compiled`: whichever comes first compiles, a minute or two on two idle cores."""
EVERY = pytest.mark.parametrize("recipe", ["cpu", "eager", pytest.param("aotinductor", marks=COMPILES)])
Get = Callable[[str], Runtime]


@dataclass(frozen=True)
class Built:
    """A store with the engines of one recipe, and what was told while they were built."""

    store: Store
    recipe: Recipe
    manifests: tuple[Manifest, ...]
    progress: tuple[BuildProgress, ...]


def noise(*shape: int) -> Pixels:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


HAT, MAN = Reference.image(noise(53, 71, 3)), Reference.image(noise(90, 41, 3))
CLIP = Reference.video(noise(9, 50, 67, 3), fps=12.5)


def ask(*references: Reference, **changes: Any) -> Request:
    return Request(**{"prompt": "a hat", "references": references, "seed": 5, "steps": 2, **changes})


VIDEO = ask(frames=5, size=(32, 16))
