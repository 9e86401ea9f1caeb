"""Edits of a scene, by words alone: what changes, and how it is asked for.

It knows pictures and clips alike, for a scene is both; it does not know references (see `references`). Two things of
one scene never share a colour or a shape, so a request can name either.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from vino_rt.world import words
from vino_rt.world.example import Brief, Example
from vino_rt.world.layout import (
    ANYWHERE,
    PLACES,
    TRIES,
    any_motion,
    any_thing,
    arrange,
    place_of,
    put,
    relation,
    separate,
)
from vino_rt.world.scene import BACKGROUNDS, COLOURS, SHAPES, Motion, Scene, Thing

TWO = 0.5
"""How often the source shows two things."""
TOLD = {"place": 0.5, "relation": 0.38, "nothing": 0.12}
"""How the place of a new thing is told: by name, by how it lies to another thing, or not at all."""
FAR = 0.2
"""Least way of a move on one axis."""
KEEP = ("keep everything else the same", "leave the rest as it is", "do not change anything else")


@dataclass(frozen=True)
class Edit:
    """A changed scene, the request for it, and the indices that `Example` carries."""

    text: str
    target: Scene
    focus: tuple[int, ...]
    edited: tuple[int, ...]


def source_scene(brief: Brief, number: int | None = None) -> Scene | None:
    """A scene to edit, of one or two things; in a clip at least one of them moves."""
    dice = brief.dice
    things = [any_thing(dice)]
    if number == 2 or (number is None and dice.chance(TWO)):
        things.append(any_thing(dice, things))
    if brief.frames > 1:
        mover = dice.one(range(len(things)))
        for index, thing in enumerate(things):
            moves = index == mover or dice.chance(0.5)
            things[index] = replace(thing, motion=any_motion(dice, thing.shape) if moves else Motion())
        if things[mover].motion.rests:
            return None
    placed = arrange(dice, things, brief.canvas)
    return None if placed is None else Scene(dice.one(tuple(BACKGROUNDS)), placed)


def edit(brief: Brief) -> Example | None:
    """A picture or a clip, and the same with one change."""
    source = source_scene(brief)
    done = None if source is None else _EDITS[brief.kind](brief, source)
    if source is None or done is None:
        return None
    video = brief.frames > 1
    return brief.example(
        finished(brief, done.text),
        done.target,
        images=() if video else (source,),
        video=source if video else None,
        focus=done.focus,
        edited=done.edited,
    )


def finished(brief: Brief, text: str) -> str:
    """A request as a short line, or as a long one that also asks to keep the rest."""
    if not brief.long:
        return text
    return f"{text}. {brief.dice.one(KEEP)}."


def here(brief: Brief, number: int = 0) -> str:
    """Where the edited thing is, after its name: in long requests the image or video, by number where it has one."""
    if not brief.long:
        return ""
    if brief.frames > 1:
        return " in the video"
    return f" in image {number}" if number else " in the image"


def changed(source: Scene, index: int, thing: Thing) -> Scene:
    """The scene with one thing exchanged."""
    return replace(source, things=(*source.things[:index], thing, *source.things[index + 1 :]))


def other_colour(brief: Brief, source: Scene) -> str:
    """A colour that nothing in the scene has."""
    return brief.dice.one([name for name in COLOURS if name not in {thing.colour for thing in source.things}])


def other_shape(brief: Brief, source: Scene) -> str:
    """A shape that nothing in the scene has."""
    return brief.dice.one([name for name in SHAPES if name not in {thing.shape for thing in source.things}])


def _recolour(brief: Brief, source: Scene) -> Edit | None:
    dice = brief.dice
    index = dice.one(range(len(source.things)))
    thing, colour = source.things[index], other_colour(brief, source)
    name = words.refer(dice, thing, long=brief.long) + here(brief)
    forms = (
        f"make {name} {colour}",
        f"turn {name} {colour}",
        f"change the color of {name} to {colour}",
        f"paint {name} {colour}",
    )
    return Edit(dice.one(forms), changed(source, index, replace(thing, colour=colour)), (index,), (index,))


def _replace(brief: Brief, source: Scene) -> Edit | None:
    """Another shape in the same colour, or a thing new in both."""
    dice = brief.dice
    index = dice.one(range(len(source.things)))
    thing, shape = source.things[index], other_shape(brief, source)
    name = words.refer(dice, thing, long=brief.long) + here(brief)
    if dice.chance(0.5):
        new = replace(thing, shape=shape)
        shown = words.shape_word(dice, shape)
        forms = (
            f"turn {name} into {words.with_article(shown)}",
            f"change the shape of {name} to {words.with_article(shown)}",
            f"replace {name} by {words.with_article(f'{thing.colour} {shown}')}",
        )
    else:
        new = replace(thing, shape=shape, colour=other_colour(brief, source), texture="plain")
        shown = words.with_article(words.noun(dice, new))
        forms = (f"replace {name} by {shown}", f"replace {name} with {shown}", f"turn {name} into {shown}")
    return Edit(dice.one(forms), changed(source, index, new), (index,), (index,))


def _add(brief: Brief, source: Scene) -> Edit | None:
    dice = brief.dice
    thing = any_thing(dice, source.things)
    name = words.with_article(words.noun(dice, thing, size=brief.long))
    placed, spot = beside(brief, source, thing)
    if placed is None:
        return None
    verb = dice.one(("add", "put")) if spot else "add"
    new = len(source.things)
    return Edit(f"{verb} {name}{spot}", replace(source, things=(*source.things, placed)), (new,), (new,))


def beside(brief: Brief, source: Scene, thing: Thing) -> tuple[Thing | None, str]:
    """A resting thing put where it touches nothing, and the words for that place with a space before them."""
    dice = brief.dice
    told = dice.weighted(TOLD)
    still = [other for other in source.things if other.motion.rests]
    if told == "relation" and not still:
        return None, ""
    for _ in range(TRIES):
        where = dice.one(tuple(PLACES))
        placed = put(dice, thing, brief.canvas, PLACES[where] if told == "place" else ANYWHERE)
        if placed is None or not separate((*source.things, placed), brief.canvas):
            continue
        if told == "place":
            return placed, f" {words.place(dice, where)}"
        if told == "nothing":
            return placed, ""
        side = relation(placed, still[0], brief.canvas.aspect)
        if side is not None:
            return placed, f" {dice.one(words.RELATION_PHRASES[side])} {words.refer(dice, still[0], long=brief.long)}"
    return None, ""


def _remove(brief: Brief, source: Scene) -> Edit | None:
    dice = brief.dice
    index = dice.one(range(len(source.things)))
    name = words.refer(dice, source.things[index], long=brief.long) + here(brief)
    forms = (f"remove {name}", f"delete {name}", f"take {name} away")
    left = tuple(thing for i, thing in enumerate(source.things) if i != index)
    return Edit(dice.one(forms), replace(source, things=left), (), (index,))


def _move(brief: Brief, source: Scene) -> Edit | None:
    dice = brief.dice
    index = dice.one(range(len(source.things)))
    thing, where = source.things[index], dice.one(tuple(PLACES))
    placed = put(dice, thing, brief.canvas, PLACES[where])
    if placed is None or max(abs(placed.x - thing.x), abs(placed.y - thing.y)) < FAR:
        return None
    target = changed(source, index, placed)
    if place_of(thing.x, thing.y) == where or not separate(target.things, brief.canvas):
        return None
    name = words.refer(dice, thing, long=brief.long) + here(brief)
    text = f"{dice.one(('move', 'put'))} {name} {dice.one(words.GOAL_PHRASES[where])}"
    return Edit(text, target, (index,), (index,))


def _background(brief: Brief, source: Scene) -> Edit | None:
    dice = brief.dice
    colour = dice.one([name for name in BACKGROUNDS if name != source.background])
    name = f"the background{' of the video' if brief.frames > 1 and brief.long else ''}"
    forms = (
        f"make {name} {colour}",
        f"change {name} to {colour}",
        f"change the color of {name} to {colour}",
        f"replace {name} with a {colour} background",
    )
    return Edit(dice.one(forms), replace(source, background=colour), tuple(range(len(source.things))), ())


_EDITS: dict[str, Callable[[Brief, Scene], Edit | None]] = {
    "recolour": _recolour,
    "replace": _replace,
    "add": _add,
    "remove": _remove,
    "move": _move,
    "background": _background,
}
CLIP_EDITS = ("recolour", "replace", "background", "remove", "add")
MAKERS: dict[tuple[str, str], Callable[[Brief], Example | None]] = {
    **{("ti2i", kind): edit for kind in _EDITS},
    **{("tv2v", kind): edit for kind in CLIP_EDITS},
}
