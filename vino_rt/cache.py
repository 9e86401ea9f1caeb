"""A content-addressed cache: later requests reuse what earlier ones computed, within a limit in bytes.

The key of a value is a digest of everything it was computed from. The least recently used values are dropped first. It
knows tensors and arrays, not models.
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
class CacheStats:
    """Lookups of a cache that found a value and that did not, and the size of what it holds."""

    hits: int
    misses: int
    bytes: int
    """Bytes of tensors and arrays held now."""


class ContentCache:
    """A bounded, content-addressed LRU cache; thread-safe.

    Two threads that miss on the same content at once both compute it, and one result is cached. Values are shared, so
    callers must not write to them.
    """

    def __init__(self, limit: int) -> None:
        """limit: most bytes of tensors and arrays to hold; 0 turns the cache off."""
        self._limit = limit
        self._kept: OrderedDict[bytes, tuple[Any, int]] = OrderedDict()
        self._bytes = self._hits = self._misses = 0
        self._lock = threading.Lock()

    def get(self, content: Any, make: Callable[[], Value]) -> Value:
        """Return the value for this content, calling `make` only where it is not in the cache.

        content: strings, numbers, arrays, tensors, None, and tuples, lists and dataclasses of them. Raises TypeError
        for anything else. If `make` raises, nothing is cached and nothing is counted.
        """
        if not self._limit:
            return make()
        key = digest(content)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                self._hits += 1
                value: Value = self._kept[key][0]
                return value
        value = make()
        with self._lock:
            self._misses += 1
            self._keep(key, value, sum(part.nbytes for part in _arrays(value)))
        return value

    def clear(self) -> None:
        """Drop all values; the counts stay."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    @property
    def stats(self) -> CacheStats:
        """Hits and misses since the cache was made, and bytes held now."""
        with self._lock:
            return CacheStats(self._hits, self._misses, self._bytes)

    def _keep(self, key: bytes, value: Any, size: int) -> None:
        if size > self._limit or key in self._kept:
            return
        self._kept[key] = value, size
        self._bytes += size
        while self._bytes > self._limit:
            self._bytes -= self._kept.popitem(last=False)[1][1]


def digest(content: Any) -> bytes:
    """128-bit digest of content: values, element types and shapes count; strides, device and identity do not."""
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
        raise TypeError(f"content of type {type(content).__name__} cannot be a cache key")


def _arrays(value: Any) -> Iterator[Tensor | np.ndarray[Any, Any]]:
    """Every tensor and array inside a value: itself, or nested in dataclasses and sequences."""
    if isinstance(value, Tensor | np.ndarray):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _arrays(getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _arrays(part)
