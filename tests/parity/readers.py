"""Rules of the released readers that its tables cover and the runtime has no use for.

The runtime takes every frame of a clip from the first on, and shows the VLM eight.
"""

import math

from vino_rt.errors import InputError
from vino_rt.models.vino.prepare import VLM_FRAMES, frame_count


def frame_indices(requested: int, available: int, fps: float = 24.0, sample_fps: float | None = None) -> range:
    """Frames taken from a reference clip, from its first on; every frame unless `sample_fps` asks for fewer."""
    count = frame_count(requested, available)
    stride = 1
    if count > 1 and sample_fps is not None:
        stride = min(max(1, round(fps / sample_fps)), max(1, round((available - 1) / (count - 1))))
    return range(0, count * stride, stride)


def smart_nframes(total: int, fps: float, sample_fps: float = 2.0, wanted: int | None = None) -> int:
    """Frame count of the released readers that do not hard-code 8: even, 4 to 8, about `sample_fps` a second.

    Raises InputError when the clip of `total` frames is too short.
    """
    if wanted is not None:
        count = round(wanted / 2) * 2
    else:
        most = min(total // 2 * 2, VLM_FRAMES)
        count = math.floor(min(max(total / fps * sample_fps, 4), most, total) / 2) * 2
    if not 2 <= count <= total:
        raise InputError(f"{count} frames of a clip of {total}: the legal counts are 2 to {total}; use a longer clip")
    return count
