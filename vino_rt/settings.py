"""Resolve a request against a model's defaults: every option, the output's size and the guidance branches.

Numbers only: it opens no file and knows no tensors; of the references it needs their `SourceSizes`. Source: MODEL.md
sections 2 and 5.
"""

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, get_type_hints

from vino_rt.errors import InputError
from vino_rt.model_settings import ModelSettings
from vino_rt.request import FRAME_STEP, MAX_FPS, Request
from vino_rt.task_rules import TASKS, Size

Clip = tuple[int, int, int]
"""Frames, height and width in pixels."""
Branch = Literal["prompt", "negative", "negative_no_images"]
SEED_RANGE = 2**32
"""Random seeds are below this, so that they are short enough to type."""


@dataclass(frozen=True)
class SourceSizes:
    """Sizes of the references as stored, after rotation, in the request's order."""

    images: tuple[Size, ...] = ()
    video: Size | None = None
    video_frames: int = 0
    video_fps: float | None = None
    """None where the file does not state it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A request with every option resolved: what is run, reported, and written into the output's metadata."""

    prompt: str
    task: str
    width: int
    height: int
    frames: int
    fps: float
    steps: int
    seed: int
    guidance: float
    shift: float
    image_guidance: float
    negative: str
    images: int
    """Number of image references."""
    base_image: bool
    spatial_tiling: bool
    sample_posterior: bool

    @property
    def clip(self) -> Clip:
        """Frames, height and width of the output."""
        return self.frames, self.height, self.width

    def record(self) -> dict[str, str | int | float | bool]:
        """All fields by name, for metadata and JSON."""
        return asdict(self)


SETTING_TYPES: Mapping[str, type] = get_type_hints(Settings)


def typed_record(texts: Mapping[str, str]) -> dict[str, str | int | float | bool]:
    """`Settings.record` of what a file holds of it as text; what is no setting, or no such number, stays text."""
    return {name: _typed(SETTING_TYPES.get(name, str), text) for name, text in texts.items()}


def _typed(kind: type, text: str) -> str | int | float | bool:
    if kind is bool:
        return {"True": True, "False": False}.get(text, text)
    try:
        value: str | int | float = kind(text)
    except ValueError:
        return text
    # A file may hold anything: only what was written of a value is read back as one.
    return value if str(value) == text else text


def resolve(request: Request, defaults: ModelSettings, sources: SourceSizes) -> Settings:
    """Resolve every option of a request; deterministic, except that a missing seed is drawn at random.

    Raises InputError for a size or number of frames that the model cannot make and for a size that contradicts the
    one the task takes from a reference, UsageError for options that have no effect at the model's text guidance.
    """
    task = request.resolved_task
    frames, height, width = output_size(request, defaults, sources)
    sampling = defaults.video if frames > 1 else defaults.image
    guidance = float(sampling.guidance if request.guidance is None else request.guidance)
    request.check_guidance(guidance)
    negative = defaults.negative_prompt_video if frames > 1 else defaults.negative_prompt
    # An edited clip has one frame for each frame of its source, so it must run at the source's frame rate.
    source_fps = sources.video_fps if TASKS[task].video and 0 < (sources.video_fps or 0) <= MAX_FPS else None
    return Settings(
        prompt=request.prompt,
        task=task,
        width=width,
        height=height,
        frames=frames,
        fps=float(source_fps or defaults.fps),
        steps=defaults.steps if request.steps is None else request.steps,
        seed=secrets.randbelow(SEED_RANGE) if request.seed is None else request.seed,
        guidance=guidance,
        shift=float(sampling.shift),
        image_guidance=float(request.image_guidance),
        negative=negative if request.negative is None else request.negative,
        images=len(request.images),
        base_image=request.base_image,
        spatial_tiling=request.spatial_tiling,
        sample_posterior=request.sample_posterior,
    )


def branches(settings: Settings) -> tuple[Branch, ...]:
    """The guidance branches that a request needs, in the order of the packed sequence (MODEL.md section 5).

    The branch without images is needed only if there are images: otherwise m = n, and m + gi*(n - m) = n.
    """
    if not settings.guidance > 1:
        return ("prompt",)
    if settings.image_guidance > 1 and settings.images:
        return ("prompt", "negative", "negative_no_images")
    return ("prompt", "negative")


