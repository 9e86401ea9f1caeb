"""What the small vision-language model is taught: pictures and clips to describe, instructions to foretell results of.

Each lesson is a prompt as the model meets it later, with its references, and the answer. It knows the world and the
words of questions; no tokens and no model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vino_rt.errors import UsageError
from vino_rt.models.vino.prepare import vlm_frames
from vino_rt.models.vino.prompt import VlmInput
from vino_rt.train.settings import positive, take_table
from vino_rt.train.world_data import legal_kinds
from vino_rt.understand import DESCRIBE_CLIP, DESCRIBE_IMAGE
from vino_rt.world import examples
from vino_rt.world.example import Example
from vino_rt.world.scene import Scene
from vino_rt.world.split import SPLITS

WHERE = "[data]"
ASK_IMAGE = {DESCRIBE_IMAGE.lower(): "long", "what is in the image?": "short", "what does the picture show?": "short"}
ASK_CLIP = {DESCRIBE_CLIP.lower(): "long", "what happens in the video?": "short", "what does the clip show?": "short"}
ASK_ORDINAL = {"describe image {}.": "long", "what is in image {}?": "short", "what does image {} show?": "short"}
"""Questions, and the length of the answers to them."""
ASK_WHICH = ("which image shows {}?", "in which image is {}?")
ABOUT = {"image": ("t2i", ASK_IMAGE), "clip": ("t2v", ASK_CLIP)}
"""Lessons about one thing shown, the task whose targets it shows, and what is asked."""
SEVERAL = "which"
"""The lesson that shows two or three images and asks about one of them."""
FRAMES = 17


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is shown and asked, and what should be said."""

    given: VlmInput
    answer: str
    key: str
    """Names the lesson in messages."""
    example: Example
    """Where it is from: `target` is the scene that the answer describes."""
    pictures: tuple[Scene, ...] = ()
    """What the images of `given` show."""
    clip: Scene | None = None
    """What its clip shows."""


@dataclass(frozen=True)
class LessonTable:
    """The table `[data]` of a stage with objective `caption`."""

    lessons: Mapping[str, float]
    """Weight of each lesson: `image`, `clip`, `which`, a task, or one kind of a task as `task/kind`."""
    sizes: tuple[Any, ...] = ((64, 64),)
    """(width, height) that examples are drawn at, each as likely."""
    batch: int = 32
    """Lessons in a micro-batch."""
    long: float = 0.5
    """Share of long prompts; where nothing is shown, the answer is as long as the prompt."""
    examples: int = 1_000_000
    """Different seeds of each lesson."""
    split: str = "train"
    source: str = "world"

    def __post_init__(self) -> None:
        for name in ("batch", "examples"):
            positive(getattr(self, name), name, WHERE)
        if self.split not in SPLITS:
            raise UsageError(f"{WHERE}: split is {self.split!r}; choose one of {', '.join(SPLITS)}")
        if self.source != "world":
            raise UsageError(f"{WHERE}: source is {self.source!r}; captions are taught on 'world' alone")
        if not self.lessons or not all(weight > 0 for weight in self.lessons.values()):
            raise UsageError(f"{WHERE}: lessons is {self.lessons!r}; give at least one, with weights above 0")
        for name in self.lessons:
            task, slash, kind = name.partition("/")
            known = task in examples.KINDS and (not slash or kind in legal_kinds(task))
            if name not in (*ABOUT, SEVERAL) and not known:
                legal = ", ".join((*ABOUT, SEVERAL, *examples.KINDS))
                raise UsageError(f"{WHERE}: lesson {name!r} is unknown; there are {legal}")
        if not self.sizes or not all(map(_is_pair, self.sizes)):
            raise UsageError(f"{WHERE}: sizes is {self.sizes!r}; give pairs of width and height")
        if not 0 <= self.long <= 1:
            raise UsageError(f"{WHERE}: long is {self.long}, expected a share from 0 to 1")


def _is_pair(size: object) -> bool:
    return isinstance(size, list | tuple) and len(size) == 2 and all(type(side) is int for side in size)


