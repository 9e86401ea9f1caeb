"""TensorRT's timing cache, kept in a file that several builds may share."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vino_rt.errors import EngineError, OutputError
from vino_rt.weight_writer import write_file

log = logging.getLogger(__name__)


class Timings:
    """The timing cache of one build, initialised from a file to which `keep` adds the new timings.

    file: see `timings_file`; None: no file. A file that TensorRT rejects, such as one from another driver, counts as
    empty. The cache lives as long as this object, which must outlive the build.
    """

    def __init__(self, config: Any, file: Path | None) -> None:
        self._config, self._file = config, file
        self._known = self._content()
        self._cache: Any = None if self._known is None else config.create_timing_cache(self._known)
        if self._cache is None or not config.set_timing_cache(self._cache, ignore_mismatch=False):
            self._cache = config.create_timing_cache(b"")
            if not config.set_timing_cache(self._cache, ignore_mismatch=False):
                raise EngineError("TensorRT does not take an empty timing cache")

    def keep(self) -> None:
        """Merge the timings into the file, with what other builds wrote meanwhile; logs a warning if that fails."""
        if self._file is None:
            return
        content = self._content()
        if content not in (None, self._known) and (newer := self._config.create_timing_cache(content)) is not None:
            self._cache.combine(newer, ignore_mismatch=False)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._file, [bytes(self._cache.serialize())])
        except (OSError, OutputError) as error:
            log.warning("timings are not kept, so that the next build takes as long as this one: %s", error)

    def _content(self) -> bytes | None:
        """The file's current content; None if it is missing or unreadable."""
        try:
            return self._file.read_bytes() if self._file is not None and self._file.is_file() else None
        except OSError as error:
            log.warning("timings of earlier builds cannot be read: %s", error)
            return None


def timings_file(folder: Path, version: str, target: Sequence[str]) -> Path:
    """Path of the timing file for a library's version and a GPU, within a folder."""
    return folder / f"timing-{re.sub(r'[^A-Za-z0-9_.]+', '-', '-'.join((version, *target)))}.cache"
