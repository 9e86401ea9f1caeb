"""Small training sets that tests write: pictures, clips, records and tars."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from tests.unit.clips import plain, write_video
from vino_rt.train.data import Bucket, DiskConfig, Sizing

SIZING = Sizing(buckets=(Bucket(64, 64), Bucket(96, 48), Bucket(64, 48, 5), Bucket(64, 48, 9)), area=64 * 64)


def picture(path: Path, width: int = 80, height: int = 80, seed: int = 0) -> Path:
    """A smooth gradient, so that scaling it keeps it recognisable; `seed` changes the blue plane."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    pixels[..., 2] = seed * 37 % 256
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def clip(path: Path, frames: int = 9, width: int = 80, height: int = 60) -> Path:
    return write_video(path, plain(frames, height, width))


def record(path: Path, **fields: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields), encoding="utf-8")
    return path


def pictures(root: Path, count: int, width: int = 80, height: int = 80) -> Path:
    """`count` captioned pictures `00.png`, ..."""
    for number in range(count):
        picture(root / f"{number:02}.png", width, height, number)
        (root / f"{number:02}.txt").write_text(f"picture {number}")
    return root


def png(width: int = 80, height: int = 80) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (10, 200, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def tar(path: Path, members: Mapping[str, bytes] | list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def config(*paths: Path, **changes: object) -> DiskConfig:
    """Batches of four 64x64 pictures."""
    given: dict[str, object] = {"sizing": SIZING, "tokens_per_batch": 64, "seed": 3, **changes}
    return DiskConfig(paths=paths, **given)  # type: ignore[arg-type]
