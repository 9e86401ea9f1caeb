"""The result of a request: frames and the settings that made them, and how to save them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vino_rt.request import Pixels
from vino_rt.settings import Settings


@dataclass(frozen=True, eq=False)
class Result:
    """The frames of a request, with the resolved settings and the time taken."""

    frames: Pixels
    """uint8 RGB [F, H, W, 3]"""
    fps: float
    seed: int
    timings: Mapping[str, float]
    """Seconds per stage."""
    settings: Settings

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write PNG or JPEG (one frame), MP4 or GIF (more), with the settings in the metadata, and return the path.

        Raises OutputError, UsageError and InputError as `media_write.write_media` does.
        """
        from vino_rt.media_write import write_media

        metadata = {name: str(value) for name, value in self.settings.record().items()}
        write_media(self.frames, path, fps=self.fps, metadata=metadata, overwrite=overwrite)
        return Path(path)
