"""The part of `model.json` that concerns requests: the model's name, its limits, and defaults for what a request omits.

Numbers and text only; knows no files and no weights.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from vino_rt.config import take_fields
from vino_rt.errors import ModelError
from vino_rt.request import FRAME_STEP, MAX_FPS, MAX_FRAMES, MAX_SIDE, MAX_STEPS

FAMILIES = ("vino",)
WHOLE = {
    "area": MAX_SIDE**2,
    "unit": MAX_SIDE,
    "max_frames": MAX_FRAMES,
    "default_frames": MAX_FRAMES,
    "steps": MAX_STEPS,
}
"""Fields that are whole numbers of at least 1, with their upper limits."""


@dataclass(frozen=True)
class Sampling:
    """Default text guidance and schedule shift of one kind of output (MODEL.md section 2)."""

    guidance: float
    shift: float


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """A model's name and limits, and the defaults of requests to it (MODEL.md section 2)."""

    name: str
    family: str
    area: int
    """Pixels that a reference is scaled to, and about the most that an output may have."""
    unit: int
    """Width and height of a frame are multiples of this."""
    max_frames: int
    fps: float
    default_size: tuple[int, int]
    """Width and height in pixels."""
    default_frames: int
    """Frames of a request for video that does not give a number."""
    steps: int
    image: Sampling
    video: Sampling
    negative_prompt: str
    negative_prompt_video: str

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> "ModelSettings":
        """Check a parsed JSON object of the file `where`; ModelError names the field, its value and what is legal."""
        given = take_fields(data, ModelSettings, where)
        for name, most in WHOLE.items():
            legal = type(given[name]) is int and 0 < given[name] <= most
            _require(legal, where, name, given[name], f"a whole number from 1 to {most}")
        for name in ("name", "negative_prompt", "negative_prompt_video"):
            _require(isinstance(given[name], str), where, name, given[name], "a text")
        _require(given["family"] in FAMILIES, where, "family", given["family"], f"one of {list(FAMILIES)}")
        given["fps"] = _positive(given["fps"], where, "fps", MAX_FPS)
        for name in ("image", "video"):
            _require(isinstance(given[name], Mapping), where, name, given[name], "an object with guidance and shift")
            numbers = take_fields(given[name], Sampling, f"{where}: {name}")
            given[name] = Sampling(**{key: _positive(value, where, f"{name}.{key}") for key, value in numbers.items()})
        _check_sizes(given, where)
        return cls(**given)

    def to_json(self) -> dict[str, Any]:
        """The JSON object that `from_json` reads."""
        values = {field.name: getattr(self, field.name) for field in fields(ModelSettings)}
        return {name: asdict(value) if isinstance(value, Sampling) else value for name, value in values.items()}


def _require(legal: bool, where: str, name: str, value: object, expected: str) -> None:
    if not legal:
        raise ModelError(f"{where}: {name} is {value!r}, expected {expected}")


def _positive(value: object, where: str, name: str, most: float = sys.float_info.max) -> float:
    # Compared before it is converted: a whole number of JSON may be too large for a float.
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else 0
    _require(0 < number <= most, where, name, value, f"a number above 0, at most {most:g}")
    return float(number)


def _check_sizes(given: Mapping[str, Any], where: str) -> None:
    unit, size = given["unit"], given["default_size"]
    pair = (
        isinstance(size, tuple) and len(size) == 2 and all(type(side) is int and 0 < side <= MAX_SIDE for side in size)
    )
    grid = f"two multiples of {unit}, at most {MAX_SIDE}"
    _require(pair and not any(side % unit for side in size), where, "default_size", size, grid)
    _require(given["area"] >= unit * unit, where, "area", given["area"], f"at least {unit}x{unit} pixels")
    for name in ("max_frames", "default_frames"):
        _require(given[name] % FRAME_STEP == 1, where, name, given[name], "1, 5, 9, ...")
    few = given["default_frames"] <= given["max_frames"]
    _require(few, where, "default_frames", given["default_frames"], f"at most max_frames, {given['max_frames']}")
