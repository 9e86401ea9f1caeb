"""Captions read by the judge: the world's own in all their wordings, freer ones, and wrong ones."""

import numpy as np
import pytest

from vino_rt.world.captions import LENGTHS, caption
from vino_rt.world.examples import make
from vino_rt.world.judge import understands
from vino_rt.world.judge.understand import Named, read
from vino_rt.world.scene import Motion, Scene, Thing

SCENE = Scene(
    "navy",
    (
        Thing("circle", "red", 0.3, 0.5, motion=Motion("left", "slowly", spins=False)),
        Thing("star", "blue", 0.7, 0.5, motion=Motion(spins=True)),
    ),
)


@pytest.mark.parametrize(("task", "kind"), [("t2i", "single"), ("t2i", "pair"), ("t2i", "count"), ("t2v", None)])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_worlds_own_captions_are_right(task: str, kind: str | None, length: str) -> None:
    for seed in range(40):
        example = make(task, seed, split="test", kind=kind, size=(80, 48))
        text = caption(example.target, np.random.default_rng(seed), length, aspect=example.aspect)
        verdict = understands(text, example.target)
        assert verdict.right, (text, verdict)
        assert all(verdict.parts.values())
        assert understands(example.prompt, example.target).right


@pytest.mark.parametrize(
    "text",
    [
        "A red circle moves to the left and a blue star spins.",
        "On a navy background, a large blue star rotates while a striped red disc slides left slowly.",
        "a red disk slowly moving leftwards; the blue star is spinning",
        "the blue star turns, the red circle goes slowly to the left",
    ],
)
def test_other_wordings_are_right(text: str) -> None:
    assert understands(text, SCENE).right


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("a red circle moves to the right and a blue star spins", {"motion"}),
        ("a red circle spins and a blue star moves to the left", {"motion"}),
        ("a red circle moves to the left and spins and a blue star", {"motion"}),
        ("a blue circle moves to the left and a red star spins", {"together", "motion"}),
        ("a red circle moves to the left", {"colour", "shape", "number", "together", "motion"}),
        ("a red square moves to the left and a blue star spins", {"shape", "together", "motion"}),
        ("a circle moves to the left and a blue star spins", {"colour", "together", "motion"}),
        ("on a beige background a red circle moves left and a blue star spins", {"background"}),
        ("", {"colour", "shape", "number", "together", "motion"}),
    ],
)
def test_what_is_wrong_is_named(text: str, wrong: set[str]) -> None:
    verdict = understands(text, SCENE)
    assert {name for name, right in verdict.parts.items() if not right} == wrong
    assert verdict.right == (wrong <= {"background"})


def test_places_are_no_motion_and_numbers_count() -> None:
    assert read("a red circle to the left of a blue star") == (
        Named("circle", "red", None, False, None),
        Named("star", "blue", None, False, None),
    )
    assert read("three small pink crosses") == (Named("cross", "pink", None, False, None),) * 3
    assert read("a green donut gets bigger") == (Named("ring", "green", None, False, "grows"),)
    assert read("nothing but words") == ()
