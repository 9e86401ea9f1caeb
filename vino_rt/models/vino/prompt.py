"""Inputs of the VLM: chat text, token ids, positions, boundary tokens and patch rows; knows no weights.

The chat shows the images, then the clip, then the prompt (MODEL.md section 3).
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from vino_rt import request
from vino_rt.config import read_json
from vino_rt.errors import InputError, ModelError
from vino_rt.models.vino.prepare import Grid, PixelRule, vlm_image, vlm_video
from vino_rt.models.vino.vlm_config import VisionIds
from vino_rt.request import Pixels

MAX_TOKENS = 20_480
"""Most tokens of a prompt, chat template included: a character may be several tokens, and time grows quadratically."""
SYSTEM = "You are a helpful assistant aimed at generating an output video caption."
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD, VIDEO_PAD, VISION_PAD = "<|image_pad|>", "<|video_pad|>", "<|vision_pad|>"
RESERVED = (VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD, VISION_PAD)
ASSUMED_FPS, GROUP_FRAMES = 24, 2
"""The released processor gets no frame rate, so it labels the frame pairs as the first frames of a 24 fps clip."""


@dataclass(frozen=True, eq=False)
class VlmInput:
    """Prompt, letterboxed images uint8 [H, W, 3] each, and the 8 chosen frames of a clip, uint8 [8, H, W, 3]."""

    prompt: str
    images: tuple[Pixels, ...] = ()
    video: Pixels | None = None


@dataclass(frozen=True, eq=False)
class ProcessedInput:
    """A prompt as token ids int64 [L], its pixels as float patch rows, and their grids in patches before merging."""

    input_ids: Tensor
    pixel_values: Tensor | None = None
    image_grids: tuple[Grid, ...] = ()
    pixel_values_videos: Tensor | None = None
    video_grids: tuple[Grid, ...] = ()

    def __post_init__(self) -> None:
        for rows, grids, name in (
            (self.pixel_values, self.image_grids, "pixel_values"),
            (self.pixel_values_videos, self.video_grids, "pixel_values_videos"),
        ):
            given, expected = 0 if rows is None else len(rows), sum(t * h * w for t, h, w in grids)
            if given != expected:
                raise InputError(f"{name} has {given} rows; its grids {grids} need {expected}")


@dataclass(frozen=True)
class ProcessorConfig:
    """Preprocessing of pictures and clips, from a VLM directory."""

    image: PixelRule
    video: PixelRule

    @classmethod
    def from_dir(cls, path: Path) -> "ProcessorConfig":
        """Read `preprocessor_config.json` and `video_preprocessor_config.json`; ModelError names what is wrong."""
        image, video = path / "preprocessor_config.json", path / "video_preprocessor_config.json"
        return cls(
            PixelRule.from_json(read_json(image), (3136, 12845056), str(image)),
            PixelRule.from_json(read_json(video), (262144, 602112), str(video)),
        )


def check_prompt(prompt: str) -> str:
    """Return the prompt if it is legal; it may be empty.

    Raises InputError as `request.check_prompt`, and for a literal vision token in the text, which the tokenizer would
    take for the place of a picture. Other special tokens are allowed, as in the release.
    """
    request.check_prompt("the prompt", prompt)
    for token in RESERVED:
        if token in prompt:
            raise InputError(f"the prompt contains {token!r}, which is reserved for references; take it out")
    return prompt


def render(prompt: str, image_tokens: Sequence[int] = (), video_groups: Sequence[int] = ()) -> str:
    """Chat text of the references, then the prompt, with one pad token for each visual token.

    image_tokens: number of visual tokens of each image. video_groups: of each frame pair of the clip; empty without a
    clip. Raises InputError as `check_prompt` does.
    """
    images = (
        f"Image {k}: {VISION_START}{IMAGE_PAD * count}{VISION_END}" for k, count in enumerate(image_tokens, start=1)
    )
    groups = (
        f"<{(GROUP_FRAMES * i + (GROUP_FRAMES - 1) / 2) / ASSUMED_FPS:.1f} seconds>"
        f"{VISION_START}{VIDEO_PAD * count}{VISION_END}"
        for i, count in enumerate(video_groups)
    )
    user = "".join((*images, "Video 1: " if video_groups else "", *groups, check_prompt(prompt)))
    return f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


class PromptTokenizer:
    """The released tokenizer, applied to rendered prompts; thread-safe."""

    def __init__(self, tokenizer: Tokenizer, where: str = "tokenizer.json") -> None:
        ids = [tokenizer.token_to_id(name) for name in (VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD)]
        known = [number for number in ids if number is not None]
        if len(known) != len(ids):
            raise ModelError(f"{where} lacks some of {', '.join(RESERVED[:4])}: not the tokenizer of a Qwen3-VL")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.vision = VisionIds(*known)

    @classmethod
    def from_file(cls, path: Path) -> "PromptTokenizer":
        """Read `tokenizer.json`; ModelError when it is missing, damaged or of another model."""
        if not isinstance(read_json(path).get("model"), dict):
            raise ModelError(f"{path} holds no tokenizer: its field 'model' is missing; copy the file again")
        try:
            return cls(Tokenizer.from_file(str(path)), str(path))
        except Exception as error:
            # The library raises plain Exception for a file that it cannot read.
            if type(error) is Exception:
                raise ModelError(f"{path} holds no tokenizer that can be read: {error}; copy it again") from error
            raise

    def tokenize(self, text: str) -> Tensor:
        """Rendered text -> int64 [L]; special tokens in it become their ids."""
        return torch.tensor(self._tokenizer.encode(text).ids, dtype=torch.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """Tokens back to text, special ones left out."""
        return str(self._tokenizer.decode(list(ids)))

    def encode(self, prompt: str, image_tokens: Sequence[int] = (), video_groups: Sequence[int] = ()) -> Tensor:
        """`render`, then `tokenize`: int64 [L]."""
        return self.tokenize(render(prompt, image_tokens, video_groups))


def frame_grids(video_grids: Sequence[Grid]) -> list[Grid]:
    """One grid per frame pair: a clip of t pairs appears in the text as t separate groups."""
    return [(1, height, width) for frames, height, width in video_grids for _ in range(frames)]


def visual_tokens(grids: Sequence[Grid], merge_size: int) -> list[int]:
    """Number of visual tokens of each picture, or of each frame pair of `frame_grids`; for `render`."""
    return [t * h * w // merge_size**2 for t, h, w in grids]


def position_ids(
    input_ids: Tensor,
    ids: VisionIds,
    image_grids: Sequence[Grid] = (),
    video_grids: Sequence[Grid] = (),
    num_queries: int = 0,
    merge_size: int = 2,
) -> Tensor:
    """Positions (t, h, w) of the tokens [L] and of the queries after them: int64 [3, L + num_queries].

    Text tokens count up in all three. A picture's tokens share t, and count h and w from there; text continues after
    the longer side. The first query repeats the last text position. Raises InputError if pads and grids do not match.
    """
    kinds = ((input_ids == ids.image) + 2 * (input_ids == ids.video)).tolist()
    grids: dict[int, Iterator[Grid]] = {1: iter(image_grids), 2: iter(frame_grids(video_grids))}
    parts, position = [], 0
    for kind, run in itertools.groupby(kinds):
        length = len(list(run))
        if kind == 0:
            parts.append((torch.arange(length) + position).expand(3, -1))
            position += length
            continue
        _, height, width = next(grids[kind], (1, 0, 0))
        rows, columns = height // merge_size, width // merge_size
        if rows * columns != length:
            raise InputError(f"{length} visual tokens stand in a row where a grid of {rows}x{columns} was given")
        parts.append(position + torch.stack(_plane(rows, columns)))
        position += max(rows, columns)
    if any(next(rest, None) is not None for rest in grids.values()):
        raise InputError(f"{len(image_grids)} images and {len(video_grids)} clips: the text has room for fewer")
    text = torch.cat(parts, dim=1)
    return torch.cat((text, text[:, -1:] + torch.arange(num_queries)), dim=1)


def boundaries(input_ids: Tensor, ids: VisionIds, images: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows of the vision_start and vision_end tokens that bound each reference, by the released rule.

    Images first, then the clip, from the start of its first pair to the end of its last pair. The rule appends the last
    end token even if there is no clip, so the second tuple may be longer by one; only (start, end) pairs count.
    """
    starts = torch.nonzero(input_ids == ids.start).flatten().tolist()
    ends = torch.nonzero(input_ids == ids.end).flatten().tolist()
    return tuple(starts[: images + 1]), tuple(ends[:images] + ends[-1:])


