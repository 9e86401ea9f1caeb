"""The judge's verdicts: the truth of every kind of example is right, and each way to miss the point is not."""

from dataclasses import replace

import numpy as np
import pytest

from tests.unit.degraded import degraded
from vino_rt.world.draw import draw
from vino_rt.world.examples import KINDS, PROXIES, Example, make
from vino_rt.world.judge import Verdict, judge, psnr
from vino_rt.world.judge.verdict import BEST, kept
from vino_rt.world.scene import COLOURS, DIRECTIONS, Motion, Scene, Thing

ALL = [(task, kind) for task in KINDS for kind in KINDS[task]] + [("ti2i", kind) for kind in PROXIES]
SIZES = ((64, 64), (80, 48), (48, 80))
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


def drawn(example: Example, scene: Scene) -> np.ndarray:
    """Another scene as the answer to an example."""
    return draw(scene, width=example.width, height=example.height, frames=example.frames, fps=example.fps)


def source(example: Example) -> np.ndarray:
    """What an edit starts from, as frames."""
    clip = example.clip()
    return clip if clip is not None else example.picture(len(example.images) - 1)[None]


def decoder(frames: np.ndarray) -> np.ndarray:
    """A stand-in for an autoencoder: it blurs and adds noise."""
    return degraded(frames, np.random.default_rng(9), sigma=0.8, noise=3.0, shift=0.0)


def scene_of(*things: Thing, background: str = "gray") -> Scene:
    return Scene(background, things)


def asked(task: str, kind: str, target: Scene, prompt: str = "", **rest: object) -> Example:
    frames = 1 if task in ("t2i", "ti2i") else 9
    return Example(task, kind, prompt, target, frames, 64, 64, **rest)  # type: ignore[arg-type]


RED = Thing("circle", "red", 0.25, 0.5, "small")
BLUE = Thing("star", "blue", 0.75, 0.5, "small")


@pytest.mark.parametrize(("task", "kind"), ALL)
def test_truth_is_right(task: str, kind: str) -> None:
    for seed in range(5):
        example = make(task, seed, split=("test", "unseen")[seed % 2], kind=kind, size=SIZES[seed % 3])
        verdict = judge(example, example.truth())
        assert all(verdict.parts.values()), (example.prompt, verdict)
        assert verdict.right
        assert example.target.background in verdict.seen


@pytest.mark.parametrize(("task", "kind"), ALL)
def test_truth_through_a_decoder_is_right(task: str, kind: str) -> None:
    for seed in range(3):
        example = make(task, seed, split="test", kind=kind)
        verdict = judge(example, decoder(example.truth()), floor=decoder)
        assert verdict.right, (example.prompt, verdict)


@pytest.mark.parametrize("task", ["ti2i", "tv2v", "tiv2v"])
def test_an_edit_not_done_is_wrong(task: str) -> None:
    examples = [make(task, seed, split="test", frames=9) for seed in range(15)]
    for example in (example for example in examples if example.edits):
        verdict = judge(example, source(example))
        assert not verdict.right, (example.prompt, verdict)
        assert not verdict.parts["done"]
        assert verdict.parts["kept"]


@pytest.mark.parametrize("task", ["t2v", "i2v", "ti2v"])
def test_a_clip_that_stands_still_is_wrong(task: str) -> None:
    for seed in range(6):
        example = make(task, seed, split="test", frames=9)
        if any(thing.motion.direction for thing in example.target.things):
            verdict = judge(example, np.repeat(example.truth()[:1], example.frames, axis=0))
            assert not verdict.right, (example.prompt, verdict)


@pytest.mark.parametrize("task", list(KINDS))
def test_the_answer_to_something_else_is_wrong(task: str) -> None:
    for seed in range(6):
        example = make(task, seed, split="test", frames=9)
        colours = {thing.colour for thing in example.target.things}
        other = next(name for name in COLOURS if name not in colours)
        thing = Thing("cross", other, 0.5, 0.5, motion=Motion(spins=True) if example.frames > 1 else Motion())
        assert not judge(example, drawn(example, Scene("white", (thing,)))).right, example.prompt


def still(*things: Thing) -> Verdict:
    """The verdict on things drawn where a red circle left of a blue star was asked for."""
    example = asked("t2i", "pair", scene_of(RED, BLUE), "a red circle left of a blue star on a gray background")
    return judge(example, drawn(example, scene_of(*things)))


def test_two_things() -> None:
    assert still(RED, BLUE).right
    swapped = still(replace(RED, colour="blue"), replace(BLUE, colour="red"))
    assert not swapped.right
    assert not swapped.parts["colour"] or not swapped.parts["shape"]
    sides = still(replace(RED, x=0.75), replace(BLUE, x=0.25))
    assert sides.right
    assert not sides.parts["side"]
    assert not still(RED).right
    assert not still(RED, BLUE, Thing("ring", "green", 0.5, 0.2, "small")).right


def test_one_thing_at_its_place() -> None:
    target = scene_of(replace(RED, x=0.25, y=0.25))
    example = asked("t2i", "single", target, "a red circle at the top left on a gray background")
    parts = judge(example, drawn(example, scene_of(replace(RED, x=0.75, y=0.75), background="navy"))).parts
    assert parts == {
        "colour": True, "shape": True, "number": True, "alone": True, "place": False, "background": False
    }  # fmt: skip
    assert not judge(example, drawn(example, scene_of(RED, replace(RED, x=0.75)))).right
    assert "place" not in judge(replace(example, prompt="a red circle"), drawn(example, target)).parts


