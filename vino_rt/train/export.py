"""A trained part put into a model directory beside the parts it was trained with; knows no training."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vino_rt.config import read_json
from vino_rt.model_dir import PARTS, ModelDir
from vino_rt.model_draft import Draft, new_model_dir
from vino_rt.weight_writer import CHUNK, write_file, write_part
from vino_rt.weights import TensorInfo

Tensors = Mapping[str, Tensor]
Precision = Literal["float32", "bfloat16"]
"""Element type of exported weights, by the name that a stage gives it."""


def export_model(
    source: ModelDir,
    out: Path,
    parts: Mapping[str, Tensors],
    *,
    dtype: torch.dtype = torch.float32,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
) -> ModelDir:
    """Write `source` to `out` with the weights of some parts replaced, and open it.

    parts: name of a part to all its tensors, written as `dtype`; configs: fields of a part's config.json to change.
    What is not named is copied byte for byte. An earlier model directory at `out` is replaced. Raises OutputError when
    it cannot be written and ModelError when the tensors are not those of the part.
    """
    with new_model_dir(out, source.settings, overwrite=True) as draft:
        for part in PARTS:
            config = {**read_json(source.path / part / "config.json"), **(configs or {}).get(part, {})}
            draft.write_json(part, "config.json", config)
            if part in parts:
                _write_weights(draft, part, parts[part], dtype)
            _copy_files(source, draft, part, weights=part not in parts)
    return ModelDir.open(out)


def _write_weights(draft: Draft, part: str, tensors: Tensors, dtype: torch.dtype) -> None:
    infos = [TensorInfo(name, dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    stream = ((name, tensor.detach().to("cpu", dtype)) for name, tensor in tensors.items())
    draft.add(part, write_part(draft.part(part), infos, stream))


def _copy_files(source: ModelDir, draft: Draft, part: str, *, weights: bool) -> None:
    """Every other file of a part: tokenizer and processors, and the weights unless they were written anew."""
    for name in source.files:
        owner, _, inner = name.partition("/")
        if owner != part or inner == "config.json" or (".safetensors" in inner and not weights):
            continue
        draft.add(part, {inner: write_file(draft.part(part) / inner, _pieces(source.path / name))})


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            yield piece