class Lessons:
    """Batches of lessons, each a pure function of table, seed and number."""

    def __init__(self, table: Mapping[str, Any], seed: int) -> None:
        """Raises UsageError naming the entry of the table that cannot be used."""
        self.table, self.seed = take_table(table, LessonTable, WHERE), seed
        weights = np.array(list(self.table.lessons.values()), dtype=np.float64)
        self._names, self._shares = list(self.table.lessons), weights / weights.sum()

    def batch(self, index: int) -> tuple[Lesson, ...]:
        """The lessons of micro-batch `index`."""
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, index])))
        chosen = rng.choice(len(self._names), size=self.table.batch, p=self._shares)
        seeds = rng.integers(self.table.examples, size=self.table.batch)
        sizes = rng.integers(len(self.table.sizes), size=self.table.batch)
        return tuple(
            self.lesson(self._names[kind], int(seed), self.table.sizes[size])
            for kind, seed, size in zip(chosen, seeds, sizes, strict=True)
        )

    def lesson(self, name: str, seed: int, size: tuple[int, int] = (64, 64)) -> Lesson:
        """One lesson by name; equal arguments give equal lessons."""
        asker = _Asker(name, seed, tuple(size), self.table.split)
        if name in ABOUT:
            return asker.describe()
        if name == SEVERAL:
            return asker.which()
        return asker.foretell(self.table.long)


@dataclass(frozen=True)
class _Asker:
    """Makes one lesson from a seed."""

    name: str
    seed: int
    size: tuple[int, ...]
    split: str
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        # Words are drawn apart from scenes, which the world draws from the bare seed.
        entropy = [self.seed, *self.name.encode(), 1]
        object.__setattr__(self, "rng", np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy))))

    def describe(self) -> Lesson:
        """A picture or a clip, described as the question asks."""
        task, questions = ABOUT[self.name]
        example = self._example(task)
        shown = example.truth()
        picture, clip = ((shown[0],), None) if task == "t2i" else ((), vlm_frames(shown))
        question = self._one(tuple(questions))
        scenes = (example.target,) if task == "t2i" else ()
        moving = None if task == "t2i" else example.target
        answer = plainly(example, questions[question])
        return Lesson(VlmInput(question, picture, clip), answer, self._key(), example, scenes, moving)

    def which(self) -> Lesson:
        """Two or three pictures; one is asked for by number or by what it shows."""
        # Seeds of the pictures of one lesson lie far apart, so that two lessons share no pair of neighbours.
        count = int(self.rng.integers(2, 4))
        shown = [self._example("t2i", kind="single", seed=self.seed + (number << 40)) for number in range(count)]
        asked = int(self.rng.integers(count))
        pictures = tuple(example.truth()[0] for example in shown)
        scenes = tuple(example.target for example in shown)
        names = [[(thing.colour, thing.shape) for thing in example.target.things] for example in shown]
        if self.rng.random() < 0.5 and names.count(names[asked]) == 1:
            question = self._one(ASK_WHICH).format(examples.caption(shown[asked].target, self.rng, "short"))
            return Lesson(VlmInput(question, pictures), f"image {asked + 1}", self._key(), shown[asked], scenes)
        question = self._one(tuple(ASK_ORDINAL))
        answer = plainly(shown[asked], ASK_ORDINAL[question])
        return Lesson(VlmInput(question.format(asked + 1), pictures), answer, self._key(), shown[asked], scenes)

    def foretell(self, long: float) -> Lesson:
        """References and prompt of a task, and what the result shows; the prompt alone comes back in plain words."""
        task, _, kind = self.name.partition("/")
        length = "long" if self.rng.random() < long else "short"
        example = self._example(task, kind=kind or None, length=length)
        pictures = tuple(example.picture(number) for number in range(len(example.images)))
        clip = example.clip()
        given = VlmInput(example.prompt, pictures, None if clip is None else vlm_frames(clip))
        # A short caption leaves out places and backgrounds, which are what some edits are about.
        told = "long" if pictures or clip is not None else length
        return Lesson(given, plainly(example, told), self._key(), example, example.images, example.video)

    def _key(self) -> str:
        return f"{self.name}/{self.size[0]}x{self.size[1]}/{self.seed}"

    def _example(self, task: str, *, kind: str | None = None, length: str = "any", seed: int | None = None) -> Example:
        seed, size = self.seed if seed is None else seed, (self.size[0], self.size[1])
        return examples.make(task, seed, split=self.split, kind=kind, size=size, frames=FRAMES, caption=length)

    def _one(self, options: tuple[str, ...]) -> str:
        return options[int(self.rng.integers(len(options)))]


def plainly(example: Example, length: str) -> str:
    """The caption of what is right in the first wording of each kind, things from left to right.

    Answers do not vary where nothing seen decides between two: all that is left to learn is what there is to see.
    """
    things = tuple(sorted(example.target.things, key=lambda thing: (thing.x, thing.y)))
    scene = replace(example.target, things=things)
    return examples.caption(scene, _NoDice(np.random.PCG64(0)), length, aspect=example.aspect)


class _NoDice(np.random.Generator):
    """Chooses the first of all options and says nothing that is only said now and then."""

    def integers(self, *args: Any, **options: Any) -> Any:
        return 0

    def random(self, *args: Any, **options: Any) -> Any:
        return 1.0
