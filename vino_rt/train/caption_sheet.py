"""Contact sheet of a captioner: what it is shown, what it is asked, what it says and what was right."""

import textwrap

import numpy as np
from PIL import Image, ImageDraw

from vino_rt.request import Pixels
from vino_rt.train.lessons import Lesson, Lessons
from vino_rt.train.sheet import grid_sheet
from vino_rt.understand import Captioner

ROWS = 12
HELD_OUT = 1 << 50
"""Seeds from here on are for sheets; training draws lower ones."""
MAX_TOKENS = 64
COLUMNS, LINE, LETTER = 72, 12, 6
"""Letters in a line of text, and pixels of a line and of a letter."""


def caption_sheet(captioner: Captioner, lessons: Lessons) -> Pixels:
    """A row for each of some lessons of every kind that training does not draw: uint8 [H, W, 3]."""
    names = list(lessons.table.lessons)
    width, height = lessons.table.sizes[0]
    chosen = [lessons.lesson(names[i % len(names)], HELD_OUT + i, (width, height)) for i in range(ROWS)]
    said = captioner.describe_many([lesson.given for lesson in chosen], max_tokens=MAX_TOKENS)
    return grid_sheet([_row(lesson, text) for lesson, text in zip(chosen, said, strict=True)])


def _row(lesson: Lesson, said: str) -> list[Pixels]:
    clip = [] if lesson.given.video is None else [lesson.given.video[0], lesson.given.video[-1]]
    lines = [
        line
        for text in (f"asked: {lesson.given.prompt}", f"says:  {said}", f"right: {lesson.answer}")
        for line in textwrap.wrap(text, COLUMNS, subsequent_indent="  ")
    ]
    return [*lesson.given.images, *clip, _text(lines)]


def _text(lines: list[str]) -> Pixels:
    paper = Image.new("RGB", (COLUMNS * LETTER, len(lines) * LINE), (255, 255, 255))
    pen = ImageDraw.Draw(paper)
    for number, line in enumerate(lines):
        pen.text((0, number * LINE), line, fill=(0, 0, 0))
    return np.array(paper)
