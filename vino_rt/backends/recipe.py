"""Recipes: which backend runs which engine kind on which machine; read from TOML, no library is touched."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vino_rt.backends.aotinductor import AotInductorBackend
from vino_rt.backends.base import Backend
from vino_rt.backends.eager import EagerBackend
from vino_rt.backends.onnxruntime import OnnxRuntimeBackend
from vino_rt.bucket import Bucket
from vino_rt.errors import EngineError, InputError

FIELDS: Mapping[str, type] = {
    "description": str, "device": str, "precision": str, "backend": str, "kinds": dict, "bucket": list,
    "pack_rows": int,
}  # fmt: skip
EXPECTED: Mapping[type, str] = {str: "a text", dict: "a table", list: "an array of tables", int: "a whole number"}
OPTIONAL = frozenset({"kinds", "bucket", "pack_rows"})
BACKENDS: Mapping[str, Callable[[int | None], Backend]] = {
    "eager": lambda _: EagerBackend(),
    "onnxruntime": OnnxRuntimeBackend,
    "aotinductor": AotInductorBackend,
}
"""By name, what makes a backend that computes with so many threads; the reference follows torch's own number."""


@dataclass(frozen=True)
class Recipe:
    """What to build for a machine and what runs it."""

    name: str
    description: str
    device: str
    precision: str
    backend: str
    """Backend of every kind that `kinds` does not name."""
    kinds: Mapping[str, str]
    """Exceptions: engine kind -> backend."""
    buckets: tuple[Bucket, ...]
    """Shapes that engines are built for; empty when the engines take any."""
    pack_rows: int | None = None
    """Guidance branches share a sequence up to this many rows; None: always all of them."""

    def backend_of(self, kind: str) -> str:
        """Name of the backend that runs a kind."""
        return self.kinds.get(kind, self.backend)


def recipe_dir() -> Path:
    """Where the shipped recipes lie: inside the installed package, or in the checkout it is run from."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "engines" / "recipes"


def load_recipe(name: str | Path) -> Recipe:
    """Read a recipe by its name or from a TOML file; EngineError names what is missing, unknown or not supported."""
    path = Path(name)
    if path.suffix != ".toml":
        known = sorted(p.stem for p in recipe_dir().glob("*.toml"))
        if str(name) not in known:
            raise EngineError(f"no recipe named {str(name)!r}; shipped recipes are {known}, or name a .toml file")
        path = recipe_dir() / f"{name}.toml"
    try:
        data = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise EngineError(f"recipe {path}: {error}; name a shipped recipe or a .toml file") from error
    return _parse(path, data)


def _parse(path: Path, data: Mapping[str, Any]) -> Recipe:
    unknown, missing = sorted(set(data) - set(FIELDS)), sorted(set(FIELDS) - OPTIONAL - set(data))
    if unknown or missing:
        raise EngineError(f"recipe {path}: missing fields {missing}, unknown fields {unknown}")
    for name, value in data.items():
        if not isinstance(value, FIELDS[name]) or (
            name == "bucket" and not all(isinstance(b, dict) for b in data[name])
        ):
            raise EngineError(f"recipe {path}: {name} is {value!r}, expected {EXPECTED[FIELDS[name]]}")
    if data["device"] != "cpu" or data["precision"] != "float32":
        raise EngineError(
            f"recipe {path}: device {data['device']!r} with precision {data['precision']!r} is not supported; "
            "this version runs device 'cpu' with precision 'float32'"
        )
    kinds = dict(data.get("kinds", {}))
    for backend in (data["backend"], *kinds.values()):
        if backend not in BACKENDS:
            raise EngineError(f"recipe {path}: no backend named {backend!r}; there are {list(BACKENDS)}")
    return Recipe(
        name=path.stem,
        description=data["description"],
        device=data["device"],
        precision=data["precision"],
        backend=data["backend"],
        kinds=kinds,
        pack_rows=data.get("pack_rows"),
        buckets=_buckets(path, data.get("bucket", ())),
    )


def _buckets(path: Path, tables: Sequence[Mapping[str, Any]]) -> tuple[Bucket, ...]:
    try:
        return tuple(Bucket.from_table(table) for table in tables)
    except InputError as error:
        raise EngineError(f"recipe {path}: {error}") from error


def make_backend(name: str, threads: int | None) -> Backend:
    """The backend object of a name that `load_recipe` accepted."""
    return BACKENDS[name](threads)
