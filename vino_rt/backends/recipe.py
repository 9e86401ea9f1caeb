"""Recipes: which backend runs which engine kind on which machine; read from TOML, no library is touched."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch

from vino_rt.backends.aotinductor import AotInductorBackend
from vino_rt.backends.base import CPU, Backend, BackendOptions
from vino_rt.backends.eager import EagerBackend
from vino_rt.backends.onnxruntime import OnnxRuntimeBackend
from vino_rt.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend
from vino_rt.backends.onnxruntime_tensorrt import OnnxRuntimeTensorRtBackend
from vino_rt.backends.tensorrt.backend import TensorRtBackend
from vino_rt.backends.tensorrt.dynamo import TorchTensorRtBackend
from vino_rt.backends.triton import TritonBackend
from vino_rt.bucket import Bucket
from vino_rt.errors import EngineError, InputError, reason

DEFAULT_RECIPE = "cpu"
LIKE = "like"
"""Field of a file that takes every field it does not name, a table as a whole, from the shipped recipe of this name."""
BACKENDS: Mapping[str, Mapping[str, type[Backend]]] = {
    "eager": {"cpu": EagerBackend, "cuda": EagerBackend},
    "onnxruntime": {"cpu": OnnxRuntimeBackend, "cuda": OnnxRuntimeCudaBackend},
    "onnxruntime-tensorrt": {"cuda": OnnxRuntimeTensorRtBackend},
    "aotinductor": {"cpu": AotInductorBackend, "cuda": AotInductorBackend},
    "triton": {"cpu": TritonBackend, "cuda": TritonBackend},
    "tensorrt": {"cuda": TensorRtBackend},
    "torch-tensorrt": {"cuda": TorchTensorRtBackend},
}
"""Name of a backend in recipes -> device -> the class that runs it there."""
VARIANTS = ("native", "plugin")


@dataclass(frozen=True)
class Recipe:
    """What to build for a machine and what runs it. Its fields are those of a recipe file, except for name and file."""

    name: str
    """File name without its suffix."""
    description: str
    device: str
    """`cpu` or `cuda`."""
    precision: str
    """Precision of every kind that `precisions` does not name."""
    backend: str
    """Backend of every kind that `kinds` does not name."""
    kinds: Mapping[str, str] = field(default_factory=dict)
    """Exceptions: engine kind -> backend."""
    precisions: Mapping[str, str] = field(default_factory=dict)
    """Exceptions: engine kind -> precision."""
    buckets: tuple[Bucket, ...] = ()
    """Shapes that engines are built for, tables `[[bucket]]` of the file; empty when the engines take any."""
    pack_rows: int | None = None
    """Guidance branches share a sequence up to this many rows; None: always all of them."""
    pad_text: tuple[int, ...] = ()
    """Rows of text per branch that prompts are padded to if there are no buckets, so that they share recorded steps.

    A prompt is padded to the smallest that holds it, a longer one to a multiple of the largest; empty: no padding.
    """
    cuda_graphs: bool = True
    """Whether a step on a CUDA device is recorded and replayed; without, every operation is launched from the host."""
    variant: str = "native"
    """What TensorRT computes the hot operations with: its own layers, or our kernels as `plugin`."""
    offload: tuple[str, ...] = ()
    """Kinds whose weights stay in host memory and are copied to the GPU for each run; only kinds that PyTorch runs."""
    max_autotune: bool = False
    """Whether AOTInductor times several kernels for each product while it builds and keeps the fastest."""

    file: str = field(default="", compare=False)
    """The file that was named, for messages; empty for a shipped recipe."""

    def backend_of(self, kind: str) -> str:
        """Name of the backend that runs a kind."""
        return self.kinds.get(kind, self.backend)

    def backend_class(self, kind: str) -> type[Backend]:
        """The class of that backend on the recipe's device."""
        return BACKENDS[self.backend_of(kind)][self.device]

    def precision_of(self, kind: str) -> str:
        """Name of the precision that a kind computes in."""
        return self.precisions.get(kind, self.precision)

    @property
    def torch_device(self) -> torch.device:
        """Where the engines run; EngineError where PyTorch sees no CUDA device for a recipe that needs one."""
        if self.device == "cpu":
            return CPU
        if not torch.cuda.is_available():
            raise EngineError(
                f"recipe {self.name!r} runs on an NVIDIA GPU and torch {torch.__version__} sees none; look with "
                "nvidia-smi, install a build of torch with CUDA, or take a recipe for the CPU"
            )
        return torch.device("cuda", torch.cuda.current_device())


FILE_TYPES: Mapping[Any, tuple[type, str]] = {
    str: (str, "a text"),
    Mapping[str, str]: (dict, "a table"),
    tuple[Bucket, ...]: (list, "an array of tables"),
    tuple[int, ...]: (list, "an array of whole numbers of at least 1"),
    tuple[str, ...]: (list, "an array of texts"),
    int: (int, "a whole number"),
    int | None: (int, "a whole number"),
    bool: (bool, "true or false"),
}
"""Type of a recipe's field -> the type that TOML gives it, and what to call that."""
BUCKET = "bucket"
"""Name of `Recipe.buckets` in a file, where each is a table."""
FIELDS: Mapping[str, tuple[type, str]] = {
    BUCKET if name == "buckets" else name: FILE_TYPES[hint] for name, hint in get_type_hints(Recipe).items()
    if name not in ("name", "file")
}  # fmt: skip
ENTRIES: Mapping[str, type] = {BUCKET: dict, "offload": str}
"""Type of what an array holds; whole numbers from 1 where it is not here."""
REQUIRED = frozenset(f.name for f in fields(Recipe) if f.default is MISSING and f.default_factory is MISSING) - {"name"}


