"""A contact sheet: of each row of the table some trials, with references, answer, prompt and verdict.

It knows pixels and words, not what is right: a green frame is what was judged right, a red one what was not.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bench.quality_cases import ROWS, UNDERSTAND, Trial
from bench.quality_score import Answer, Judged
from vino_rt.request import Pixels

SHOWN = 6
"""Trials of a row."""
SIDE = 112
"""Height in pixels up to which pictures are enlarged by whole numbers."""
FRAMES = 4
"""Frames shown of a clip."""
WIDTH = 1400
NARROWEST = 200
"""Width of a trial with a single picture: its words need room."""
GAP = 10
RIM = 2
LINE = 14
MOST_LINES = 3
"""Of a text; a model that draws noise would fill the sheet with what the judge sees in it."""
PAPER, INK, FAINT = (250, 250, 250), (20, 20, 20), (120, 120, 120)
RIGHT, WRONG = (30, 150, 60), (200, 40, 40)


@dataclass(frozen=True, eq=False)
class Entry:
    """One trial of the sheet."""

    trial: Trial
    answer: Answer
    verdict: Judged


def write_sheet(entries: Iterable[Entry], path: Path) -> None:
    """Draw the sheet and save it in the format of the file's name."""
    Image.fromarray(sheet(entries)).save(path)


def sheet(entries: Iterable[Entry]) -> Pixels:
    """Trials by row and number, as many beside each other as fit, uint8 [H, W, 3]."""
    ordered = sorted(entries, key=lambda entry: (ROWS.index(entry.trial.row), entry.trial.number))
    bands: list[Image.Image] = []
    for row in dict.fromkeys(entry.trial.row for entry in ordered):
        cells = [cell(entry) for entry in ordered if entry.trial.row == row]
        bands += [_text(row, WIDTH, INK), *_lines(cells)]
    paper = Image.new("RGB", (WIDTH, GAP + sum(band.height + GAP for band in bands)), PAPER)
    top = GAP
    for band in bands:
        paper.paste(band, (GAP, top))
        top += band.height + GAP
    return np.asarray(paper)


def cell(entry: Entry) -> Image.Image:
    """The pictures of one trial in a line, its prompt below, and below that what is wrong with the answer."""
    example, right = entry.trial.example, entry.verdict.right
    clip = example.clip()
    given = [example.picture(index) for index in range(len(example.images))]
    given += [] if clip is None else some(clip)
    spoken = entry.trial.case == UNDERSTAND
    shown = [_framed(frame, FAINT) for frame in (some(example.truth()) if spoken else given)]
    if not isinstance(entry.answer, str):
        shown += [_framed(frame, RIGHT if right else WRONG) for frame in some(entry.answer)]
    width = max(NARROWEST, sum(picture.width + RIM for picture in shown))
    said = entry.answer if isinstance(entry.answer, str) else example.prompt
    texts = [_text(said, width, INK)]
    if not right:
        texts.append(_text(entry.verdict.seen, width, WRONG))
    height = shown[0].height + sum(text.height for text in texts)
    paper = Image.new("RGB", (width, height), PAPER)
    left = 0
    for picture in shown:
        paper.paste(picture, (left, 0))
        left += picture.width + RIM
    top = shown[0].height
    for text in texts:
        paper.paste(text, (0, top))
        top += text.height
    return paper


def some(frames: Pixels) -> list[Pixels]:
    """Up to FRAMES frames [H, W, 3], first and last among them."""
    numbers = np.linspace(0, len(frames) - 1, min(FRAMES, len(frames)))
    return [frames[int(number)] for number in numbers.round()]


def _lines(cells: Sequence[Image.Image]) -> list[Image.Image]:
    """Cells side by side, a new line wherever the next one does not fit."""
    rows: list[list[Image.Image]] = [[]]
    for each in cells:
        if rows[-1] and sum(one.width + GAP for one in rows[-1]) + each.width > WIDTH - 2 * GAP:
            rows.append([])
        rows[-1].append(each)
    bands = []
    for row in rows:
        band = Image.new("RGB", (WIDTH - GAP, max(one.height for one in row)), PAPER)
        left = 0
        for one in row:
            band.paste(one, (left, 0))
            left += one.width + GAP
        bands.append(band)
    return bands


def _framed(picture: Pixels, colour: tuple[int, int, int]) -> Image.Image:
    scale = max(1, round(SIDE / picture.shape[0]))
    large = np.repeat(np.repeat(picture, scale, axis=0), scale, axis=1)
    framed = np.empty((large.shape[0] + 2 * RIM, large.shape[1] + 2 * RIM, 3), np.uint8)
    framed[:] = colour
    framed[RIM:-RIM, RIM:-RIM] = large
    return Image.fromarray(framed)


def _text(text: str, width: int, colour: tuple[int, int, int]) -> Image.Image:
    """Text broken between words so that it fits a width."""
    font = ImageFont.load_default()
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], f"{lines[MOST_LINES - 1]} ..."]
    paper = Image.new("RGB", (width, LINE * len(lines)), PAPER)
    pen = ImageDraw.Draw(paper)
    for number, line in enumerate(lines):
        pen.text((0, LINE * number), line, fill=colour, font=font)
    return paper
