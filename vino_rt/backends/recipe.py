"""Recipes: which backend runs which engine kind on which machine; read from TOML, no library is touched."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vino_rt.backends.aotinductor import AotInductorBackend
from vino_rt.backends.base import CPU, Backend
from vino_rt.backends.eager import EagerBackend
from vino_rt.backends.onnxruntime import OnnxRuntimeBackend
from vino_rt.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend
from vino_rt.backends.onnxruntime_tensorrt import OnnxRuntimeTensorRtBackend
from vino_rt.backends.tensorrt.backend import TensorRtBackend
from vino_rt.backends.tensorrt.dynamo import TorchTensorRtBackend
from vino_rt.backends.triton import TritonBackend
from vino_rt.bucket import Bucket
from vino_rt.errors import EngineError, InputError

FIELDS: Mapping[str, type] = {
    "description": str, "device": str, "precision": str, "backend": str, "kinds": dict, "precisions": dict,
    "bucket": list, "pack_rows": int, "pad_text": int, "cuda_graphs": bool, "variant": str,
    "max_autotune": bool,
}  # fmt: skip
EXPECTED: Mapping[type, str] = {
    str: "a text",
    dict: "a table",
    list: "an array of tables",
    int: "a whole number",
    bool: "true or false",
}
LIKE = "like"
"""Field of a file that takes every field it does not name, a table as a whole, from the shipped recipe of this name."""
OPTIONAL = frozenset(
    {"kinds", "precisions", "bucket", "pack_rows", "pad_text", "cuda_graphs", "variant", "max_autotune"}
)
BACKENDS: Mapping[str, Callable[[int | None, torch.device, bool], Backend]] = {
    "eager": lambda _, device, __: EagerBackend(device),
    "onnxruntime": lambda threads, device, _: (
        OnnxRuntimeBackend(threads) if device.type == "cpu" else OnnxRuntimeCudaBackend(device)
    ),
    "onnxruntime-tensorrt": lambda _, device, __: OnnxRuntimeTensorRtBackend(device),
    "aotinductor": lambda threads, device, search: AotInductorBackend(threads, device, max_autotune=search),
    "triton": lambda _, device, __: TritonBackend(device),
    # A whole step is recorded, so that engines record nothing themselves.
    "tensorrt": lambda _, device, __: TensorRtBackend(device, graphs=False),
    "torch-tensorrt": lambda _, device, __: TorchTensorRtBackend(device, graphs=False),
}
"""By name, what makes a backend: that computes with so many threads (the reference follows torch's own number), on a
device, with packages that were built with or without `max_autotune`.
"""
VARIANTS = ("native", "plugin")
SUPPORTED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "eager": {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "bfloat16")},
    "onnxruntime": {"cpu": ("float32", "int8", "int8-attention"), "cuda": ("float32", "bfloat16")},
    "onnxruntime-tensorrt": {"cuda": ("float32", "bfloat16")},
    "aotinductor": {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "bfloat16")},
    "triton": {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "bfloat16")},
    "tensorrt": {"cuda": ("float32", "bfloat16")},
    "torch-tensorrt": {"cuda": ("float32", "bfloat16")},
}
"""Backend -> device -> precisions that it runs there."""


@dataclass(frozen=True)
class Recipe:
    """What to build for a machine and what runs it."""

    name: str
    description: str
    device: str
    """`cpu` or `cuda`."""
    precision: str
    """Precision of every kind that `precisions` does not name."""
    backend: str
    """Backend of every kind that `kinds` does not name."""
    kinds: Mapping[str, str]
    """Exceptions: engine kind -> backend."""
    precisions: Mapping[str, str]
    """Exceptions: engine kind -> precision."""
    buckets: tuple[Bucket, ...]
    """Shapes that engines are built for; empty when the engines take any."""
    pack_rows: int | None = None
    """Guidance branches share a sequence up to this many rows; None: always all of them."""
    pad_text: int = 1
    """Where there are no buckets, text rows are padded to a multiple of this, so that prompts share recorded steps."""
    cuda_graphs: bool = True
    """Whether a step on a CUDA device is recorded and replayed; without, every operation is launched from the host."""
    variant: str = "native"
    """What TensorRT computes the hot operations with: its own layers, or our kernels as `plugin`."""
    max_autotune: bool = False
    """Whether AOTInductor times several kernels for each product while it builds and keeps the fastest."""

    def backend_of(self, kind: str) -> str:
        """Name of the backend that runs a kind."""
        return self.kinds.get(kind, self.backend)

    def precision_of(self, kind: str) -> str:
        """Name of the precision that a kind computes in."""
        return self.precisions.get(kind, self.precision)

    @property
    def place(self) -> torch.device:
        """Where the engines run; EngineError where PyTorch sees no CUDA device for a recipe that needs one."""
        if self.device == "cpu":
            return CPU
        if not torch.cuda.is_available():
            raise EngineError(
                f"recipe {self.name!r} runs on an NVIDIA GPU and torch {torch.__version__} sees none; look with "
                "nvidia-smi, install a build of torch with CUDA, or take a recipe for the CPU"
            )
        return torch.device("cuda", torch.cuda.current_device())


def recipe_dir() -> Path:
    """Where the shipped recipes lie: inside the installed package, or in the checkout it is run from."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "engines" / "recipes"


def load_recipe(name: str | Path) -> Recipe:
    """Read a recipe by its name or from a TOML file; EngineError names what is missing, unknown or not supported."""
    path = Path(name) if Path(name).suffix == ".toml" else _shipped(str(name))
    return _parse(path, _read(path))


def _shipped(name: str) -> Path:
    known = sorted(p.stem for p in recipe_dir().glob("*.toml"))
    if name not in known:
        raise EngineError(f"no recipe named {name!r}; shipped recipes are {known}, or name a .toml file")
    return recipe_dir() / f"{name}.toml"


def _read(path: Path) -> Mapping[str, Any]:
    """The fields of a recipe file, with those it does not name of the shipped recipe that it is `like`."""
    try:
        data = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise EngineError(f"recipe {path}: {error}; name a shipped recipe or a .toml file") from error
    if LIKE not in data:
        return data
    base = data.pop(LIKE)
    if not isinstance(base, str):
        raise EngineError(f"recipe {path}: {LIKE} is {base!r}, expected the name of a shipped recipe")
    fields = tomllib.loads(_shipped(base).read_text())
    if LIKE in fields:
        # One step, so that two files always say all there is to know.
        raise EngineError(f"recipe {path}: {LIKE} is {base!r}, itself like {fields[LIKE]!r}: name that one")
    return {**fields, **data}


def _check_fields(path: Path, data: Mapping[str, Any]) -> None:
    unknown, missing = sorted(set(data) - set(FIELDS)), sorted(set(FIELDS) - OPTIONAL - set(data))
    if unknown or missing:
        raise EngineError(
            f"recipe {path}: missing fields {missing}, unknown fields {unknown}; a recipe has "
            f"{', '.join(FIELDS)}, or {LIKE} and those that differ"
        )
    for name, value in data.items():
        wrong = not isinstance(value, FIELDS[name]) or isinstance(value, bool) != (FIELDS[name] is bool)
        if wrong or (name == "bucket" and not all(isinstance(b, dict) for b in value)):
            raise EngineError(f"recipe {path}: {name} is {value!r}, expected {EXPECTED[FIELDS[name]]}")
        if FIELDS[name] is int and value < 1:
            raise EngineError(f"recipe {path}: {name} is {value}, expected a whole number of at least 1")
        for kind, exception in value.items() if FIELDS[name] is dict else ():
            if not isinstance(exception, str):
                raise EngineError(f"recipe {path}: {name}.{kind} is {exception!r}, expected a text")
    if data.get("variant", VARIANTS[0]) not in VARIANTS:
        raise EngineError(f"recipe {path}: variant is {data['variant']!r}, expected one of {', '.join(VARIANTS)}")


def _parse(path: Path, data: Mapping[str, Any]) -> Recipe:
    _check_fields(path, data)
    kinds, precisions = dict(data.get("kinds", {})), dict(data.get("precisions", {}))
    for backend in (data["backend"], *kinds.values()):
        if backend not in BACKENDS:
            raise EngineError(f"recipe {path}: no backend named {backend!r}; there are {list(BACKENDS)}")
    recipe = Recipe(
        name=path.stem,
        description=data["description"],
        device=data["device"],
        precision=data["precision"],
        backend=data["backend"],
        kinds=kinds,
        precisions=precisions,
        pack_rows=data.get("pack_rows"),
        pad_text=data.get("pad_text", 1),
        cuda_graphs=data.get("cuda_graphs", True),
        variant=data.get("variant", "native"),
        max_autotune=data.get("max_autotune", False),
        buckets=_buckets(path, data.get("bucket", ())),
    )
    if recipe.max_autotune and AotInductorBackend.name not in (recipe.backend, *kinds.values()):
        raise EngineError(f"recipe {path}: max_autotune is for backend 'aotinductor', which runs no kind here")
    # A kind that neither table names stands for all such; that the names are kinds is checked against a model.
    for kind in ("", *kinds, *precisions):
        _check_supported(path, recipe, kind)
    return recipe


def _check_supported(path: Path, recipe: Recipe, kind: str) -> None:
    backend, precision = recipe.backend_of(kind), recipe.precision_of(kind)
    there = SUPPORTED[backend].get(recipe.device, ())
    if precision not in there:
        what = f"kind {kind!r} on " if kind else ""
        known = "; ".join(f"{device}: {', '.join(found)}" for device, found in SUPPORTED[backend].items())
        raise EngineError(
            f"recipe {path}: {what}backend {backend!r} does not run on device {recipe.device!r} with precision "
            f"{precision!r}; it runs on {known}"
        )


def _buckets(path: Path, tables: Sequence[Mapping[str, Any]]) -> tuple[Bucket, ...]:
    try:
        return tuple(Bucket.from_table(table) for table in tables)
    except InputError as error:
        raise EngineError(f"recipe {path}: {error}") from error


def make_backend(name: str, threads: int | None, device: torch.device = CPU, *, max_autotune: bool = False) -> Backend:
    """The backend object of a name that `load_recipe` accepted, for a device that it supports."""
    return BACKENDS[name](threads, device, max_autotune)
