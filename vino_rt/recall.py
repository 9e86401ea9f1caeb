"""What was computed from the same content before, kept for later requests within a budget of bytes.

Values are found by their content: a digest of everything they were computed from. The least recently used go first.
It knows tensors and arrays, and nothing of models.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

Value = TypeVar("Value")


@dataclass(frozen=True)
class RecallCounts:
    """How often a `Recall` was asked, and what it holds."""

    found: int
    made: int
    bytes: int


class Recall:
    """A bounded store of values by content; may be used from several threads.

    Two threads that ask for the same new content at once both compute it. What is handed out is shared: nobody may
    write to it.
    """

    def __init__(self, limit: int) -> None:
        """limit: bytes of tensors and arrays kept at most; 0 keeps nothing."""
        self._limit = limit
        self._kept: OrderedDict[bytes, tuple[Any, int]] = OrderedDict()
        self._bytes = self._found = self._made = 0
        self._lock = threading.Lock()

    def get(self, content: Any, make: Callable[[], Value]) -> Value:
        """The value that `make` gives for this content, computed unless it is kept.

        content: texts, numbers, arrays, tensors, None, and tuples, lists and dataclasses of them. Raises TypeError for
        others, and what `make` raises; then nothing is kept.
        """
        if not self._limit:
            return make()
        key = digest(content)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                self._found += 1
                value: Value = self._kept[key][0]
                return value
        value = make()
        with self._lock:
            self._made += 1
            self._keep(key, value, sum(part.nbytes for part in _arrays(value)))
        return value

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    @property
    def counts(self) -> RecallCounts:
        """So far."""
        with self._lock:
            return RecallCounts(self._found, self._made, self._bytes)

    def _keep(self, key: bytes, value: Any, size: int) -> None:
        if size > self._limit or key in self._kept:
            return
        self._kept[key] = value, size
        self._bytes += size
        while self._bytes > self._limit:
            self._bytes -= self._kept.popitem(last=False)[1][1]


def digest(content: Any) -> bytes:
    """128 bits that equal content shares: element types and shapes count, places in memory do not."""
    made = hashlib.blake2b(digest_size=16)
    for piece in _pieces(content):
        made.update(len(piece).to_bytes(8, "little"))
        made.update(piece)
    return made.digest()


def _pieces(content: Any) -> Iterator[bytes | memoryview]:
    if isinstance(content, Tensor):
        content = content.detach().cpu().numpy()
    if isinstance(content, np.ndarray):
        yield f"array {content.dtype.str} {content.shape}".encode()
        yield np.ascontiguousarray(content).reshape(-1).view(np.uint8).data
    elif content is None or isinstance(content, str | int | float):
        yield f"{type(content).__name__} {content!r}".encode()
    elif is_dataclass(content) and not isinstance(content, type):
        yield f"{type(content).__name__} {len(fields(content))}".encode()
        for field in fields(content):
            yield from _pieces(getattr(content, field.name))
    elif isinstance(content, tuple | list):
        yield f"sequence {len(content)}".encode()
        for part in content:
            yield from _pieces(part)
    else:
        raise TypeError(f"content of type {type(content).__name__} cannot be recalled by")


def _arrays(value: Any) -> Iterator[Tensor | np.ndarray[Any, Any]]:
    """Every tensor and array of a value that is one, or a dataclass or sequence of some."""
    if isinstance(value, Tensor | np.ndarray):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _arrays(getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _arrays(part)
