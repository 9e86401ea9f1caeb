"""Connected regions of masks in plain NumPy: runs of pixels joined across rows, all frames of a clip at once.

It knows masks only, nothing of colours or shapes.
"""

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]


def label(mask: Mask) -> tuple[Labels, NDArray[np.int64]]:
    """Number the 8-connected regions of bool [..., H, W], each [H, W] on its own.

    Returns int32 labels of the same shape (0 outside, then 1, 2, ...: unique over the whole array, rising from frame to
    frame) and the areas in pixels, int64 [regions + 1], of which the first stands for the outside and is 0.
    """
    *lead, height, width = mask.shape
    # A frame of zeros around every picture: runs never cross a row's end, pictures never touch.
    padded = np.zeros((int(np.prod(lead, dtype=int)), height + 1, width + 2), np.bool_)
    padded[:, :height, 1:-1] = mask.reshape(-1, height, width)
    row, flat = width + 2, padded.reshape(-1)
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]
    # Runs of the next row that a run meets, corners included: they end at or after its start and start by its end.
    first, past = np.searchsorted(ends, starts + row), np.searchsorted(starts, ends + row, side="right")
    meets = past - first
    upper = np.repeat(np.arange(len(starts)), meets)
    lower = np.arange(len(upper)) + np.repeat(first - (np.cumsum(meets) - meets), meets)
    numbers = _joined(len(starts), upper, lower)
    lengths = ends - starts
    labels = np.zeros(flat.shape, np.int32)
    labels[flat] = np.repeat(numbers, lengths)
    areas = np.bincount(numbers, weights=lengths, minlength=1).astype(np.int64)
    return labels.reshape(padded.shape)[:, :height, 1:-1].reshape(mask.shape), areas


def _joined(count: int, upper: NDArray[np.int64], lower: NDArray[np.int64]) -> Labels:
    """Number of the region of each run, from 1 in the order of the regions' first runs."""
    root = np.arange(count)
    while True:
        low = np.minimum(root[upper], root[lower])
        new = root.copy()
        # Lower the roots too: a long chain then collapses in a few rounds and not run by run.
        for runs in (upper, lower):
            np.minimum.at(new, runs, low)
            np.minimum.at(new, root[runs], low)
        new = new[new]
        if np.array_equal(new, root):
            break
        root = new
    if not count:
        return np.zeros(0, np.int32)
    numbers: Labels = (np.cumsum(root == np.arange(count))[root]).astype(np.int32)
    return numbers


def grow(mask: Mask) -> Mask:
    """A [H, W] mask and all pixels that touch it, corners included."""
    tall = mask.copy()
    tall[1:] |= mask[:-1]
    tall[:-1] |= mask[1:]
    wide = tall.copy()
    wide[:, 1:] |= tall[:, :-1]
    wide[:, :-1] |= tall[:, 1:]
    return wide


def shrink(mask: Mask) -> Mask:
    """The pixels of a [H, W] mask that touch no pixel outside it; the canvas's rim counts as inside."""
    return ~grow(~mask)
