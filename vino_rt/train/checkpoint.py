"""Checkpoints of a run: sections of named tensors and a JSON record, hashed, complete or not there at all.

    step-00001000/    manifest.json, and per section model.safetensors or shards with an index

Tensors that are spread over processes are gathered one at a time and written whole by the leading process, so that any
number of processes can go on from them. It knows what a section is, not what is in it.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vino_rt.config import read_json
from vino_rt.errors import ModelError, OutputError, UsageError
from vino_rt.train.distributed import World, full
from vino_rt.weight_writer import FileRecord, check_space, staged_directory, write_file, write_part
from vino_rt.weights import PartWeights, TensorInfo, compare_names

FORMAT = 1
MANIFEST = "manifest.json"
NAME = re.compile(r"step-(\d{8,})")
LEFTOVER = re.compile(r"\.step-\d+\.[0-9a-f]+\.(partial|previous)")
ENTRY_BYTES = 160
"""Room for a tensor in a file's header, besides its name."""

Sections = Mapping[str, Mapping[str, Tensor]]
OnDamaged = Callable[[Path, str], None]
"""Called with a checkpoint that cannot be used and why."""


@dataclass(frozen=True)
class Opened:
    """A checkpoint whose files are what was written and whose fingerprint is that of the run."""

    path: Path
    step: int
    record: Mapping[str, Any]

    def load(self, section: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Exactly the tensors of a section that `shapes` names, as stored; ModelError when it holds others."""
        part = PartWeights(self.path / section)
        compare_names({name: part.shape(name) for name in part.names()}, shapes, f"{self.path / section}")
        return part.load(shapes, dtype=None)


class Checkpoints:
    """The checkpoints in a directory of a run."""

    def __init__(self, directory: Path, world: World, *, keep: int, shard_bytes: int) -> None:
        """`keep` newest ones stay when one is written; files hold at most `shard_bytes` where tensors allow."""
        self.directory = directory
        self._world = world
        self._keep = keep
        self._shard_bytes = shard_bytes

    def listed(self) -> list[Path]:
        """Every checkpoint, newest first."""
        if not self.directory.is_dir():
            return []
        found = [path for path in self.directory.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]
        return sorted(found, key=_step, reverse=True)

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies, or would."""
        return self.directory / f"step-{step:08d}"

    def save(self, step: int, fingerprint: Mapping[str, Any], sections: Sections, record: Mapping[str, Any]) -> Path:
        """Write the checkpoint of a step, then remove those that are too many; all processes must call it.

        OutputError in every process when the disk is full or not writable; earlier checkpoints are then untouched.
        """
        path = self.path(step)
        streams = {section: _wholes(tensors) for section, tensors in sections.items()}
        failure = ""
        if self._world.leads:
            manifest = {"format": FORMAT, "step": step, "fingerprint": fingerprint, "record": record}
            try:
                self._write(path, manifest, sections, streams)
            except OutputError as error:
                failure = f"the checkpoint of step {step} was not written, earlier ones are intact: {error}"
        # The other processes' share of gathering, and after a failure the leading one's too: nobody may wait for ever.
        for stream in streams.values():
            for _ in stream:
                pass
        if told := self._world.gather(failure)[0]:
            raise OutputError(told)
        if self._world.leads:
            for old in self.listed()[self._keep :]:
                shutil.rmtree(old, ignore_errors=True)
        return path

    def _write(
        self,
        path: Path,
        manifest: Mapping[str, Any],
        sections: Sections,
        streams: Mapping[str, Iterator[tuple[str, Tensor]]],
    ) -> None:
        infos = {
            section: [TensorInfo(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
            for section, tensors in sections.items()
        }
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.directory} cannot be made ({error.strerror}); choose another one") from error
        check_space(self.directory, sum(info.nbytes for part in infos.values() for info in part))
        with staged_directory(path, replaces=MANIFEST) as staging:
            files: dict[str, FileRecord] = {}
            for section, part in infos.items():
                (staging / section).mkdir()
                header = sum(len(info.name.encode()) + ENTRY_BYTES for info in part)
                limit = max(self._shard_bytes - header, self._shard_bytes // 2)
                written = write_part(staging / section, part, streams[section], limit)
                files.update({f"{section}/{name}": entry for name, entry in written.items()})
            complete = {**manifest, "files": {name: asdict(entry) for name, entry in files.items()}}
            write_file(staging / MANIFEST, [json.dumps(complete, indent=1).encode()])

    def newest(self, fingerprint: Mapping[str, Any], on_damaged: OnDamaged) -> Opened | None:
        """The newest checkpoint that is intact, None when there is none at all; all processes must call it.

        Damaged ones are reported to `on_damaged` and set aside under another name. ModelError when all are damaged,
        UsageError naming the first field in which a checkpoint is of another run.
        """
        damaged: list[Path] = []
        opened = None
        for path in self.listed():
            try:
                opened = _open(path, fingerprint)
                break
            except ModelError as error:
                damaged.append(path)
                on_damaged(path, str(error))
        self._world.gather(None)
        if damaged and opened is None:
            raise ModelError(
                f"all {len(damaged)} checkpoints in {self.directory} are damaged; copy them again or start anew with "
                "--fresh"
            )
        if self._world.leads:
            for path in damaged:
                aside = path.with_name(f"{path.name}.damaged")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
        return opened

    def clear_leftovers(self) -> None:
        """Remove what a run that was killed while it wrote has left; only while no other run uses the directory."""
        if self._world.leads and self.directory.is_dir():
            for path in self.directory.iterdir():
                if LEFTOVER.fullmatch(path.name):
                    shutil.rmtree(path, ignore_errors=True)


def _step(path: Path) -> int:
    found = NAME.fullmatch(path.name)
    assert found, path
    return int(found[1])


def _wholes(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        yield name, full(tensor.detach())


def _open(path: Path, fingerprint: Mapping[str, Any]) -> Opened:
    """Read and verify a checkpoint; ModelError when it is damaged, UsageError when it is of another run."""
    manifest = read_json(path / MANIFEST)
    try:
        version, step, record = manifest["format"], int(manifest["step"]), dict(manifest["record"])
        files = {name: FileRecord(**entry) for name, entry in manifest["files"].items()}
        saved = dict(manifest["fingerprint"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{path / MANIFEST} is no manifest of a checkpoint ({error!r})") from error
    if version != FORMAT:
        raise UsageError(f"{path} has format {version!r}, this version reads {FORMAT}; start anew with --fresh")
    for name in sorted({*saved, *fingerprint}):
        if saved.get(name) != fingerprint.get(name):
            raise UsageError(
                f"{path} is of another stage: {name} is {saved.get(name)!r} there and {fingerprint.get(name)!r} here; "
                "set it back, name another directory for the run, or start anew with --fresh"
            )
    for name, entry in files.items():
        _verify(path / name, entry)
    return Opened(path, step, record)


def _verify(path: Path, entry: FileRecord) -> None:
    try:
        if path.stat().st_size != entry.bytes:
            raise ModelError(f"{path} has {path.stat().st_size} bytes instead of {entry.bytes}")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror})") from error
    if digest != entry.sha256:
        raise ModelError(f"{path} is not what was written: its SHA-256 differs")
