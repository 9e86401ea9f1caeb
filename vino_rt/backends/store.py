"""The engine store: one directory per engine, named by its key and written atomically; knows no library.

    <store>/<kind>-<hash of the key>/manifest.json      key, tensors, bytes, measured error and its bound
                                     engine.*           the artefact, and what its backend keeps beside it

Several processes may share a store: a writer works in a scratch directory and renames it into place.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from vino_rt.errors import EngineError, EngineMismatch, EngineMissing

MANIFEST = "manifest.json"
SCRATCH = ".building-"
STALE_SECONDS = 24 * 3600.0
PLACE_ATTEMPTS = 3
"""Tries to move an engine into place: another process may do so between our removal of a damaged one and our rename."""


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """Everything that changes an engine; two engines are interchangeable exactly when their keys are equal."""

    kind: str
    family: str
    config_hash: str
    bucket: str
    """`dynamic`, or all shapes that the engine was built for."""
    backend: str
    precision: str
    device: str
    capability: str
    """Compute capability of a GPU; the processor architecture of a CPU."""
    driver: str
    cuda: str
    torch_version: str
    backend_version: str
    kernels_version: str
    flags: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 over all fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def directory(self) -> str:
        """Name of the engine's directory in a store."""
        return f"{self.kind}-{self.digest}"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What the store records about one engine."""

    key: EngineKey
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    artefact: str
    bytes: int
    sha256: str
    error: float
    """Largest absolute difference from the float64 reference over all verification inputs."""
    bound: float
    """The bound that `error` had to meet, see `vino_export.verify`."""
    verified_on: str
    """Weights hash of the model whose weights the error was measured with."""
    build_seconds: float
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further facts from the backend, such as a plan's layers."""
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of every file beside the manifest, by name; filled in by `Store.put`."""


@dataclass(frozen=True)
class Store:
    """A directory of engines; the first `put` creates it if need be."""

    path: Path

    def find(self, key: EngineKey) -> tuple[Manifest, Path]:
        """Manifest and path of the artefact of the engine with exactly this key.

        Raises EngineMissing if there is none, EngineMismatch naming the fields that differ if there are only engines
        of this kind for another model, machine or version, EngineError if its files are damaged.
        """
        directory = self.path / key.directory
        if not (directory / MANIFEST).is_file():
            raise self._absent(key)
        manifest = read_manifest(directory)
        if manifest.key != key:
            raise EngineMismatch(f"{directory}: its manifest is for another key: {differences(key, manifest.key)}")
        for name, written in manifest.files.items():
            file = directory / name
            if _hash_or_none(file) != written:
                raise EngineError(
                    f"{file} is damaged (missing, unreadable, truncated or changed); delete {directory} and build again"
                )
        return manifest, directory / manifest.artefact

    def put(self, make: Callable[[Path], Manifest]) -> Manifest:
        """Call `make` with a scratch directory to write an artefact into, then move it into place.

        `make` returns the manifest. If it raises, the store is unchanged. If another process has stored the same key
        meanwhile, that engine stays and its manifest is returned. Raises EngineError if the store cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._sweep()
            scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=self.path))
        except OSError as error:
            raise EngineError(
                f"engine store {self.path} cannot be written: {error}; name another with --store"
            ) from error
        try:
            manifest = make(scratch)
            manifest = replace(manifest, files={file.name: file_hash(file) for file in sorted(scratch.iterdir())})
            (scratch / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1))
            return self._place(scratch, manifest)
        except OSError as error:
            raise EngineError(
                f"engine store {self.path}: {error}; make room there or name another with --store"
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def manifests(self) -> Iterator[tuple[Path, Manifest]]:
        """Yield directory and manifest of every readable engine, sorted by name; unreadable ones are skipped."""
        for directory in sorted(self.path.glob("*-*")) if self.path.is_dir() else []:
            if (directory / MANIFEST).is_file() and not directory.name.startswith("."):
                with contextlib.suppress(EngineError):
                    yield directory, read_manifest(directory)

    def _sweep(self) -> None:
        """Remove scratch directories of killed builders: those that nobody has touched for a day."""
        for scratch in self.path.glob(f"{SCRATCH}*"):
            # It may be gone: its builder may have moved it into place since it was listed.
            with contextlib.suppress(FileNotFoundError):
                if time.time() - scratch.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(scratch, ignore_errors=True)

    def _place(self, scratch: Path, manifest: Manifest) -> Manifest:
        """Rename a finished scratch directory into place and return the manifest of the engine that is there then."""
        for file in scratch.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        scratch.chmod(0o755)
        target = self.path / manifest.key.directory
        for _ in range(PLACE_ATTEMPTS):
            try:
                scratch.rename(target)
                return manifest
            except OSError:
                if not target.exists():
                    raise
            with contextlib.suppress(EngineError):
                return self.find(manifest.key)[0]
            shutil.rmtree(target, ignore_errors=True)
        raise EngineError(f"{target} is damaged and cannot be replaced; delete it and build again")

    def _absent(self, key: EngineKey) -> EngineMissing | EngineMismatch:
        others = [m.key for _, m in self.manifests() if m.key.kind == key.kind and m.key.backend == key.backend]
        if not others:
            return EngineMissing(f"no engine for kind {key.kind!r} in store {self.path}")
        nearest = min((differences(key, other) for other in others), key=len)
        listed = "; ".join(nearest)
        return EngineMismatch(f"store {self.path} has an engine for kind {key.kind!r}, but not this one: {listed}")


def default_store() -> Store:
    """`engines/store` of the checkout the package is run from, else the user's cache directory."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "engines" / "recipes").is_dir() and (checkout / "pyproject.toml").is_file():
        return Store(checkout / "engines" / "store")
    # Imported here: programs that name their store do not need this package.
    import platformdirs

    return Store(Path(platformdirs.user_cache_dir("vino-rt")) / "engines")


def differences(wanted: EngineKey, found: EngineKey) -> list[str]:
    """One phrase for each field in which two keys differ, with both values."""
    pairs = ((f.name, getattr(wanted, f.name), getattr(found, f.name)) for f in fields(EngineKey))
    return [f"{name} is {b!r}, needed {a!r}" for name, a, b in pairs if a != b]


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of an engine's directory; EngineError if it is damaged."""
    try:
        data: dict[str, Any] = json.loads((directory / MANIFEST).read_text())
        key = EngineKey(**_with_tuples(data.pop("key")))
        manifest = Manifest(key=key, **_with_tuples(data))
        numbers = (manifest.error, manifest.bound, manifest.bytes, manifest.build_seconds)
        if not all(isinstance(number, int | float) for number in numbers):
            raise ValueError(f"error, bound, bytes and build_seconds are {numbers}, expected numbers")
        if Path(manifest.artefact).name != manifest.artefact:
            raise ValueError(f"its artefact {manifest.artefact!r} lies elsewhere")
        if manifest.files.get(manifest.artefact) != manifest.sha256:
            raise ValueError("the hashes of its files are missing or contradict each other")
        if strange := [name for name in manifest.files if Path(name).name != name]:
            raise ValueError(f"its files {strange} lie elsewhere")
        return manifest
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise EngineError(
            f"{directory / MANIFEST} cannot be read ({error}); delete {directory} and build again"
        ) from error


def _with_tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}


def _hash_or_none(path: Path) -> str | None:
    """`file_hash`, or None if the file is missing or unreadable."""
    try:
        return file_hash(path)
    except OSError:
        return None


def file_hash(path: Path) -> str:
    """SHA-256 of a file in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
