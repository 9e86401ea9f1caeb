"""Contact sheets: pictures of equal or different sizes in rows; knows only pixels."""

from collections.abc import Sequence

import numpy as np

from vino_rt.request import Pixels

GAP = 2
PAPER = 200


def grid_sheet(rows: Sequence[Pixels | Sequence[Pixels]]) -> Pixels:
    """Rows of pictures uint8 [H, W, 3], left aligned on gray: uint8 [H, W, 3]."""
    height = sum(max(picture.shape[0] for picture in row) + GAP for row in rows) + GAP
    width = max(sum(picture.shape[1] + GAP for picture in row) for row in rows) + GAP
    sheet = np.full((height, width, 3), PAPER, dtype=np.uint8)
    top = GAP
    for row in rows:
        left = GAP
        for picture in row:
            h, w = picture.shape[:2]
            sheet[top : top + h, left : left + w] = picture
            left += w + GAP
        top += max(picture.shape[0] for picture in row) + GAP
    return sheet