def test_counting() -> None:
    things = [Thing("ring", "pink", x, 0.5, "tiny") for x in (0.2, 0.5, 0.8)]
    example = asked("t2i", "count", scene_of(*things), "three pink rings")
    assert judge(example, drawn(example, scene_of(*things))).right
    assert not judge(example, drawn(example, scene_of(*things[:2]))).right
    four = scene_of(*things, Thing("ring", "pink", 0.5, 0.2, "tiny"))
    assert not judge(example, drawn(example, four)).right


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_direction(direction: str) -> None:
    thing = Thing("circle", "red", 0.5, 0.5, "small", motion=Motion(direction, "slowly"))
    example = asked("t2v", "single", scene_of(thing), f"a red circle moves {direction} slowly")
    assert judge(example, example.truth()).right
    for other in DIRECTIONS.keys() - {direction}:
        moved = scene_of(replace(thing, motion=Motion(other, "slowly")))
        verdict = judge(example, drawn(example, moved))
        assert not verdict.right
        assert verdict.parts["colour"]
        assert not verdict.parts["direction"]
    fast = judge(example, drawn(example, scene_of(replace(thing, motion=Motion(direction, "quickly")))))
    assert fast.right
    assert not fast.parts["speed"]


def test_references_that_are_mixed_up_are_wrong() -> None:
    red, blue = replace(RED, motion=Motion("up")), replace(BLUE, motion=Motion("down"))
    images = (scene_of(RED), scene_of(BLUE))
    prompt = "the thing in image 1 on the left moves up and the thing in image 2 on the right moves down"
    example = asked("ti2v", "references", scene_of(red, blue), prompt, images=images)
    assert judge(example, example.truth()).right
    places = scene_of(replace(red, x=0.75), replace(blue, x=0.25))
    assert not judge(example, drawn(example, places)).right
    motions = scene_of(replace(red, motion=blue.motion), replace(blue, motion=red.motion))
    assert not judge(example, drawn(example, motions)).right
    colours = scene_of(replace(red, colour="blue"), replace(blue, colour="red"))
    assert not judge(example, drawn(example, colours)).right


def test_a_first_frame_that_changed_is_wrong() -> None:
    example = make("i2v", 3, split="test", frames=9)
    verdict = judge(example, drawn(example, replace(example.target, background="beige")))
    assert verdict.parts["motion"]
    assert not verdict.parts["kept"]
    assert not verdict.right


def test_an_edit_that_changes_the_rest_is_wrong() -> None:
    target = scene_of(replace(RED, colour="yellow"), BLUE)
    example = asked("ti2i", "recolour", target, "make the red circle yellow", images=(scene_of(RED, BLUE),))
    assert judge(example, example.truth()).right
    shifted = judge(example, drawn(example, scene_of(target.things[0], replace(BLUE, y=0.6))))
    assert shifted.parts["done"]
    assert not shifted.parts["kept"]
    assert not judge(example, drawn(example, scene_of(target.things[0]))).right


@pytest.mark.parametrize(
    ("prompt", "x", "y", "right"),
    [
        ("add a blue star", 0.5, 0.2, True),
        ("add a blue star at the right", 0.78, 0.55, True),
        ("add a blue star at the right", 0.5, 0.2, False),
        ("add a blue star to the right of the red circle", 0.6, 0.6, True),
        ("add a blue star to the right of the red circle", 0.3, 0.15, False),
    ],
)
def test_what_is_added_may_lie_wherever_the_prompt_allows(prompt: str, x: float, y: float, right: bool) -> None:
    example = asked("ti2i", "add", scene_of(RED, BLUE), prompt, images=(scene_of(RED),), edited=(1,))
    verdict = judge(example, drawn(example, scene_of(RED, replace(BLUE, x=x, y=y))))
    assert (verdict.right, verdict.parts["placed"], verdict.parts["kept"]) == (right, right, True)


def test_psnr() -> None:
    black = np.zeros((2, 4, 6, 3), np.uint8)
    assert psnr(black, black) == BEST
    assert psnr(black, black + np.uint8(255)) == 0.0
    assert psnr(black, black + np.uint8(10)) == pytest.approx(20 * np.log10(25.5), abs=1e-4)
    where = np.zeros((2, 4, 6), np.bool_)
    half = black.copy()
    half[:, :, :3] = 200
    where[:, :, 3:] = True
    assert psnr(black, half, where) == BEST
    assert psnr(black, half, ~where) == pytest.approx(20 * np.log10(255 / 200), abs=1e-4)
    assert psnr(black, half, np.zeros_like(where)) == BEST


def test_the_floor_gives_three_decibels() -> None:
    frames = np.full((1, 32, 32, 3), 100, np.uint8)

    def floor(pixels: np.ndarray) -> np.ndarray:
        return pixels + np.uint8(10)

    assert kept(frames + np.uint8(14), frames, floor)
    assert not kept(frames + np.uint8(15), frames, floor)
    assert kept(frames + np.uint8(11), frames, None)
    assert not kept(frames + np.uint8(12), frames, None)
