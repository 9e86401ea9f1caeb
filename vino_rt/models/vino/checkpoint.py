"""Convert the release into our model directory, tensor by tensor; every key must be known.

The release is the VINO checkpoint (`transformer.*`, `mm_encoder.*`), a HunyuanVideo directory (transformer config and
VAE) and a Qwen3-VL directory (MODEL.md section 1). This file knows key names and configs; shapes come from `tables`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vino_rt.config import read_json
from vino_rt.errors import InputError, ModelError
from vino_rt.model_dir import MANIFEST, ModelDir, OnBytes, check_configs
from vino_rt.model_draft import Draft, new_model_dir
from vino_rt.model_settings import ModelSettings
from vino_rt.models.vino.config import TransformerConfig
from vino_rt.models.vino.connector import ConnectorConfig
from vino_rt.models.vino.tables import (
    EMBEDDING,
    LM_HEAD,
    Table,
    connector_table,
    optional_names,
    transformer_table,
    vae_table,
    vlm_table,
)
from vino_rt.models.vino.vae_config import VaeConfig
from vino_rt.request import MAX_SIDE
from vino_rt.settings import check_size
from vino_rt.weight_source import TensorSource, open_source
from vino_rt.weight_writer import check_replaceable, check_space, write_part
from vino_rt.weights import PartWeights, TensorInfo, compare_names, shown

RELEASE_DEFAULTS = Path(__file__).parent / "presets" / "release.json"
VLM_PREFIX = "mm_encoder.mm_encoder."
CONNECTOR_PREFIX = "mm_encoder."
CONNECTOR_KEYS = ("metaquery", "connector.", "connector_vae_branch.")
TRANSFORMER_PREFIX = "transformer."
WRAPPED_PREFIX = "module."
VLM_FILES = ("config.json", "tokenizer.json", "preprocessor_config.json", "video_preprocessor_config.json")
VLM_EXTRA_FILES = (
    "tokenizer_config.json", "vocab.json", "merges.txt", "generation_config.json", "chat_template.json",
)  # fmt: skip
VAE_STEM = "diffusion_pytorch_model"
MAX_SMALL_FILE = 100_000_000


@dataclass(frozen=True)
class PartSource:
    """One part to write: its tensors under our names, in order, and where to read each."""

    source: TensorSource
    stored: Mapping[str, str]
    """Our name -> the source's name."""

    def infos(self) -> list[TensorInfo]:
        """Each tensor under our name, with its stored dtype and shape."""
        given = {name: self.source.info(stored) for name, stored in self.stored.items()}
        return [TensorInfo(name, info.dtype, info.shape) for name, info in given.items()]

    def ordered(self, table: Table, where: str, optional: tuple[str, ...] = ()) -> "PartSource":
        """The same tensors in the table's order; ModelError naming every name and shape that differs from the table."""
        compare_names({info.name: info.shape for info in self.infos()}, table, where, optional)
        return PartSource(self.source, {name: self.stored[name] for name in table if name in self.stored})

    def tensors(self, on_tensor: Callable[[str, int], None]) -> Iterator[tuple[str, Tensor]]:
        """Read the tensors one by one; `on_tensor` gets name and bytes of each once the consumer has taken it."""
        for name, stored in self.stored.items():
            yield name, self.source.read(stored)
            on_tensor(name, self.source.info(stored).nbytes)


@dataclass(frozen=True)
class Release:
    """A release whose configs and headers were read and found consistent."""

    configs: Mapping[str, Mapping[str, Any]]
    """config.json of transformer, connector and vae, as our directory stores them."""
    parts: Mapping[str, PartSource]
    qwen: Path


