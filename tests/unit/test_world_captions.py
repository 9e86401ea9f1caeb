"""What captions and prompts say is what the scenes show, in few words; read back by an independent look at the text."""

import re
from collections.abc import Iterator

import numpy as np
import pytest

from vino_rt.world import words
from vino_rt.world.examples import KINDS, Example, all_kinds, caption, kinds, make
from vino_rt.world.scene import BACKGROUNDS, COLOURS, SHAPES, Motion, Scene, Thing

SEEDS = 40
MOST_WORDS = 160
COUNTED = {"two": 2, "three": 3, "four": 4}
MOVING = {
    "left": r"\b(moves|slides|goes) (to the )?left\b",
    "right": r"\b(moves|slides|goes) (to the )?right\b",
    "up": r"\b(moves|slides|goes) (up|upwards)\b",
    "down": r"\b(moves|slides|goes) (down|downwards)\b",
}
SINGULAR = {form: shape for shape in SHAPES for form in (shape, words.plural(shape))}
SINGULAR |= {form: shape for shape, word in words.SYNONYMS.items() for form in (word, words.plural(word))}
RELATED = {
    "left": r"\bleft of\b",
    "right": r"\bright of\b",
    "above": r"\b(above|over)\b",
    "below": r"\b(below|under)\b",
}


def examples(task: str, kind: str, caption: str = "any") -> Iterator[Example]:
    for seed in range(SEEDS):
        yield make(task, seed, split="train", kind=kind, caption=caption)


def named(text: str) -> tuple[tuple[str | None, str | None], ...]:
    """Colour and shape of each thing a text names, in its order, None for what it leaves out.

    A colour belongs to the shape right behind it; a shape or a colour alone counts as a thing of its own.
    """
    spoken = re.findall(r"[a-z]+", text.lower())
    found: list[tuple[str | None, str | None]] = []
    for before, word in zip(["", *spoken], spoken, strict=False):
        if word in SINGULAR:
            if before in COLOURS:
                found.pop()
            found.append((before if before in COLOURS else None, SINGULAR[word]))
        elif word in COLOURS:
            found.append((word, None))
    return tuple(found)


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def moves_said(text: str) -> list[str]:
    found = [(match.start(), way) for way, form in MOVING.items() for match in re.finditer(form, text)]
    return [way for _, way in sorted(found)]


@pytest.mark.parametrize(("task", "kind"), [(task, kind) for task in ("t2i", "t2v") for kind in kinds(task)])
def test_descriptions_name_every_thing_and_nothing_else(task: str, kind: str) -> None:
    for example in examples(task, kind):
        said = named(example.prompt)
        there = sorted({(thing.colour, thing.shape) for thing in example.target.things})
        assert sorted(said) == there, example.prompt
        for thing in example.target.things:
            assert (thing.texture == "plain") == (thing.texture not in example.prompt)
        behind = re.findall(rf"\b({'|'.join(BACKGROUNDS)}) background", example.prompt)
        assert behind in ([], [example.target.background])


def test_long_captions_name_the_background_and_sizes() -> None:
    for example in (*examples("t2i", "single", "long"), *examples("t2v", "pair", "long")):
        assert f"{example.target.background} background" in example.prompt
        sizes = re.findall(r"\b(small|little|large|big)\b", example.prompt)
        small = sum(word in ("small", "little") for word in sizes)
        assert len(sizes) == len(example.target.things)
        assert small == sum(thing.size == "small" for thing in example.target.things)


def test_short_captions_are_short() -> None:
    lengths = [[len(e.prompt.split()) for e in examples("t2i", "single", length)] for length in ("short", "long")]
    assert np.mean(lengths[0]) < 0.7 * np.mean(lengths[1])


def test_counts_are_right() -> None:
    for example in examples("t2i", "count"):
        number = next(COUNTED[word] for word in example.prompt.split() if word in COUNTED)
        assert number == len(example.target.things)


def test_relations_are_right() -> None:
    for example in examples("t2i", "pair"):
        (side,) = [name for name, form in RELATED.items() if re.search(form, example.prompt)]
        things = {(thing.colour, thing.shape): thing for thing in example.target.things}
        first, second = (things[pair] for pair in named(example.prompt) if pair in things)
        truth = {
            "left": first.x < second.x,
            "right": first.x > second.x,
            "above": first.y < second.y,
            "below": first.y > second.y,
        }
        assert truth[side], example.prompt


