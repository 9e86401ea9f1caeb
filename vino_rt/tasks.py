"""Strict reader of task files in the authors' format: a JSON list of `{index, task, caption, ...}`.

Nothing is evaluated or guessed: an entry that deviates from the format is an error naming the entry and the field.
Checks that the named files exist, not what they contain. The tasks are described in MODEL.md section 2.
"""

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vino_rt.errors import TaskFileError, VinoError
from vino_rt.request import Reference, Request
from vino_rt.task_rules import TASKS

REQUIRED = ("index", "task", "caption")
OPTIONAL = ("ref_image_paths", "ref_video_path", "ref_image_have_base")
MAX_BYTES = 64 * 2**20
MAX_NAME = 200
"""Most bytes of an index: it becomes a file name, and file systems allow 255 with the suffix."""
UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]|^[.\s]|[.\s]$')


@dataclass(frozen=True)
class Task:
    """One entry of a task file, with its paths resolved."""

    index: str
    """Name of the output file without its suffix."""
    task: str
    caption: str
    images: tuple[Path, ...] = ()
    video: Path | None = None
    base_image: bool = False

    def request(self, **settings: Any) -> Request:
        """The entry as a request; `settings` are fields of `Request` common to the file (frames, steps, seed, ...).

        Settings that do not apply to the entry's task are dropped, so that one command line serves a file of mixed
        tasks: the size where a reference decides it, frames where the task makes one image, image guidance without
        images.
        """
        rule = TASKS[self.task]
        used = {"size": rule.size_from == "request", "frames": not rule.still, "image_guidance": bool(self.images)}
        references = [Reference.image(path) for path in self.images]
        if self.video is not None:
            references.append(Reference.video(self.video))
        return Request(
            prompt=self.caption,
            task=self.task,
            references=tuple(references),
            base_image=self.base_image,
            **{name: value for name, value in settings.items() if used.get(name, True)},
        )

    def output_name(self, frames: int) -> str:
        """File name of the result: a PNG for one frame, an MP4 for more, as in the release."""
        return f"{self.index}{'.mp4' if frames > 1 else '.png'}"


def read_tasks(path: Path) -> tuple[Task, ...]:
    """Read and check a task file; relative paths are resolved beside it, then in the current directory.

    Raises TaskFileError naming line and column of broken JSON, or the entry and the field that is wrong.
    """
    entries = _parse(path)
    if not isinstance(entries, list):
        raise TaskFileError(f"{path}: holds {_kind(entries)}; a task file is a JSON list of objects")
    if not entries:
        raise TaskFileError(f"{path}: the list is empty; give at least one entry with {', '.join(REQUIRED)}")
    tasks = tuple(_task(entry, f"{path}: entry {number}", path.parent) for number, entry in enumerate(entries, start=1))
    seen: dict[str, int] = {}
    for number, task in enumerate(tasks, start=1):
        # On a file system that ignores case, the second output would replace the first.
        first = seen.setdefault(task.index.casefold(), number)
        if first != number:
            raise TaskFileError(
                f"{path}: entry {number}: index {task.index!r} is that of entry {first}; outputs are named by index, "
                "so each must differ by more than case"
            )
    return tasks


def _parse(path: Path) -> object:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise TaskFileError(f"cannot read task file {path}: {error.strerror}; give a JSON file") from error
    if len(data) > MAX_BYTES:
        raise TaskFileError(f"{path}: larger than {MAX_BYTES} bytes; split it into several task files")
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise TaskFileError(f"{path}: byte {error.start} is not UTF-8; a task file is UTF-8 JSON") from error
    except json.JSONDecodeError as error:
        raise TaskFileError(f"{path}: broken JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise TaskFileError(f"{path}: nested too deeply; a task file is a JSON list of flat objects") from error
    except _TwiceError as error:
        raise TaskFileError(f"{path}: field {error} is given twice in one object; keep one") from error
    except ValueError as error:
        raise TaskFileError(f"{path}: broken JSON: {error}") from error


class _TwiceError(Exception):
    """A field given twice: JSON does not define which one counts."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for name, value in pairs:
        if name in result:
            raise _TwiceError(repr(name))
        result[name] = value
    return result


def _task(entry: object, where: str, beside: Path) -> Task:
    if not isinstance(entry, dict):
        raise TaskFileError(f"{where} is {_kind(entry)}; each entry is an object with {', '.join(REQUIRED)}")
    unknown = sorted(set(entry) - {*REQUIRED, *OPTIONAL})
    missing = [name for name in REQUIRED if entry.get(name) is None]
    if unknown or missing:
        wrong = [f"missing field {name!r}" for name in missing] + [f"unknown field {name!r}" for name in unknown]
        raise TaskFileError(f"{where}: {', '.join(wrong)}; the fields are {', '.join((*REQUIRED, *OPTIONAL))}")
    name = _text(entry, "task", where)
    if name not in TASKS:
        raise TaskFileError(f"{where}: field 'task' is {name!r}; legal tasks are {', '.join(TASKS)}")
    video = _text(entry, "ref_video_path", where) if entry.get("ref_video_path") is not None else ""
    images = _path_list(entry.get("ref_image_paths"), where)
    task = Task(
        index=_index(entry["index"], where),
        task=name,
        caption=_text(entry, "caption", where),
        images=tuple(_found(image, "ref_image_paths", where, beside) for image in images),
        video=_found(video, "ref_video_path", where, beside) if video else None,
        base_image=_flag(entry, "ref_image_have_base", where),
    )
    try:
        task.request()
    except VinoError as error:
        raise TaskFileError(f"{where} (index {task.index!r}): {error}") from error
    return task


def _text(entry: Mapping[str, object], field: str, where: str) -> str:
    value = entry[field]
    if not isinstance(value, str):
        raise TaskFileError(f"{where}: field {field!r} is {_kind(value)}; it must be a string")
    return value


def _flag(entry: Mapping[str, object], field: str, where: str) -> bool:
    value = entry.get(field)
    if value is not None and not isinstance(value, bool):
        raise TaskFileError(f"{where}: field {field!r} is {value!r}; it must be true or false")
    return bool(value)


def _index(value: object, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TaskFileError(f"{where}: field 'index' is {_kind(value)}; it must be a string or a whole number")
    name = str(value)
    if not name or len(name.encode("utf-8", "replace")) > MAX_NAME or UNSAFE.search(name) or not name.isprintable():
        raise TaskFileError(
            f"{where}: field 'index' is {name[:80]!r}; it names the output file: 1 to {MAX_NAME} bytes, no "
            'control characters, none of / \\ : * ? " < > | and no dot or space at its ends'
        )
    return name


def _path_list(value: object, where: str) -> list[str]:
    """A list of strings, given as such or, as in some released files, as a Python literal inside one string."""
    if isinstance(value, str) and value.strip():
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
            raise TaskFileError(f"{where}: field 'ref_image_paths' is a string that is no list; {_LIST}") from error
    if value is None or value == "":
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise TaskFileError(f"{where}: field 'ref_image_paths' is {_kind(value)}; {_LIST}")
    return value


_LIST = 'give a list of paths such as ["a.png", "b.png"]'


def _found(text: str, field: str, where: str, beside: Path) -> Path:
    """Resolve a path beside the task file, else, as in the release, in the current directory; TaskFileError."""
    try:
        for candidate in (beside / text, Path(text)):
            if candidate.is_file():
                return candidate
    except (OSError, ValueError) as error:
        raise TaskFileError(f"{where}: field {field!r}: {text[:80]!r} is no path: {error}") from error
    raise TaskFileError(f"{where}: field {field!r}: no file {text!r} beside the task file or in the current directory")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
