"""What a training record says: its captions, its task and the names of its files; read strictly, one reason per fault.

It knows JSON and text, not where files lie nor what is in them. The format stands in `vino_rt.train.data`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from vino_rt.errors import InputError
from vino_rt.request import check_prompt
from vino_rt.task_rules import MAX_IMAGES, TASKS

MAX_RECORD_BYTES = 2**20
"""Largest size of one JSON record or caption file; a caption has at most 20,000 characters."""

CAPTION = "caption missing or empty"
RECORD = "record unreadable"
MISSING = "media missing"
MEDIA = "media unreadable"
SMALL = "smaller than every bucket"
SHORT = "too few frames for every bucket"
SHAPE = "shape too far from every bucket"
ALIGN = "reference and target differ in shape"
UNSAFE = "unsafe path"
LARGE = "file too large"
TASK = "task does not fit the files"
TWICE = "given twice"
CUT = "tar cut off or damaged"

_Field = TypeVar("_Field")
_ILLEGAL = re.compile(r"[\x00-\x1f\x7f\\]|^[A-Za-z]:")


class Unusable(InputError):
    """A record that cannot be trained on; `reason` is one of this module's constants, the message says the rest."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True)
class Captions:
    """Paraphrases of a sample's long and short caption; at least one of the two has any."""

    long: tuple[str, ...]
    short: tuple[str, ...]


@dataclass(frozen=True)
class Draft:
    """A record as written; None and () mean that it leaves the part to the names of the files beside it."""

    key: str | None
    captions: Captions
    task: str | None
    target: str | None
    images: tuple[str, ...]
    video: str | None
    base_image: bool | None


def caption(captions: Captions, rng: np.random.Generator, long_share: float) -> str:
    """Draw a caption: a long one with probability `long_share`, else a short one; the other kind where one is missing.

    Always draws two numbers, so that what is drawn after it does not depend on the record.
    """
    wants_long, place = rng.random() < long_share, rng.random()
    texts = (captions.long or captions.short) if wants_long else (captions.short or captions.long)
    return texts[int(place * len(texts))]


def parse_record(data: bytes) -> Draft:
    """Read one JSON record. Raises Unusable (RECORD, CAPTION, TASK or UNSAFE)."""
    value = _json(data)
    if not isinstance(value, dict):
        raise Unusable(RECORD, f"holds {type(value).__name__}, not a JSON object")
    task = _optional(value, "task", str)
    if task is not None and task not in TASKS:
        raise Unusable(TASK, f"task is {task!r}; legal are {', '.join(TASKS)}")
    images = value.get("images")
    if images is None:
        images = []
    if not isinstance(images, list) or len(images) > MAX_IMAGES:
        raise Unusable(RECORD, f"'images' must be a list of at most {MAX_IMAGES} file names")
    target, video = _optional(value, "target", str), _optional(value, "video", str)
    return Draft(
        key=_optional(value, "key", str),
        captions=read_captions(value.get("caption")),
        task=task,
        target=None if target is None else safe_name(target),
        images=tuple(safe_name(image) for image in images),
        video=None if video is None else safe_name(video),
        base_image=_optional(value, "base_image", bool),
    )


def parse_text(data: bytes) -> Draft:
    """Read a caption file: the whole text is the caption. Raises Unusable (RECORD or CAPTION)."""
    return Draft(None, read_captions(_text(data)), None, None, (), None, None)


def read_captions(value: object) -> Captions:
    """Read a caption: a string, a list of paraphrases, or an object with `long` and `short` of either kind.

    A string or a list serves as both. Raises Unusable for another type, no text at all, or a text too long.
    """
    if isinstance(value, Mapping):
        captions = Captions(_texts(value.get("long")), _texts(value.get("short")))
    else:
        captions = Captions(_texts(value), _texts(value))
    if not captions.long and not captions.short:
        raise Unusable(CAPTION, "give 'caption': a text, a list of texts, or an object with 'long' and 'short'")
    return captions


def safe_name(name: object) -> str:
    """Return a relative file name with forward slashes as it is; Unusable (UNSAFE, RECORD) for anything else."""
    if not isinstance(name, str) or not name:
        raise Unusable(RECORD, f"{name!r} is no file name")
    if name.startswith("/") or _ILLEGAL.search(name) or ".." in name.split("/"):
        raise Unusable(UNSAFE, f"{name[:80]!r}; files are named relative to their record, within the data set")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Unusable(UNSAFE, f"{name[:80]!r} is not valid Unicode") from error
    return name


def _texts(value: object) -> tuple[str, ...]:
    values: Sequence[object] = value if isinstance(value, list) else [] if value is None else [value]
    texts = []
    for text in values:
        if not isinstance(text, str):
            raise Unusable(RECORD, f"a caption is {type(text).__name__}, not a text")
        try:
            check_prompt("caption", text)
        except InputError as error:
            raise Unusable(RECORD, str(error)) from error
        if text.strip():
            texts.append(text.strip())
    return tuple(texts)


def _optional(record: Mapping[str, object], field: str, kind: type[_Field]) -> _Field | None:
    value = record.get(field)
    if value is None or isinstance(value, kind):
        return value
    raise Unusable(RECORD, f"{field!r} is {value!r:.40}, not of type {kind.__name__}")


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unusable(RECORD, f"byte {error.start} is not UTF-8") from error


def _json(data: bytes) -> object:
    try:
        return json.loads(_text(data), object_pairs_hook=_unique)
    except RecursionError as error:
        raise Unusable(RECORD, "nested too deeply") from error
    except ValueError as error:
        raise Unusable(RECORD, f"broken JSON: {error}") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # JSON leaves open which of two equal fields counts.
    if len(found := dict(pairs)) < len(pairs):
        raise Unusable(RECORD, "a field is given twice in one object")
    return found
