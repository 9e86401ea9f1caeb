"""Launch kernels that were compiled ahead of time, without Triton and without a compiler.

All files are read, checked and loaded when a `Library` is opened; a launch checks and packs its arguments and calls the
driver once. It knows no operation: the manifest describes each kernel's arguments.
"""

import hashlib
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from vino_kernels.ahead.driver import Context, Driver, bindings, call
from vino_kernels.ahead.manifest import NAME, Entry, Manifest, read_json
from vino_kernels.ahead.pack import Parameters, Value, bound, packed, programs

FREE_SHARED = 48 * 1024
"""Bytes of dynamic shared memory that a launch may use without setting a function attribute."""
WARP = 32


@dataclass(frozen=True)
class Loaded:
    """A kernel that is loaded on the GPU."""

    entry: Entry
    module: Any = field(repr=False)
    function: Any = field(repr=False)


class Library:
    """The kernels of one directory, loaded for one GPU; thread-safe; a context manager.

    `Library.open` loads them, `launch` runs one, `close` unloads them; a launch after that raises RuntimeError.
    """

    def __init__(self, driver: Driver, device: torch.device, context: Context) -> None:
        """A library without kernels; use `Library.open`."""
        self.device = device
        self._driver = driver
        self._context = context
        self._kernels: dict[str, Loaded] = {}
        self._lock = threading.Lock()
        self._open = True

    @classmethod
    def open(cls, folder: Path, device: torch.device, driver: Driver | None = None) -> "Library":
        """Load every kernel of `folder` that was compiled for the architecture of `device`.

        driver: None for `cuda.bindings.driver`.
        Raises FileNotFoundError for a missing manifest or cubin; ValueError for a device that is not a GPU, a manifest
        of another format, a cubin whose hash differs from the manifest's, or an architecture without cubins;
        ModuleNotFoundError without cuda-python; CudaError if the driver fails.
        """
        if device.type != "cuda":
            raise ValueError(f"{device} is no GPU; compiled kernels run on CUDA devices only")
        manifest = read_json(folder / NAME)
        driver = bindings() if driver is None else driver
        ordinal = torch.cuda.current_device() if device.index is None else device.index
        library = cls(driver, torch.device("cuda", ordinal), Context(driver, ordinal))
        try:
            library._load(folder, manifest)
        except BaseException:
            library.close()
            raise
        return library

    def _load(self, folder: Path, manifest: Manifest) -> None:
        arch = self._context.arch()
        entries = [entry for entry in manifest.entries if entry.variant.arch == arch]
        if not entries:
            there = ", ".join(f"sm_{other}" for other in manifest.archs) or "none"
            raise ValueError(f"{self._context.name} is sm_{arch}; {folder} holds {there}: build with --arch sm_{arch}")
        cubins = [(_checked(entry), _read(folder, entry)) for entry in entries]
        with self._context.current():
            for entry, cubin in cubins:
                doing = f"loading {entry.variant.name}"
                module = call(self._driver, doing, "cuModuleLoadData", cubin)
                self._kernels[entry.variant.name] = Loaded(entry, module, None)
                function = call(self._driver, doing, "cuModuleGetFunction", module, entry.made.symbol.encode())
                if entry.made.used.dynamic_shared > FREE_SHARED:
                    most = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                    shared = entry.made.used.dynamic_shared
                    doing = f"asking for {shared} bytes of shared memory for {entry.variant.name}"
                    call(self._driver, doing, "cuFuncSetAttribute", function, most, shared)
                self._kernels[entry.variant.name] = Loaded(entry, module, function)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the loaded kernels."""
        return tuple(self._kernels)

    def launch(self, name: str, /, *, stream: int | None = None, **values: Value) -> None:
        """Launch a kernel asynchronously on a stream, with tensors and numbers by argument name.

        stream: handle of a CUDA stream; None: PyTorch's current one. Numbers that follow from the shapes may be left
        out. Nothing is launched if the grid is empty. The tensors must stay alive until the stream has run the kernel.
        Raises KeyError for an unknown kernel, TypeError and ValueError for arguments that do not fit, CudaError, and
        RuntimeError after `close`.
        """
        if name not in self._kernels and self._open:
            raise KeyError(f"{name} is not loaded; there are {', '.join(self.names)}")
        if stream is None:
            stream = torch.cuda.current_stream(self.device).cuda_stream
        with self._lock:
            if not self._open:
                raise RuntimeError(f"{name}: the library was closed")
            loaded = self._kernels[name]
            self._run(loaded, stream, values)

    def _run(self, loaded: Loaded, stream: int, values: dict[str, Value]) -> None:
        entry, variant = loaded.entry, loaded.entry.variant
        names = bound(variant, self.device, values)
        parameters = Parameters(packed(variant, values, names))
        blocks = programs(variant, names)
        if 0 in blocks:
            return
        shape = (*blocks, WARP * entry.made.warps, 1, 1, entry.made.used.dynamic_shared)
        doing = f"launching {variant.name} with a grid of {blocks}"
        with self._context.current():
            call(self._driver, doing, "cuLaunchKernel", loaded.function, *shape, stream, parameters.address, 0)

    def close(self) -> None:
        """Unload the kernels and release the context; launched kernels must have finished. Idempotent."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            try:
                with self._context.current():
                    for name, loaded in self._kernels.items():
                        call(self._driver, f"unloading {name}", "cuModuleUnload", loaded.module)
            finally:
                self._kernels.clear()
                self._context.release()

    def __enter__(self) -> "Library":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _checked(entry: Entry) -> Entry:
    """The entry; ValueError if this loader cannot launch it."""
    made = entry.made
    extra = {"num_ctas": made.num_ctas - 1, "global_scratch": made.global_scratch, "profile": made.profile_scratch}
    if any(extra.values()):
        raise ValueError(
            f"{entry.variant.name} wants clusters or scratch memory ({extra}), which the loader does not give"
        )
    return entry


def _read(folder: Path, entry: Entry) -> bytes:
    path = folder / entry.file
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, though the manifest names it: build again")
    cubin = path.read_bytes()
    found = hashlib.sha256(cubin).hexdigest()
    if found != entry.sha256:
        raise ValueError(f"{path} has SHA-256 {found}, the manifest says {entry.sha256}: build again")
    return cubin
