"""Sources that an import reads tensors from, one at a time: safetensors or torch checkpoints; knows no model family."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from vino_rt.errors import ModelError
from vino_rt.weights import DTYPES, PartWeights, TensorInfo, check_finite, shown

WRAPPERS = ("state_dict", "module")
REOPEN_BYTES = 128_000_000
"""Bytes read from a memory-mapped checkpoint before it is mapped anew, because touched pages count as our memory."""


class TensorSource(Protocol):
    """Named tensors on disk."""

    def names(self) -> tuple[str, ...]:
        """All names, in stored order."""
        ...

    def info(self, name: str) -> TensorInfo:
        """Type and shape."""
        ...

    def read(self, name: str) -> Tensor:
        """The tensor as stored; ModelError when it is not finite."""
        ...


class PickleWeights:
    """A torch checkpoint that maps names to floating-point tensors, read without executing any code in it.

    The mapping may be under a single key `state_dict` or `module`. Not thread-safe.
    """

    def __init__(self, path: Path) -> None:
        """Open a checkpoint; ModelError if it is damaged, in the pre-zip format, or holds anything but such tensors."""
        self.path = path
        self._read_bytes = 0
        self._state = self._map()
        strange = [name for name, value in self._state.items() if not isinstance(name, str) or not _usable(value)]
        if strange:
            raise ModelError(
                f"{path}: {shown(map(str, strange))} are no floating-point tensors; the checkpoint must map names to "
                f"tensors, at most under one key {' or '.join(WRAPPERS)}"
            )
        self._infos = {name: TensorInfo(name, value.dtype, tuple(value.shape)) for name, value in self._state.items()}

    def names(self) -> tuple[str, ...]:
        """All names, in stored order."""
        return tuple(self._infos)

    def info(self, name: str) -> TensorInfo:
        """Type and shape."""
        return self._infos[name]

    def read(self, name: str) -> Tensor:
        """The tensor in its stored dtype, a view of the mapped file; ModelError when it is not finite."""
        if self._read_bytes > REOPEN_BYTES:
            self._state = {}
            self._state, self._read_bytes = self._map(), 0
        tensor: Tensor = self._state[name].detach()
        self._read_bytes += tensor.nbytes
        check_finite(tensor, name, self.path)
        return tensor

    def _map(self) -> dict[str, Any]:
        advice = "it must be written by torch.save (zip format) and hold tensors only"
        try:
            foreign = get_unsafe_globals_in_checkpoint(self.path)
            if foreign:
                raise ModelError(f"{self.path} is not loaded: it asks to run {shown(foreign)}; {advice}")
            state = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, ValueError, LookupError, TypeError, EOFError, UnpicklingError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(f"{self.path} is not a readable checkpoint: {reason}; {advice}") from error
        if isinstance(state, dict) and len(state) == 1 and next(iter(state)) in WRAPPERS:
            state = next(iter(state.values()))
        if not isinstance(state, dict):
            raise ModelError(f"{self.path} holds a {type(state).__name__}, expected a mapping of names to tensors")
        return state


def open_source(path: Path) -> TensorSource:
    """Open a `.safetensors` file, an index of shards, a torch checkpoint, or a directory with exactly one of them.

    Raises ModelError when there is none, or more than one in a directory.
    """
    if path.is_dir():
        path = _only_file(path)
    if not path.is_file():
        raise ModelError(f"{path} is missing; name the checkpoint file or the directory it lies in")
    if path.name.endswith((".safetensors", ".safetensors.index.json")):
        return PartWeights(path)
    return PickleWeights(path)


def _only_file(directory: Path) -> Path:
    patterns = ("*.safetensors.index.json", "*.safetensors", "*.ckpt")
    for pattern in patterns:
        found = sorted(directory.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise ModelError(f"{directory} holds {shown(file.name for file in found)}; name one of the files")
    raise ModelError(f"{directory} holds no file {', '.join(patterns)}; name the checkpoint file")


def _usable(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and value.dtype in DTYPES.values()
