"""Write a model directory atomically; every file is hashed while it is written.

It knows the layout that `model_dir` reads, not where weights and configs come from.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vino_rt.model_dir import FORMAT, MANIFEST
from vino_rt.model_settings import ModelSettings
from vino_rt.weight_writer import FileRecord, staged_directory, write_file


@contextmanager
def new_model_dir(out: Path, settings: ModelSettings, *, overwrite: bool = False) -> Iterator["Draft"]:
    """Yield a draft to fill; `out` appears, complete, when the body ends, and not at all if it raises.

    settings: written into model.json. Raises OutputError when `out` exists (with `overwrite`: and is not a model
    directory) or cannot be written.
    """
    with staged_directory(out, replaces=MANIFEST if overwrite else None) as staging:
        draft = Draft(staging, {})
        yield draft
        files = {name: asdict(record) for name, record in sorted(draft.files.items())}
        manifest = {"format": FORMAT, **settings.to_json(), "files": files}
        write_file(staging / MANIFEST, [_pretty(manifest)])


@dataclass(frozen=True)
class Draft:
    """A model directory being written."""

    path: Path
    """The staging directory."""
    files: dict[str, FileRecord]
    """Files written so far, by path inside the directory."""

    def part(self, name: str) -> Path:
        """Directory of a part (`transformer`, `connector`, `vae`, `vlm`), created if needed."""
        (self.path / name).mkdir(exist_ok=True)
        return self.path / name

    def add(self, part: str, records: Mapping[str, FileRecord]) -> None:
        """Record files that were written into a part's directory, by file name."""
        self.files.update({f"{part}/{name}": record for name, record in records.items()})

    def write_bytes(self, part: str, name: str, data: bytes) -> None:
        """Write a small file into a part's directory."""
        self.add(part, {name: write_file(self.part(part) / name, [data])})

    def write_json(self, part: str, name: str, data: Any) -> None:
        """Write a small JSON file into a part's directory."""
        self.write_bytes(part, name, _pretty(data))


def _pretty(data: Any) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