def output_size(request: Request, defaults: ModelSettings, sources: SourceSizes) -> Clip:
    """Frames, height and width of the output, from the request, the last image or the video (MODEL.md section 2).

    Raises InputError as `resolve` does.
    """
    rule = TASKS[request.resolved_task]
    check_frames(request, defaults)
    if rule.size_from == "request":
        width, height = request.size or defaults.default_size
        if request.size is not None:
            check_size(width, height, defaults)
        return 1 if rule.still else request.frames or defaults.default_frames, height, width
    prepared = prepared_sizes(request, defaults, sources)
    frames, height, width = prepared[-1] if rule.video else prepared[len(request.images) - 1]
    if not rule.video:
        frames = 1 if rule.still else request.frames or defaults.default_frames
    if request.size not in (None, (width, height)):
        given = "x".join(map(str, request.size or ()))
        raise InputError(
            f"size is {given}, but task {request.resolved_task} takes the size of its {rule.size_from}, here "
            f"{width}x{height}; leave size out"
        )
    return frames, height, width


def prepared_sizes(request: Request, defaults: ModelSettings, sources: SourceSizes) -> tuple[Clip, ...]:
    """Size of each reference as it is encoded: letterboxed images in order, then the cropped video.

    Raises InputError for a reference with an extreme aspect ratio, and for a video of fewer than five frames unless
    the request asks for one frame.
    """
    # The rules belong to the model family. Imported here, so that a request can be checked without loading torch.
    from vino_rt.models.vino.prepare import frame_count, reference_box, reference_clip

    assert len(sources.images) == len(request.images), "source sizes of another request"
    grid = defaults.area, defaults.unit
    boxes = [reference_box(r.name, *size, *grid) for r, size in zip(request.images, sources.images, strict=True)]
    prepared = [(1, box.height, box.width) for box in boxes]
    if request.video is not None:
        assert sources.video is not None, "source sizes without the video's"
        wanted = request.frames or defaults.default_frames
        frames = frame_count(wanted, sources.video_frames)
        if frames == 1 < wanted:
            held = f"{sources.video_frames} frame{'' if sources.video_frames == 1 else 's'}"
            raise InputError(
                f"{request.video.name}: the video has {held}, a clip needs at least {FRAME_STEP + 1}; name a longer "
                "one, or make a picture of its first frame: frames 1 (--frames 1) and a .png or .jpg as output"
            )
        prepared.append((frames, *reference_clip(request.video.name, *sources.video, *grid)))
    return tuple(prepared)


def check_frames(request: Request, defaults: ModelSettings) -> None:
    """Raise InputError for more frames than the model makes at most."""
    if request.frames is not None and request.frames > defaults.max_frames:
        raise InputError(f"frames is {request.frames}; this model makes at most {defaults.max_frames}")


def check_size(width: int, height: int, defaults: ModelSettings) -> None:
    """Raise InputError for a size off the model's grid or above its area, suggesting a legal one.

    The area may be exceeded by rounding each side up to the next unit, as for references (640x640 at an area of
    848x480), for aspect ratios that references may have.
    """
    unit = defaults.unit
    if width % unit or height % unit or min(width, height) < unit:
        near = "x".join(str(max(unit, round(side / unit) * unit)) for side in (width, height))
        raise InputError(f"size is {width}x{height}; both sides must be multiples of {unit}: take {near}")
    if width * height <= defaults.area:
        return
    # Imported here: it loads PyTorch, which a legal size does not need.
    from vino_rt.models.vino.prepare import MAX_ASPECT, letterbox_grid

    # A side of one unit counts as one unit, not zero: otherwise the other side could be of any length.
    least = max(width - unit, unit) * max(height - unit, unit)
    long, short = max(width, height), min(width, height)
    if least < defaults.area and long <= MAX_ASPECT * short:
        return
    box = letterbox_grid(min(long, int(min(MAX_ASPECT, defaults.area / unit**2) * short)), short, defaults.area, unit)
    near = f"{box.width}x{box.height}" if width >= height else f"{box.height}x{box.width}"
    raise InputError(
        f"size {width}x{height} has {width * height} pixels; this model makes about {defaults.area}: take {near}"
    )
