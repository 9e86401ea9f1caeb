"""Examples that take things from reference images: edits with a reference, clips of references, the proxy tasks.

It knows how prompts speak of numbered images; images are numbered from 1 in the order given, as the model reads them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from vino_rt.world import words
from vino_rt.world.captions import caption
from vino_rt.world.edits import Edit, beside, changed, finished, here, source_scene
from vino_rt.world.example import Brief, Example
from vino_rt.world.layout import ANYWHERE, PLACES, SIDES, Spot, any_motion, any_thing, arrange, put, relation
from vino_rt.world.scene import BACKGROUNDS, Motion, Scene, Thing

CENTRED = 0.5
"""How often a reference shows its thing at the centre instead of anywhere."""
SPARE = 0.2
"""How often an edit with a reference is given a second one that it does not use."""
HOW_MANY = {1: 0.35, 2: 0.5, 3: 0.15}
"""References of a clip."""
OPPOSITE_SIDES = (("left", "right"), ("top", "bottom"))
CORNERS = ("top left", "top right", "bottom left", "bottom right")
"""Where two and three things of a clip from references begin, in some order."""
PICKED = {2: 0.6, 3: 0.4}
"""Images to choose from in the proxy tasks."""
LENDS = {"colour": 0.3, "shape": 0.2, "replace": 0.25, "add": 0.15, "background": 0.1}


def portrait(brief: Brief, thing: Thing) -> Scene | None:
    """A reference image: the thing alone, at rest, on a background of its own."""
    alone = replace(thing, motion=Motion())
    put_down = put(brief.dice, alone, brief.canvas, PLACES["center"] if brief.dice.chance(CENTRED) else ANYWHERE)
    return None if put_down is None else Scene(brief.dice.one(tuple(BACKGROUNDS)), (put_down,))


def portraits(brief: Brief, things: Sequence[Thing]) -> tuple[Scene, ...] | None:
    """A reference image of each thing."""
    shown = [portrait(brief, thing) for thing in things]
    whole = tuple(scene for scene in shown if scene is not None)
    return whole if len(whole) == len(things) else None


def with_reference(brief: Brief) -> Example | None:
    """An edit that takes a colour, a shape, a thing or a background from a reference image."""
    dice = brief.dice
    source = source_scene(brief)
    if source is None:
        return None
    lent = [any_thing(dice, source.things)]
    if dice.chance(SPARE):
        lent.append(any_thing(dice, [*source.things, *lent]))
    images = portraits(brief, lent)
    which = dice.one(range(len(lent)))
    done = None if images is None else _lend(brief, source, images[which], which + 1, len(lent) + 1)
    if images is None or done is None:
        return None
    video = brief.frames > 1
    return brief.example(
        finished(brief, done.text),
        done.target,
        images=images if video else (*images, source),
        video=source if video else None,
        base_image=not video,
        focus=done.focus,
        edited=done.edited,
    )


def _lend(brief: Brief, source: Scene, image: Scene, number: int, base: int) -> Edit | None:
    """The edit of the source, which is image `base` where it is an image, with what image `number` shows."""
    dice = brief.dice
    (model,) = image.things
    what = dice.weighted(LENDS)
    if what == "add":
        placed, spot = beside(brief, source, model)
        new = len(source.things)
        text = f"{dice.one(('add', 'put')) if spot else 'add'} {words.lent(dice, model, number)}{spot}"
        if placed is None:
            return None
        return Edit(text, replace(source, things=(*source.things, placed)), (new,), (new,))
    if what == "background":
        if image.background == source.background:
            return None
        forms = (
            f"use the background of image {number}",
            f"replace the background with the background of image {number}",
        )
        return Edit(dice.one(forms), replace(source, background=image.background), tuple(range(len(source.things))), ())
    index = dice.one(range(len(source.things)))
    thing = source.things[index]
    name = words.refer(dice, thing, long=brief.long) + here(brief, base)
    from_image = words.lent(dice, model, number)
    if what == "replace":
        new_thing = replace(thing, colour=model.colour, shape=model.shape, texture=model.texture)
        forms = (f"replace {name} by {from_image}", f"replace {name} with {from_image}")
    elif what == "colour":
        new_thing = replace(thing, colour=model.colour)
        forms = (f"give {name} the color of {from_image}", f"paint {name} in the color of {from_image}")
    else:
        new_thing = replace(thing, shape=model.shape)
        forms = (f"give {name} the shape of {from_image}", f"change the shape of {name} to the shape of {from_image}")
    return Edit(dice.one(forms), changed(source, index, new_thing), (index,), (index,))


def clip_of_references(brief: Brief) -> Example | None:
    """A clip in which the things of one to three reference images appear and do what the prompt says."""
    dice = brief.dice
    number = dice.weighted(HOW_MANY)
    things: list[Thing] = []
    for _ in range(number):
        things.append(any_thing(dice, things, ("tiny",) if number > 2 else ("small", "large")))
    images = portraits(brief, things)
    things = [replace(thing, motion=_part(brief, thing, number)) for thing in things]
    if images is None or all(thing.motion.rests for thing in things):
        return None
    names, spots = _starts(brief, number)
    placed = arrange(dice, things, brief.canvas, spots)
    if placed is None:
        return None
    scene = Scene(dice.one(tuple(BACKGROUNDS)), placed)
    return brief.example(_cast(brief, scene, names), scene, images=images, focus=tuple(range(number)))


def _starts(brief: Brief, number: int) -> tuple[list[str | None], list[Spot]]:
    """Where so many things begin: names, None for a place not worth telling, and spots."""
    dice = brief.dice
    if number == 1:
        name = dice.one((*PLACES, None))
        return [name if brief.long else None], [PLACES[name] if name else ANYWHERE]
    if number == 2:
        sides = dice.some(dice.one(OPPOSITE_SIDES), 2)
        return list(sides), [SIDES[side] for side in sides]
    corners = dice.some(CORNERS, number)
    return list(corners), [PLACES[corner] for corner in corners]


def _part(brief: Brief, thing: Thing, number: int) -> Motion:
    """What a thing does in company: the more there are, the more often it rests."""
    rests = number > 1 and brief.dice.chance(0.3)
    return Motion() if rests else any_motion(brief.dice, thing.shape)


def _cast(brief: Brief, scene: Scene, names: Sequence[str | None]) -> str:
    """The prompt of a clip of references: who does what, where each starts, on which background."""
    dice = brief.dice
    clauses = []
    for number, (thing, name) in enumerate(zip(scene.things, names, strict=True), start=1):
        where = f" {words.place(dice, name)}" if name else ""
        clauses.append(f"{words.lent(dice, thing, number)}{where} {words.does(dice, thing.motion, speed=brief.long)}")
    text, background = words.listed(clauses), f"on a {scene.background} background"
    text = dice.one((f"{text}, {background}" if len(clauses) > 1 else f"{text} {background}", f"{background}, {text}"))
    return f"{text}." if brief.long else text


def pick(brief: Brief) -> Example | None:
    """One of several images once more, asked for by its number (`reconstruct`) or by what it shows (`select`)."""
    dice = brief.dice
    shown = []
    for _ in range(dice.weighted(PICKED)):
        things = [any_thing(dice)]
        if dice.chance(0.35):
            things.append(any_thing(dice, things))
        placed = arrange(dice, things, brief.canvas)
        if placed is None or (len(placed) == 2 and relation(*placed, brief.canvas.aspect) is None):
            return None
        shown.append(Scene(dice.one(tuple(BACKGROUNDS)), placed))
    index = dice.one(range(len(shown)))
    text = _by_number(brief, index + 1) if brief.kind == "reconstruct" else _by_content(brief, shown, index)
    if text is None:
        return None
    target = shown[index]
    return brief.example(text, target, images=tuple(shown), focus=tuple(range(len(target.things))))


def _by_number(brief: Brief, number: int) -> str:
    forms = (f"reproduce image {number}", f"show image {number}", f"the picture from image {number}")
    text = brief.dice.one((*forms, f"make image {number} again"))
    return f"{text}." if brief.long else text


def _by_content(brief: Brief, shown: Sequence[Scene], index: int) -> str | None:
    """A request that fits only one of the images, by one of its things or, when long, by all it shows."""
    dice, scene = brief.dice, shown[index]
    thing = dice.one(scene.things)
    others = [other for i, one in enumerate(shown) if i != index for other in one.things]
    if any((other.colour, other.shape) == (thing.colour, thing.shape) for other in others):
        return None
    if brief.long:
        whole = caption(scene, dice.rng, "long", aspect=brief.canvas.aspect)
        return f"{dice.one(('show the image of this', 'select the image of this'))}: {whole}"
    only_colour = all(other.colour != thing.colour for other in (*others, *(t for t in scene.things if t is not thing)))
    name = f"{thing.colour} thing" if only_colour and dice.chance(0.2) else words.noun(dice, thing, texture=False)
    return f"{dice.one(('the one with', 'show the image with', 'select the image with'))} the {name}"


MAKERS: dict[tuple[str, str], Callable[[Brief], Example | None]] = {
    ("ti2i", "with_reference"): with_reference,
    ("tiv2v", "with_reference"): with_reference,
    ("ti2v", "references"): clip_of_references,
    ("ti2i", "reconstruct"): pick,
    ("ti2i", "select"): pick,
}
