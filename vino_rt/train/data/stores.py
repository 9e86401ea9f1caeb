"""Where the files of a data set lie: a folder, or a tar read in place. Both find a file by its name.

A tar is listed by its headers and never unpacked, so what its names point at outside of it cannot matter; such names
are refused all the same. It knows names and bytes, no records and no pixels.
"""

import os
import stat
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vino_rt.errors import InputError
from vino_rt.train.data.blob import Blob
from vino_rt.train.data.records import CUT, TWICE, UNSAFE, Unusable, safe_name

_BLOCK = 512


class Store(Protocol):
    """A set of files by name; names use forward slashes and lie within the store."""

    @property
    def label(self) -> str:
        """Names the store in keys and messages."""

    def find(self, name: str) -> Blob | None:
        """The file of this name, or None when there is no regular file of it."""


@dataclass(frozen=True)
class FolderStore:
    """A folder and all below it; links to files are followed, links to folders are not walked."""

    root: Path

    @property
    def label(self) -> str:
        """Empty: the names of its files are enough."""
        return ""

    def find(self, name: str) -> Blob | None:
        """Look the file up now."""
        path = os.path.join(self.root, name)
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return None
        return Blob(path, name, status.st_size) if stat.S_ISREG(status.st_mode) else None

    def names(self) -> list[str]:
        """Every file below the root, sorted. Raises InputError when a folder cannot be listed."""

        def refuse(error: OSError) -> None:
            raise InputError(f"{error.filename}: cannot be listed ({error.strerror}); check who may read it")

        found = []
        for folder, _, files in os.walk(self.root, onerror=refuse):
            below = os.path.relpath(folder, self.root)
            found += files if below == "." else [f"{below}/{file}" for file in files]
        return sorted(found)


@dataclass(frozen=True)
class TarStore:
    """The members of one uncompressed tar."""

    label: str
    members: Mapping[str, Blob]

    def find(self, name: str) -> Blob | None:
        """The member of this name."""
        return self.members.get(name)


def read_tar(path: Path, label: str) -> tuple[TarStore, tuple[Unusable, ...]]:
    """List a tar by its headers; a damaged or cut-off one keeps what lies whole before the damage.

    What cannot be used is returned beside it, one entry each: unsafe names, names given twice (the first counts), and
    the place where the archive breaks off.
    """
    members: dict[str, Blob] = {}
    faults: list[Unusable] = []
    try:
        size = path.stat().st_size
        # Uncompressed only: a compressed archive has no random access.
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                # The list that tarfile keeps for itself would grow with the archive.
                archive.members.clear()  # type: ignore[attr-defined]
                if not member.isreg() or member.issparse():
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                _add(members, faults, member, path, label)
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read(_BLOCK) != bytes(_BLOCK):
                raise tarfile.ReadError("no end mark")
    except (tarfile.TarError, OSError, ValueError) as error:
        faults.append(Unusable(CUT, f"{label}: {error} after {len(members)} files; those are kept"))
    return TarStore(label, members), tuple(faults)


def _add(members: dict[str, Blob], faults: list[Unusable], member: tarfile.TarInfo, path: Path, label: str) -> None:
    try:
        name = safe_name(member.name).removeprefix("./")
    except Unusable as error:
        faults.append(Unusable(UNSAFE, f"{label}: {error.detail}"))
        return
    if name in members:
        faults.append(Unusable(TWICE, f"{label}: {name} is in the tar twice; the first is kept"))
        return
    members[name] = Blob(str(path), f"{label}/{name}", member.size, member.offset_data)