def import_release(
    vino: Path,
    hunyuan: Path,
    qwen: Path,
    out: Path,
    *,
    on_progress: OnBytes | None = None,
    overwrite: bool = False,
    area: int | None = None,
    default_size: tuple[int, int] | None = None,
) -> ModelDir:
    """Write the released model as a model directory at `out` and open it.

    vino: checkpoint file (or a directory with one). hunyuan, qwen: the released directories. If the checkpoint contains
    a VLM, it replaces the weights of `qwen`. Tensors keep their dtype. area (pixels) and default_size (width, height)
    replace the release's defaults. on_progress gets a tensor's name, bytes done, and bytes in all. Peak memory is at
    most 2 GB above the largest tensor. A failure or an interrupt leaves nothing behind.
    Raises ModelError naming the keys, shapes, sizes, tensors or files that are wrong, InputError for an illegal `area`
    or `default_size`, OutputError when `out` exists or the disk is full.
    """
    check_replaceable(out.resolve(), MANIFEST if overwrite else None)
    settings = release_settings(area, default_size)
    release = read_release(vino, hunyuan, qwen)
    total = sum(info.nbytes for part in release.parts.values() for info in part.infos())
    check_space(out.resolve().parent, total)
    done = 0

    def on_tensor(name: str, nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if on_progress:
            on_progress(name, done, total)

    with new_model_dir(out, settings, overwrite=overwrite) as draft:
        for name, config in release.configs.items():
            draft.write_json(name, "config.json", config)
        _copy_vlm_files(release.qwen, draft)
        for name, part in release.parts.items():
            draft.add(name, write_part(draft.part(name), part.infos(), part.tensors(on_tensor)))
    return ModelDir.open(out)


def release_settings(area: int | None = None, default_size: tuple[int, int] | None = None) -> ModelSettings:
    """The release's defaults (MODEL.md section 2), with another area (pixels) or default size (width, height).

    An `area` without a `default_size` makes the default size its largest square. Raises InputError for an illegal area,
    or a size that does not suit the area.
    """
    settings = ModelSettings.from_json(read_json(RELEASE_DEFAULTS), str(RELEASE_DEFAULTS))
    unit = settings.unit
    if area is not None:
        if not unit**2 <= area <= MAX_SIDE**2:
            raise InputError(f"area is {area}; give {unit**2} ({unit}x{unit}) to {MAX_SIDE**2} pixels")
        side = math.isqrt(area) // unit * unit
        settings = replace(settings, area=area, default_size=(side, side))
    if default_size is not None:
        check_size(*default_size, settings)
        settings = replace(settings, default_size=default_size)
    return settings


def read_release(vino: Path, hunyuan: Path, qwen: Path) -> Release:
    """Read the configs and headers of a release and check them against each other; ModelError names what is wrong."""
    for name, directory in (("hunyuan", hunyuan), ("qwen", qwen)):
        if not directory.is_dir():
            raise ModelError(f"there is no directory {directory}; {name} names the released one: check the spelling")
    transformer = TransformerConfig.from_json(_transformer_json(hunyuan / "transformer" / "config.json"))
    vae = VaeConfig.from_json(read_json(hunyuan / "vae" / "config.json"))
    vlm = read_json(qwen / "config.json")
    checkpoint = split_release(open_source(vino), vino)
    connector = connector_config(checkpoint["connector"], vino)
    check_configs(transformer, connector, vae, vlm, f"{vino}, {hunyuan}, {qwen}")
    tower, tower_where = (checkpoint["vlm"], vino) if checkpoint["vlm"].stored else (_whole(PartWeights(qwen)), qwen)
    tower = tower.ordered(vlm_table(vlm, f"{qwen}/config.json"), f"{tower_where} (VLM)", optional_names(vlm))
    parts = {
        "transformer": checkpoint["transformer"].ordered(transformer_table(transformer), f"{vino} (transformer)"),
        "connector": checkpoint["connector"].ordered(connector_table(connector), f"{vino} (connector)"),
        "vae": _whole(PartWeights(hunyuan / "vae", VAE_STEM)).ordered(vae_table(vae), f"{hunyuan}/vae"),
        "vlm": _without_tied_head(tower, f"{tower_where} (VLM)") if optional_names(vlm) else tower,
    }
    configs = {"transformer": asdict(transformer), "connector": asdict(connector), "vae": asdict(vae)}
    return Release(configs, parts, qwen)


def split_release(source: TensorSource, where: Path) -> dict[str, PartSource]:
    """Split a checkpoint's keys into transformer, connector and vlm (empty if it contains none).

    A prefix `module.` common to all keys is dropped. Raises ModelError naming unknown keys.
    """
    names = source.names()
    wrapped = WRAPPED_PREFIX if names and all(name.startswith(WRAPPED_PREFIX) for name in names) else ""
    parts: dict[str, dict[str, str]] = {"transformer": {}, "connector": {}, "vlm": {}}
    foreign = []
    for stored in names:
        name = stored.removeprefix(wrapped)
        inner = name.removeprefix(CONNECTOR_PREFIX)
        if name.startswith(TRANSFORMER_PREFIX):
            parts["transformer"][name.removeprefix(TRANSFORMER_PREFIX)] = stored
        elif name.startswith(VLM_PREFIX):
            parts["vlm"][name.removeprefix(VLM_PREFIX)] = stored
        elif inner != name and inner.startswith(CONNECTOR_KEYS):
            parts["connector"][inner] = stored
        else:
            foreign.append(stored)
    if foreign:
        raise ModelError(
            f"{where}: unknown keys {shown(foreign)}; a VINO checkpoint has {TRANSFORMER_PREFIX}*, "
            f"{', '.join(CONNECTOR_PREFIX + key for key in CONNECTOR_KEYS)} and maybe {VLM_PREFIX}*"
        )
    return {part: PartSource(source, stored) for part, stored in parts.items()}


def connector_config(part: PartSource, where: Path) -> ConnectorConfig:
    """Sizes of the connectors, read off their weights: the release has no config for them (MODEL.md section 1)."""
    shapes = {info.name: info.shape for info in part.infos()}
    needed = ("metaquery", "connector.mlp.2.weight", "connector_vae_branch.mlp.2.weight")
    bad = [
        f"{CONNECTOR_PREFIX}{name} {shapes.get(name, 'missing')}" for name in needed if len(shapes.get(name, ())) != 2
    ]
    if bad:
        raise ModelError(f"{where}: {', '.join(bad)}; each must be a matrix. Is this a VINO checkpoint?")
    (queries, hidden), (z_dim, _), (hy_dim, _) = (shapes[name] for name in needed)
    return ConnectorConfig(num_queries=queries, hidden_size=hidden, z_dim=z_dim, hy_dim=hy_dim)


def _transformer_json(path: Path) -> dict[str, Any]:
    # HunyuanVideo's first release predates this field; its absence means null.
    return {"image_condition_type": None, **read_json(path)}


def _whole(source: TensorSource) -> PartSource:
    return PartSource(source, {name: name for name in source.names()})


def _without_tied_head(part: PartSource, where: str) -> PartSource:
    """Drop a language head tied to the embedding; ModelError if the two differ although the config ties them."""
    if LM_HEAD not in part.stored:
        return part
    if not torch.equal(part.source.read(part.stored[LM_HEAD]), part.source.read(part.stored[EMBEDDING])):
        raise ModelError(f"{where}: {LM_HEAD} differs from {EMBEDDING}, but config.json says tie_word_embeddings")
    return PartSource(part.source, {name: stored for name, stored in part.stored.items() if name != LM_HEAD})


def _copy_vlm_files(qwen: Path, draft: Draft) -> None:
    missing = [name for name in VLM_FILES if not (qwen / name).is_file()]
    if missing:
        raise ModelError(f"{qwen} lacks {shown(missing)}; copy the whole Qwen3-VL directory")
    for name in (*VLM_FILES, *(extra for extra in VLM_EXTRA_FILES if (qwen / extra).is_file())):
        file = qwen / name
        if file.stat().st_size > MAX_SMALL_FILE:
            raise ModelError(f"{file} has {file.stat().st_size} bytes, at most {MAX_SMALL_FILE} are expected")
        if name.endswith(".json"):
            read_json(file)
        draft.write_bytes("vlm", name, file.read_bytes())
