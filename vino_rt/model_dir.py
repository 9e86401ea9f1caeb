"""Our model directory: open, check and describe it.

    model.json      family, defaults of a request, every other file with its bytes and SHA-256
    transformer/    config.json, model.safetensors      likewise connector/ and vae/
    vlm/            config.json, model.safetensors, tokenizer and processors as the VLM's library wrote them

It knows the layout and VINO's configs, not what the tensors mean, and it computes nothing.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from vino_rt.config import read_json, take_fields
from vino_rt.errors import ModelError
from vino_rt.model_settings import ModelSettings
from vino_rt.models.vino.config import TransformerConfig
from vino_rt.models.vino.connector import ConnectorConfig
from vino_rt.models.vino.vae_config import VaeConfig
from vino_rt.models.vino.vlm_config import VlmConfig
from vino_rt.weight_writer import CHUNK, FileRecord
from vino_rt.weights import PartWeights, compare_names, shown

FORMAT = 1
MANIFEST = "model.json"
PARTS = ("transformer", "connector", "vae", "vlm")
REQUIRED = (
    *(f"{part}/config.json" for part in PARTS),
    "vlm/tokenizer.json",
    "vlm/preprocessor_config.json",
    "vlm/video_preprocessor_config.json",
)
AGAIN = "write the model again with `vino-rt import` or `vino-rt init`"
OnBytes = Callable[[str, int, int], None]
"""Called with the name of a file or tensor, bytes done, and bytes in all."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelDir:
    """An opened model directory: its files are complete and its configs agree; weights are read on demand."""

    path: Path
    settings: ModelSettings
    """From model.json: the model's name, its limits, and the defaults of requests."""
    transformer: TransformerConfig
    connector: ConnectorConfig
    vae: VaeConfig
    vlm: Mapping[str, Any]
    """The parsed `vlm/config.json` with all its fields; `vlm_config` holds the ones we use."""
    files: Mapping[str, FileRecord]
    """Every file but model.json, by its path inside the directory."""

    @classmethod
    def open(cls, path: Path) -> "ModelDir":
        """Read a model directory's configs and the headers of its weights.

        Raises ModelError for a missing file or shard, a file of the wrong size, an unknown format or family, configs
        that contradict each other, and tensors of transformer or connector that are missing, unknown or misshapen.
        """
        manifest = _read_manifest(path)
        files = _read_files(manifest.pop("files"), path)
        configs = {part: read_json(path / part / "config.json") for part in PARTS}
        where = str(path)
        model = cls(
            path=path,
            settings=ModelSettings.from_json(manifest, f"{path / MANIFEST}"),
            transformer=TransformerConfig.from_json(configs["transformer"], f"{where}/transformer/config.json"),
            connector=ConnectorConfig.from_json(configs["connector"], f"{where}/connector/config.json"),
            vae=VaeConfig.from_json(configs["vae"], f"{where}/vae/config.json"),
            vlm=configs["vlm"],
            files=files,
        )
        check_configs(model.transformer, model.connector, model.vae, model.vlm, where)
        model._check_headers()
        return model

    @cached_property
    def vlm_config(self) -> VlmConfig:
        """Sizes of the VLM; ModelError if its config is not one of a Qwen3-VL that we can run."""
        return VlmConfig.from_json(self.vlm, f"{self.path}/vlm/config.json")

    @cached_property
    def config_hash(self) -> str:
        """SHA-256 over the contents of all four configs, independent of how the files are formatted."""
        configs = [asdict(self.transformer), asdict(self.connector), asdict(self.vae), dict(self.vlm)]
        return hashlib.sha256(json.dumps(configs, sort_keys=True).encode()).hexdigest()

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 over the recorded hashes of all weight files."""
        return self._hash_of(_is_weights)

    def part_hash(self, name: str) -> str:
        """SHA-256 over the recorded hashes of all files of a part, its config included."""
        return self._hash_of(lambda file: file.startswith(f"{name}/"))

    def _hash_of(self, chosen: Callable[[str], bool]) -> str:
        lines = [f"{record.sha256} {name}\n" for name, record in sorted(self.files.items()) if chosen(name)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def part(self, name: str) -> PartWeights:
        """Weights of a part: `transformer`, `connector`, `vae` or `vlm`."""
        assert name in PARTS, name
        return PartWeights(self.path / name)

    def verify(self, on_progress: OnBytes | None = None) -> None:
        """Hash every file and compare it with the recorded hash; ModelError names the files that differ."""
        total, done, changed = sum(record.bytes for record in self.files.values()), 0, []
        for name, record in self.files.items():
            digest = hashlib.sha256()
            for chunk in _chunks(self.path / name):
                digest.update(chunk)
                done += len(chunk)
                if on_progress:
                    on_progress(name, done, total)
            if digest.hexdigest() != record.sha256:
                changed.append(name)
        if changed:
            raise ModelError(f"{self.path}: {shown(changed)} changed since the model was written; {AGAIN}")

    def describe(self) -> dict[str, Any]:
        """Settings, hashes and, for each part, tensors, parameters, bytes and element types; ready for JSON."""
        parts = {}
        for name in PARTS:
            infos = [weights.info(tensor) for weights in [self.part(name)] for tensor in weights.names()]
            dtypes = sorted({str(info.dtype).removeprefix("torch.") for info in infos})
            parameters = sum(info.nbytes // info.dtype.itemsize for info in infos)
            size = sum(info.nbytes for info in infos)
            parts[name] = {"tensors": len(infos), "parameters": parameters, "bytes": size, "dtypes": dtypes}
        hashes = {"config_hash": self.config_hash, "weights_hash": self.weights_hash}
        return {"path": str(self.path), **self.settings.to_json(), **hashes, "parts": parts}

    def _check_headers(self) -> None:
        from vino_rt.models.vino.tables import connector_table, transformer_table

        tables = {"transformer": transformer_table(self.transformer), "connector": connector_table(self.connector)}
        for part in PARTS:
            weights = self.part(part)
            if part in tables:
                given = {name: weights.shape(name) for name in weights.names()}
                compare_names(given, tables[part], f"{self.path / part}")


def bundled_model() -> Path:
    """Directory of vino-mini, the model that comes with the package."""
    return Path(__file__).parent / "mini"


def check_configs(
    transformer: TransformerConfig, connector: ConnectorConfig, vae: VaeConfig, vlm: Mapping[str, Any], where: str
) -> None:
    """Raise ModelError naming every pair of sizes that must be equal between parts and is not."""
    text = vlm.get("text_config")
    hidden = text.get("hidden_size") if isinstance(text, Mapping) else None
    pairs = {
        "connector z_dim and transformer text_embed_dim": (connector.z_dim, transformer.text_embed_dim),
        "connector hy_dim and transformer width": (connector.hy_dim, transformer.width),
        "connector hidden_size and vlm text_config.hidden_size": (connector.hidden_size, hidden),
        "vae latent_channels and transformer in_channels": (vae.latent_channels, transformer.in_channels),
        "vae latent_channels and transformer out_channels": (vae.latent_channels, transformer.out_channels),
    }
    wrong = [f"{names}: {first} and {second}" for names, (first, second) in pairs.items() if first != second]
    if wrong:
        raise ModelError(f"{where}: these must be equal: {'; '.join(wrong)}. The parts are of different models")


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise ModelError(f"{path} is not a directory; name a model directory, or {AGAIN}")
    if not (path / MANIFEST).is_file():
        raise ModelError(f"{path} holds no {MANIFEST}, so it is no model directory; {AGAIN}")
    manifest = read_json(path / MANIFEST)
    version = manifest.pop("format", None)
    if version != FORMAT:
        raise ModelError(f"{path / MANIFEST} has format {version!r}, this version reads {FORMAT}; {AGAIN}")
    if not isinstance(manifest.get("files"), dict):
        raise ModelError(f"{path / MANIFEST}: files is {manifest.get('files')!r}, expected an object; {AGAIN}")
    return manifest


def _read_files(given: Mapping[str, Any], path: Path) -> dict[str, FileRecord]:
    """The files that model.json lists, each checked for existence and size; ModelError names the first that differs."""
    records = {}
    for name, record in given.items():
        where = f"{path / MANIFEST}: files[{name!r}]"
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts or not isinstance(record, Mapping):
            raise ModelError(f"{where} is no file inside the model directory; {AGAIN}")
        records[name] = FileRecord(**take_fields(record, FileRecord, where))
        if not (path / name).is_file():
            raise ModelError(f"{path / name} is missing; copy it again, or {AGAIN}")
        size = (path / name).stat().st_size
        if size != records[name].bytes:
            raise ModelError(f"{path / name} has {size} bytes instead of {records[name].bytes}; copy it again")
    absent = [name for name in REQUIRED if name not in records]
    absent += [f"{part}/*.safetensors" for part in PARTS if not any(_in_part(name, part) for name in records)]
    if absent:
        raise ModelError(f"{path / MANIFEST} does not list {shown(absent)}; {AGAIN}")
    return records


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors")


def _in_part(name: str, part: str) -> bool:
    return _is_weights(name) and name.startswith(f"{part}/")


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
