"""Latents that were encoded once, kept on disk for every stage and call that meets the same pixels again.

A clip is known by its pixels, the autoencoder's files and the precision it was encoded in, so nothing here goes stale;
the device it was encoded on, which only changes roundings, is left aside. It knows no model: patches and their grid go
in and come out to the bit.
"""

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from vino_rt.errors import OutputError
from vino_rt.plan import Grid
from vino_rt.request import Pixels

NAME = "latents.db"
WAIT = 60.0
"""Seconds that one process waits for another to finish writing."""
TABLE = "create table if not exists latents (key blob primary key, t integer, h integer, w integer, patches blob)"


class LatentStore:
    """A file of latents that several processes may share."""

    def __init__(self, folder: Path, scope: str) -> None:
        """Open or make the file in `folder`; `scope` names the autoencoder that all latents asked for are of.

        Raises OutputError when the folder cannot be written or the file is no such store.
        """
        self._path, self._scope = folder / NAME, scope.encode()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the cache {folder}: {error}; choose another folder") from error
        with self._told():
            self._file = sqlite3.connect(self._path, timeout=WAIT)
            # A lost latent is encoded again: not worth a wait for the disk.
            self._file.execute("pragma journal_mode = wal")
            self._file.execute("pragma synchronous = off")
            self._file.execute(TABLE)

    def get(self, clip: Pixels, precision: str) -> tuple[Tensor, Grid] | None:
        """Patches float32 [N, P] and grid of a clip uint8 [F, H, W, 3] as put in that precision; None: it never was."""
        with self._told():
            query = "select t, h, w, patches from latents where key = ?"
            found = self._file.execute(query, (self._key(clip, precision),)).fetchone()
        if found is None:
            return None
        t, h, w, patches = found
        return torch.frombuffer(bytearray(patches), dtype=torch.float32).view(t * h * w, -1), (t, h, w)

    def put(self, clip: Pixels, precision: str, patches: Tensor, grid: Grid) -> None:
        """Keep what `get` gives; OutputError when the disk is full."""
        row = (self._key(clip, precision), *grid, patches.numpy().tobytes())
        with self._told(), self._file:
            self._file.execute("insert or ignore into latents values (?, ?, ?, ?, ?)", row)

    def _key(self, clip: Pixels, precision: str) -> bytes:
        digest = hashlib.blake2b(self._scope, digest_size=16)
        digest.update(f"|{precision}|{clip.shape}|".encode())
        digest.update(clip.tobytes())
        return digest.digest()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise OutputError(f"cache {self._path}: {error}; free its disk, or remove it to begin anew") from error
