"""Examples that set a picture in motion: by words (i2v), or as the thing in a reference video moves (clone).

It knows that the clip begins exactly at the picture: the target at time 0 is the image's scene.
"""

from collections.abc import Callable
from dataclasses import replace

from vino_rt.world import words
from vino_rt.world.edits import source_scene
from vino_rt.world.example import Brief, Example
from vino_rt.world.layout import any_motion, any_thing, arrange
from vino_rt.world.scene import BACKGROUNDS, Motion, Scene, Thing

ALONE = 0.65
"""How often the picture shows one thing only."""
UNNAMED = 0.35
"""How often a thing that is alone is called "it" or "the thing"."""


def motion(brief: Brief) -> Example | None:
    """A picture as the first frame, and a prompt that says what moves."""
    dice = brief.dice
    scene = source_scene(brief, 1 if dice.chance(ALONE) else 2)
    if scene is None:
        return None
    image = _halted(scene)
    return brief.example(_told(brief, scene), scene, images=(image,), focus=tuple(range(len(scene.things))))


def clone(brief: Brief) -> Example | None:
    """The thing of a picture does what another thing does in a video."""
    dice = brief.dice
    thing = any_thing(dice)
    dancer = any_thing(dice, (thing,))
    dancer = replace(dancer, motion=any_motion(dice, dancer.shape))
    if dancer.motion.rests:
        return None
    shown = arrange(dice, (dancer,), brief.canvas)
    placed = arrange(dice, (replace(thing, motion=dancer.motion),), brief.canvas)
    if shown is None or placed is None:
        return None
    target = Scene(dice.one(tuple(BACKGROUNDS)), placed)
    video = Scene(dice.one(tuple(BACKGROUNDS)), shown)
    image = _halted(target)
    return brief.example(_likened(brief, placed[0], dancer), target, images=(image,), video=video, focus=(0,))


def _halted(scene: Scene) -> Scene:
    """The scene as it is at time 0, at rest."""
    return replace(scene, things=tuple(replace(thing, motion=Motion()) for thing in scene.things))


def _told(brief: Brief, scene: Scene) -> str:
    dice = brief.dice
    clauses = []
    for thing in scene.things:
        if len(scene.things) == 1 and not brief.long and dice.chance(UNNAMED):
            name = dice.one(("it", "the thing"))
        else:
            name = words.refer(dice, thing, long=brief.long)
        clauses.append((f"{name} {words.does(dice, thing.motion, speed=brief.long or dice.chance(0.25))}", thing))
    # What rests need not be spoken of: the picture shows it.
    spoken = [text for text, thing in clauses if brief.long or not thing.motion.rests]
    text = f" {dice.one(('and', 'while'))} ".join(dice.some(spoken, len(spoken)))
    if dice.chance(0.25):
        text = f"{dice.one(('the image comes alive', 'animate the image'))}: {text}"
    if not brief.long:
        return text
    return f"{text}. {dice.one((f'the background stays {scene.background}', 'the background does not change'))}."


def _likened(brief: Brief, thing: Thing, dancer: Thing) -> str:
    dice = brief.dice
    mover = words.lent(dice, thing, 1)
    video = dice.one(("the video", "video 1"))
    model = f"{words.refer(dice, dancer, long=brief.long) if dice.chance(0.5) else 'the thing'} in {video}"
    forms = (
        f"{mover} moves like {model}",
        f"{mover} does the same as {model}",
        f"animate {mover} with the motion of {model}",
        f"animate image 1 with the motion of {video}",
    )
    text = dice.one(forms)
    return f"{text}. the background stays {dice.one(('as it is', 'the same'))}." if brief.long else text


MAKERS: dict[tuple[str, str], Callable[[Brief], Example | None]] = {
    ("i2v", "motion"): motion,
    ("tiv2v", "clone"): clone,
}
