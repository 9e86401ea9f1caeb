"""A record and its files to something that can be trained on: every part found, measured and given a bucket.

It reads headers, never pixels. What cannot be used ends as `Unusable` with a reason.
"""

import functools
import math
import posixpath
from dataclasses import dataclass

from vino_rt.bucket import patch_grid
from vino_rt.errors import InputError, VinoError
from vino_rt.models.vino import prepare
from vino_rt.models.vino.prepare import Letterbox
from vino_rt.plan import BOUNDARY_ROWS, volume
from vino_rt.settings import Clip
from vino_rt.task_rules import TASKS, check_task, infer_task
from vino_rt.train.data.blob import Blob, Header, read_header
from vino_rt.train.data.buckets import Bucket, Sizing, choose_bucket
from vino_rt.train.data.grouping import CLIPS, SOURCE, TARGET, Group, split_name
from vino_rt.train.data.records import ALIGN, MISSING, SHAPE, TASK, TWICE, Captions, Draft, Unusable
from vino_rt.train.data.stores import Store

ALIGN_TOLERANCE = 0.03
"""How far the aspect ratios of a target and of the reference that decides its size may lie apart (logarithm)."""


@dataclass(frozen=True)
class Part:
    """One media file of a record."""

    blob: Blob
    header: Header


@dataclass(frozen=True)
class Record:
    """One example on disk, checked as far as headers go."""

    key: str
    task: str
    captions: Captions
    target: Part
    images: tuple[Part, ...]
    """Image references in the prompt's order; where the task edits a picture, that one is the last."""
    video: Part | None
    base_image: bool
    bucket: Bucket
    rows: int
    """Rows of the image stream: target, references and their boundaries."""


@dataclass(frozen=True)
class Names:
    """Where a record's parts are looked for, by name within the store."""

    target: str
    images: tuple[str, ...]
    video: str | None
    has_base: bool
    """Whether there are references besides a picture in the role `source`."""
    first_frame: bool
    """Whether the images say by their names that they are no first frame."""


def name_parts(draft: Draft, group: Group, folder: str) -> Names:
    """Names of the parts: those the record gives, relative to its `folder`; else by role. Raises Unusable."""

    def named(name: str) -> str:
        return posixpath.normpath(posixpath.join(folder, name))

    roles = {role: _only(names) for role, names in group.media.items() if role != TARGET or draft.target is None}
    if draft.target is None and TARGET not in roles:
        raise Unusable(MISSING, f"{group.key}: no target; name one, or put a picture or video of the same name beside")
    references = tuple(roles[role] for role in group.references)
    source = roles.get(SOURCE)
    moving = source is not None and _is_clip(source)
    pictures = (*references, source) if source is not None and not moving else references
    return Names(
        target=named(draft.target) if draft.target is not None else roles[TARGET],
        images=tuple(named(image) for image in draft.images) or pictures,
        video=named(draft.video) if draft.video is not None else source if moving else None,
        has_base=not draft.images and len(pictures) > len(references) > 0,
        first_frame=bool(draft.images) or len(pictures) > len(references),
    )


def assemble(key: str, draft: Draft, names: Names, store: Store, sizing: Sizing, max_bytes: int) -> Record:
    """Find, measure and size all parts. Raises Unusable with the reason."""

    def part(name: str) -> Part:
        blob = store.find(name)
        if blob is None:
            raise Unusable(MISSING, f"no file {name!r}")
        return Part(blob, read_header(blob, max_bytes))

    target = part(names.target)
    images = tuple(part(name) for name in names.images)
    video = part(names.video) if names.video is not None else None
    base_image = names.has_base if draft.base_image is None else draft.base_image
    task = draft.task or _infer(target, images, video, names)
    _check(task, target, images, video, base_image)
    frames = min(part.header.frames for part in (target, video) if part is not None)
    bucket = choose_bucket(target.header.width, target.header.height, frames, sizing)
    clips = [_reference_clip(part, sizing) for part in images]
    if TASKS[task].size_from == "image":
        clips[-1] = (1, bucket.height, bucket.width)
    size = (bucket.frames, bucket.height, bucket.width)
    rows = count_rows((*clips, size) if video else tuple(clips), size, sizing.unit)
    return Record(key, task, draft.captions, target, images, video, base_image, bucket, rows)


def count_rows(references: tuple[Clip, ...], target: Clip, unit: int) -> int:
    """Rows of the image stream for sizes in (frames, height, width) of pixels: all patches and the boundary rows."""
    return volume(patch_grid(target, unit)) + sum(volume(patch_grid(clip, unit)) + BOUNDARY_ROWS for clip in references)


@functools.lru_cache(maxsize=4096)
def reference_box(width: int, height: int, area: int, unit: int) -> Letterbox:
    """The runtime's letterbox for an image reference; remembered, as sizes repeat. Raises Unusable (SHAPE)."""
    try:
        return prepare.reference_box("an image reference", width, height, area, unit)
    except InputError as error:
        raise Unusable(SHAPE, str(error)) from error


def _reference_clip(part: Part, sizing: Sizing) -> Clip:
    box = reference_box(part.header.width, part.header.height, sizing.area, sizing.unit)
    return 1, box.height, box.width


def _only(names: list[str]) -> str:
    if len(names) > 1:
        raise Unusable(TWICE, f"{' and '.join(names)} are for one part; keep one, or name it in the record")
    return names[0]


def _is_clip(name: str) -> bool:
    return split_name(name)[2] in CLIPS


def _infer(target: Part, images: tuple[Part, ...], video: Part | None, names: Names) -> str:
    task = infer_task(len(images), video is not None, None, None, moving=target.header.frames > 1)
    return "ti2v" if task == "i2v" and not names.first_frame else task


def _check(task: str, target: Part, images: tuple[Part, ...], video: Part | None, base_image: bool) -> None:
    try:
        check_task(task, len(images), video is not None, target.header.frames)
    except VinoError as error:
        raise Unusable(TASK, str(error)) from error
    if any(image.header.clip for image in images) or (video is not None and not video.header.clip):
        raise Unusable(TASK, "'images' are pictures and 'video' is a clip; one of them is not")
    if base_image and len(images) < 2:
        raise Unusable(TASK, f"base_image with {len(images)} images; it needs a reference and the image to edit")
    decides = {"image": images[-1:], "video": (video,), "request": ()}[TASKS[task].size_from]
    for part in decides:
        assert part is not None
        sizes = (target.header.width, target.header.height, part.header.width, part.header.height)
        if abs(math.log(sizes[0] * sizes[3] / (sizes[1] * sizes[2]))) > ALIGN_TOLERANCE:
            raise Unusable(
                ALIGN, f"target {sizes[0]}x{sizes[1]}, reference {sizes[2]}x{sizes[3]}; an edit keeps the shape"
            )
