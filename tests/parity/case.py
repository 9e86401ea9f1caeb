"""One golden case on disk: its kind, its tensors, what `meta.json` says, and the small release beside it.

It knows the layout of the golden data and nothing of what is computed from it.
"""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vino_rt.errors import VinoError
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.checkpoint import import_release

RELEASE = "e2e_ckpt"


class BrokenCase(VinoError):
    """A case directory that lacks something or holds something unheard of; the message says what."""


@dataclass(frozen=True)
class Case:
    """One directory of golden data."""

    path: Path

    @property
    def name(self) -> str:
        """Name of the directory."""
        return self.path.name

    @property
    def kind(self) -> str:
        """First word of the name."""
        return self.name.partition("_")[0]

    @cached_property
    def meta(self) -> dict[str, Any]:
        """What `meta.json` says; empty where there is none, as beside plain tables."""
        return self.json("meta.json") if (self.path / "meta.json").is_file() else {}

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """Tensors of `inputs.safetensors`, empty when there is none."""
        return self._tensors("inputs.safetensors")

    @cached_property
    def outputs(self) -> dict[str, Tensor]:
        """Tensors of `outputs.safetensors`, empty when there is none."""
        return self._tensors("outputs.safetensors")

    def weights(self) -> dict[str, Tensor]:
        """The case's own weights in float32; empty when it uses those of the release."""
        return {name: tensor.float() for name, tensor in self._tensors("weights.safetensors").items()}

    def json(self, name: str) -> Any:
        """A JSON file of the case; BrokenCase when it is missing or damaged."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BrokenCase(f"cannot read {self.path / name}: {error}") from error

    def input(self, name: str) -> Tensor:
        """An input by name; BrokenCase naming those there are."""
        if name not in self.inputs:
            raise BrokenCase(f"{self.path}: no input {name!r}; there are {sorted(self.inputs)}")
        return self.inputs[name]

    def numbered(self, prefix: str, suffix: str = "") -> list[Tensor]:
        """Inputs `prefix0suffix`, `prefix1suffix`, ... in the order of their numbers."""
        pattern = re.compile(re.escape(prefix) + r"(\d+)" + re.escape(suffix))
        found = {int(match[1]): tensor for name, tensor in self.inputs.items() if (match := pattern.fullmatch(name))}
        if sorted(found) != list(range(len(found))):
            raise BrokenCase(f"{self.path}: inputs {prefix}<i>{suffix} are numbered {sorted(found)}")
        return [found[i] for i in range(len(found))]

    @property
    def release(self) -> Path:
        """The small release beside the case."""
        path = self.path.parent / RELEASE
        if not path.is_dir():
            raise BrokenCase(f"{self.path} uses the weights of {path}, which is not there")
        return path

    def qwen(self) -> Path:
        """The VLM's directory in the release."""
        return release_part(self.release, "vision_config")

    def release_weights(self, prefix: str) -> dict[str, Tensor]:
        """Tensors of the release's VINO checkpoint under a prefix, float32, without the prefix."""
        stored = load_file(self.release / "vino.safetensors")
        found = {k.removeprefix(prefix): v.float() for k, v in stored.items() if k.startswith(prefix)}
        if not found:
            raise BrokenCase(f"{self.release / 'vino.safetensors'} holds no {prefix}*")
        return found

    @contextmanager
    def model(self) -> Iterator[ModelDir]:
        """The release as a model directory of ours, imported for as long as the context lasts."""
        hunyuan = release_part(self.release, "vae")
        with tempfile.TemporaryDirectory(prefix="parity-") as scratch:
            yield import_release(self.release / "vino.safetensors", hunyuan, self.qwen(), Path(scratch) / "model")

    def _tensors(self, name: str) -> dict[str, Tensor]:
        path = self.path / name
        return load_file(path) if path.is_file() else {}


def release_part(release: Path, sign: str) -> Path:
    """The directory of a release that has a directory `sign`, or whose config.json has a field of that name."""
    for path in sorted(release.iterdir()):
        config = path / "config.json"
        if (path / sign).is_dir() or (config.is_file() and sign in json.loads(config.read_text(encoding="utf-8"))):
            return path
    raise BrokenCase(f"{release} has no directory with {sign!r}")


def find_key(data: object, key: str) -> Any:
    """The first value under `key` anywhere in parsed JSON, None when there is none."""
    children: list[Any] = []
    if isinstance(data, Mapping):
        if data.get(key) is not None:
            return data[key]
        children = list(data.values())
    elif isinstance(data, list):
        children = data
    return next((found for child in children if (found := find_key(child, key)) is not None), None)


def flat(rows: object) -> list[int]:
    """`[[3, 7]]` or `[3, 7]` as `[3, 7]`: golden positions come with or without a batch."""
    given = rows if isinstance(rows, list) else []
    return [int(x) for item in given for x in (item if isinstance(item, list) else [item])]


def all_ones(mask: Tensor | None, name: str) -> None:
    """BrokenCase for a mask that hides tokens: the released pipeline never makes one, and ours takes none."""
    if mask is not None and not torch.equal(mask, torch.ones_like(mask)):
        raise BrokenCase(f"input {name!r} hides tokens; only masks of ones are known")
