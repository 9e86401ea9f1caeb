"""What is kept from training: six pairs of colour and shape that no training or test example holds.

It knows scenes and the names of the splits, not how examples are made. `test` examples are new draws of what training
shows; `unseen` ones hold a pair that training never showed, of parts that it showed often.
"""

from collections.abc import Iterable

from vino_rt.world.scene import Scene, Thing

SPLITS = ("train", "test", "unseen")
HELD_OUT = frozenset(
    {
        ("purple", "circle"),
        ("orange", "square"),
        ("cyan", "triangle"),
        ("green", "star"),
        ("pink", "cross"),
        ("yellow", "ring"),
    }
)
"""Every shape once, no colour twice: each part is learned from all its other pairs. Red and blue keep all shapes."""


def held_out(thing: Thing) -> bool:
    """Whether training never shows a thing of this colour and shape."""
    return (thing.colour, thing.shape) in HELD_OUT


def belongs(split: str, scenes: Iterable[Scene], about: Iterable[Thing]) -> bool:
    """Whether an example of these scenes whose prompt is about these things may stand in a split."""
    assert split in SPLITS, f"unknown split {split}"
    if split == "unseen":
        return any(held_out(thing) for thing in about)
    return not any(held_out(thing) for scene in scenes for thing in scene.things)