@pytest.mark.parametrize(("task", "kind"), [("t2v", "single"), ("t2v", "pair"), ("ti2v", "references")])
def test_directions_and_other_motion_are_told_in_the_order_of_the_things(task: str, kind: str) -> None:
    for example in examples(task, kind):
        motions = [thing.motion for thing in example.target.things]
        assert moves_said(example.prompt) == [motion.direction for motion in motions if motion.direction]
        assert len(re.findall(r"\b(spins|rotates)\b", example.prompt)) == sum(motion.spins for motion in motions)
        grown = len(re.findall(r"\b(grows|gets bigger)\b", example.prompt))
        assert grown == sum(motion.growth == "grows" for motion in motions)
        for speed in re.findall(r"\b(slowly|quickly|fast)\b", example.prompt):
            assert any(motion.speed == ("slowly" if speed == "slowly" else "quickly") for motion in motions)


def test_pictures_come_alive_as_told() -> None:
    for example in examples("i2v", "motion"):
        moving = [thing.motion.direction for thing in example.target.things if thing.motion.direction]
        assert sorted(moves_said(example.prompt)) == sorted(moving)
        for colour, shape in named(example.prompt):
            assert any(
                colour in (None, thing.colour) and shape in (None, thing.shape) for thing in example.target.things
            )


def test_what_a_request_says_of_a_thing_fits_exactly_one() -> None:
    for kind in ("recolour", "remove", "move", "background"):
        for example in examples("ti2i", kind):
            assert example.source is not None
            for colour, shape in named(example.prompt):
                if shape is None and f"{colour} thing" not in example.prompt:
                    continue  # the new colour
                fits = [
                    index
                    for index, thing in enumerate(example.source.things)
                    if colour in (None, thing.colour) and shape in (None, thing.shape)
                ]
                assert fits == list(example.edited), example.prompt


def test_requests_name_the_new_colour_shape_and_background() -> None:
    for example in examples("ti2i", "recolour"):
        assert re.search(rf"\b{example.target.things[example.edited[0]].colour}\b", example.prompt)
    for example in examples("tv2v", "replace"):
        new = example.target.things[example.edited[0]]
        assert new.shape in [shape for _, shape in named(example.prompt)]
    for example in examples("tv2v", "background"):
        assert re.search(rf"\b{example.target.background}\b", example.prompt)
    for example in examples("ti2i", "add"):
        new = example.target.things[-1]
        assert (new.colour, new.shape) in named(example.prompt)


def test_references_must_sometimes_be_looked_at() -> None:
    for task, kind in (("ti2v", "references"), ("ti2i", "with_reference"), ("tiv2v", "with_reference")):
        shares = [bool(named(example.prompt)) for example in examples(task, kind)]
        assert 0.1 < np.mean(shares) < 1.0


def test_proxy_prompts_point_at_one_image() -> None:
    for example in examples("ti2i", "reconstruct"):
        (number,) = re.findall(r"\d", example.prompt)
        assert example.images[int(number) - 1] == example.target
    for example in examples("ti2i", "select", "short"):
        ((colour, shape),) = named(example.prompt)
        fits = {
            image
            for image in example.images
            if any(colour == thing.colour and shape in (None, thing.shape) for thing in image.things)
        }
        assert fits == {example.target}


def test_the_vocabulary_is_small_and_lower_case() -> None:
    seen: set[str] = set()
    for task in KINDS:
        for kind in all_kinds(task):
            for seed in range(SEEDS):
                prompt = make(task, seed, split="test", kind=kind).prompt
                assert prompt == prompt.lower().strip()
                assert "  " not in prompt
                assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|\bNone\b", prompt), prompt
                seen.update(re.findall(r"[a-z]+|\d", prompt))
    assert len(seen) <= MOST_WORDS


def test_a_caption_depends_on_its_generator_alone() -> None:
    scene = Scene("navy", (Thing("star", "red", 0.25, 0.25, motion=Motion("down")), Thing("ring", "pink", 0.75, 0.7)))
    for length in ("long", "short"):
        texts = {caption(scene, generator(seed), length) for seed in range(30)}
        assert len(texts) > 5
        assert caption(scene, generator(3), length) == caption(scene, generator(3), length)
        for text in texts:
            assert set(named(text)) == {("red", "star"), ("pink", "ring")}
            assert moves_said(text) == ["down"]


def test_places_are_told_only_where_they_are_clear() -> None:
    def places(x: float, y: float) -> set[str]:
        scene = Scene("gray", (Thing("cross", "blue", x, y),))
        return {caption(scene, generator(seed), "long") for seed in range(20)}

    assert all("top right" in text for text in places(0.77, 0.22))
    assert not any(re.search(r"top|left|right|bottom|center|middle", text) for text in places(0.375, 0.375))


def test_an_empty_scene_has_a_caption() -> None:
    assert caption(Scene("beige", ()), generator(0), "long") == "an empty beige background."


def test_named_reads_synonyms_plurals_and_lone_words() -> None:
    assert named("Two red discs and the donut") == (("red", "circle"), (None, "ring"))
    assert named("make the green thing blue") == (("green", None), ("blue", None))
