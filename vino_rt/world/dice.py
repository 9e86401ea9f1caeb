"""Random choices in the words the makers of examples speak; knows nothing of what is chosen."""

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True)
class Dice:
    """A random source; the same source in the same state chooses the same."""

    rng: np.random.Generator

    def one(self, options: Sequence[T]) -> T:
        """One of the options, each as likely."""
        return options[int(self.rng.integers(len(options)))]

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different ones of the options, in random order."""
        return [options[int(i)] for i in self.rng.permutation(len(options))[:count]]

    def chance(self, share: float) -> bool:
        """True in this share of all throws."""
        return float(self.rng.random()) < share

    def weighted(self, weights: Mapping[T, float]) -> T:
        """One of the keys, as likely as its weight says."""
        levels = list(accumulate(weights.values()))
        return list(weights)[bisect_right(levels, float(self.rng.random()) * levels[-1], hi=len(levels) - 1)]

    def between(self, low: float, high: float) -> float:
        """A number, uniform from low to high."""
        return low + (high - low) * float(self.rng.random())


def thrown(*parts: object) -> Dice:
    """Dice that depend on nothing but these values; other values, other dice. Values need a lasting repr."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    words = [int.from_bytes(digest[i : i + 4], "little") for i in range(0, len(digest), 4)]
    return Dice(np.random.Generator(np.random.PCG64(np.random.SeedSequence(words))))