def recipe_dir() -> Path:
    """Where the shipped recipes lie: inside the installed package, or in the checkout it is run from."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "engines" / "recipes"


def load_recipe(name: str | Path) -> Recipe:
    """Read a recipe by its name or from a TOML file; EngineError names what is missing, unknown or not supported."""
    if Path(name).suffix == ".toml":
        return replace(_parse(Path(name), _read(Path(name))), file=str(name))
    path = _shipped(str(name))
    return _parse(path, _read(path))


def _shipped(name: str) -> Path:
    known = sorted(p.stem for p in recipe_dir().glob("*.toml"))
    if name not in known:
        raise EngineError(f"no recipe named {name!r}; shipped recipes are {', '.join(known)}; or name a .toml file")
    return recipe_dir() / f"{name}.toml"


def _read(path: Path) -> Mapping[str, Any]:
    """The fields of a recipe file, with those it does not name of the shipped recipe that it is `like`."""
    try:
        data = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise EngineError(f"recipe {path}: {reason(error)}; name a shipped recipe or a .toml file") from error
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
    unknown, missing = sorted(set(data) - set(FIELDS)), sorted(REQUIRED - set(data))
    if unknown or missing:
        wrong_names = (("missing", missing), ("unknown", unknown))
        told = ", ".join(f"{what} fields: {', '.join(names)}" for what, names in wrong_names if names)
        raise EngineError(f"recipe {path}: {told}; a recipe has {', '.join(FIELDS)}, or {LIKE} and those that differ")
    for name, value in data.items():
        kind, expected = FIELDS[name]
        wrong = not isinstance(value, kind) or isinstance(value, bool) != (kind is bool)
        if wrong or (kind is list and not all(_legal_entry(name, entry) for entry in value)):
            raise EngineError(f"recipe {path}: {name} is {value!r}, expected {expected}")
        if kind is int and value < 1:
            raise EngineError(f"recipe {path}: {name} is {value}, expected a whole number of at least 1")
        for engine, exception in value.items() if kind is dict else ():
            if not isinstance(exception, str):
                raise EngineError(f"recipe {path}: {name}.{engine} is {exception!r}, expected a text")
    if data.get("variant", VARIANTS[0]) not in VARIANTS:
        raise EngineError(f"recipe {path}: variant is {data['variant']!r}, expected one of {', '.join(VARIANTS)}")


def _legal_entry(name: str, entry: object) -> bool:
    if name in ENTRIES:
        return type(entry) is ENTRIES[name]
    return type(entry) is int and entry > 0


def _parse(path: Path, data: Mapping[str, Any]) -> Recipe:
    _check_fields(path, data)
    kinds, precisions = data.get("kinds", {}), data.get("precisions", {})
    for backend in (data["backend"], *kinds.values()):
        if backend not in BACKENDS:
            raise EngineError(f"recipe {path}: no backend named {backend!r}; there are {', '.join(BACKENDS)}")
    given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items() if name != BUCKET}
    recipe = Recipe(name=path.stem, buckets=_buckets(path, data.get(BUCKET, ())), **given)
    if recipe.max_autotune and AotInductorBackend.name not in (recipe.backend, *kinds.values()):
        raise EngineError(f"recipe {path}: max_autotune is for backend 'aotinductor', which runs no kind here")
    _check_offload(path, recipe)
    # The empty name stands for every kind that neither table names; names are checked against a model when one is open.
    for kind in ("", *kinds, *precisions):
        _check_supported(path, recipe, kind)
    return recipe


def _check_offload(path: Path, recipe: Recipe) -> None:
    if recipe.offload and recipe.device == "cpu":
        raise EngineError(f"recipe {path}: offload is for GPUs; on device 'cpu' all weights are in host memory")
    for kind in recipe.offload:
        if not recipe.backend_class(kind).offloads:
            able = ", ".join(repr(name) for name, found in BACKENDS.items() if found[recipe.device].offloads)
            raise EngineError(
                f"recipe {path}: offload names kind {kind!r} of backend {recipe.backend_of(kind)!r}, whose engines "
                f"keep their weights on the GPU; those of {able} need not: name one under [kinds]"
            )


def _check_supported(path: Path, recipe: Recipe, kind: str) -> None:
    name, precision = recipe.backend_of(kind), recipe.precision_of(kind)
    classes = BACKENDS[name]
    if recipe.device not in classes or precision not in classes[recipe.device].precisions:
        what = f"kind {kind!r} on " if kind else ""
        known = "; ".join(f"{device}: {', '.join(found.precisions)}" for device, found in classes.items())
        raise EngineError(
            f"recipe {path}: {what}backend {name!r} does not run on device {recipe.device!r} with precision "
            f"{precision!r}; it runs on {known}"
        )


def _buckets(path: Path, tables: Sequence[Mapping[str, Any]]) -> tuple[Bucket, ...]:
    try:
        return tuple(Bucket.from_table(table) for table in tables)
    except InputError as error:
        raise EngineError(f"recipe {path}: {error}") from error


def make_backend(name: str, threads: int | None, device: torch.device = CPU, *, max_autotune: bool = False) -> Backend:
    """The backend of a name that `load_recipe` accepted, for a device that it supports."""
    return BACKENDS[name][device.type].create(BackendOptions(device, threads, max_autotune))