def _plane(rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    row, column = torch.arange(rows).repeat_interleave(columns), torch.arange(columns).repeat(rows)
    return torch.zeros_like(row), row, column


class Processor:
    """Tokenizer and pixel preprocessing of a VLM directory; holds no weights; thread-safe."""

    def __init__(self, tokenizer: PromptTokenizer, config: ProcessorConfig) -> None:
        self.tokenizer = tokenizer
        self.config = config

    @classmethod
    def from_dir(cls, path: Path) -> "Processor":
        """Read tokenizer.json and both preprocessor files; ModelError names what is missing or damaged."""
        return cls(PromptTokenizer.from_file(path / "tokenizer.json"), ProcessorConfig.from_dir(path))

    def __call__(self, given: VlmInput) -> ProcessedInput:
        """Resize the pixels, cut them into patches, render the chat and tokenize it.

        Raises InputError for prompts or pixels that cannot be used.
        """
        image, video = self.config.image, self.config.video
        pictures = [vlm_image(picture, image) for picture in given.images]
        clips = [] if given.video is None else [vlm_video(given.video, video)]
        image_grids, video_grids = tuple(grid for _, grid in pictures), tuple(grid for _, grid in clips)
        counts = visual_tokens(image_grids, image.merge_size)
        groups = visual_tokens(frame_grids(video_grids), video.merge_size)
        input_ids = self.tokenizer.encode(given.prompt, counts, groups)
        if (tokens := len(input_ids) - sum(counts) - sum(groups)) > MAX_TOKENS:
            raise InputError(f"the prompt has {tokens} tokens; at most {MAX_TOKENS} are legal: shorten it")
        return ProcessedInput(
            input_ids,
            torch.cat([rows for rows, _ in pictures]) if pictures else None,
            image_grids,
            clips[0][0] if clips else None,
            video_grids,
        )
