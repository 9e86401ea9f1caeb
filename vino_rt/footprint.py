"""Upper bound of the memory that a model needs with a recipe, computed before anything is built.

Arithmetic on configs, sizes and the headers of weight files. Every figure is a bound: what `footprint_measured` finds
stays below it. Weights count once, in the precisions of the recipe; what a step and a decode took stays with the pools
they took it from, so that both count; what is kept of earlier requests comes on top, up to its limit.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from vino_rt.backends.base import PRECISIONS, QUANTISED, Kind
from vino_rt.backends.recipe import Recipe
from vino_rt.bucket import Bucket, Need, Shape, lay_out, patch_grid, usual_shapes
from vino_rt.decode import LIBRARY_BYTES, decode_memory
from vino_rt.engines import STEP_ROOM, checked_kinds
from vino_rt.model_dir import PARTS, ModelDir
from vino_rt.models.vino.blocks import DUAL_MODULATIONS, SINGLE_MODULATIONS
from vino_rt.plan import PROMPT_BRANCHES, BranchShape, volume
from vino_rt.settings import Clip
from vino_rt.tiling import Tiling
from vino_rt.weights import TensorInfo

PROMPT_ROWS = 128
"""Rows of a branch's text beside the queries, where no bucket says how many: a prompt of a hundred words."""
BLOCK_WIDTHS, MLP_WIDTHS = 10, 2
"""Rows as wide as a block, and as its MLP, that live at once in it: what enters it twice, normed, queries, keys and
values before and after their order changes, what attention gives, one to spare; the MLP before and after its GELU.
"""
ONE_BLOCK = frozenset({"tensorrt", "torch-tensorrt"})
"""Backends whose engines compute in one block, which the largest size that any of them was built for decides. It is
taken by the first run of any size, and no recording takes it again. What TensorRT needs is known after a build alone:
until then it is taken to need what PyTorch does.
"""
MEMORIES = 4
"""What recorded steps copy requests to is less than so many times what the largest of them needs (`vino_rt.step`)."""
INT8_SCALE_BYTES = 4
"""Beside each output channel of a weight in int8."""


@dataclass(frozen=True)
class SizeFootprint:
    """Bytes that one size adds to the weights, at most."""

    clip: Clip
    """Frames, height and width in pixels."""
    bucket: Bucket | None
    """The one it is of, if the recipe has any."""
    image_rows: int
    """Image rows of the longest sequence of a step, all branches together."""
    text_rows: int
    step: int
    decode: int
    """Decode of the whole frame at once, with an allowance for libraries."""
    decode_tiled: int
    """Decode with spatial tiling."""

    @property
    def shape(self) -> Shape:
        """What is run to measure it."""
        return self.bucket or self.clip


@dataclass(frozen=True)
class Footprint:
    """Bytes by what they are for."""

    weights: Mapping[str, int]
    """By part of the model; on a GPU without those of kinds that the recipe offloads."""
    visiting: int
    """The most that weights of an offloaded layer take of the GPU while it runs, when no step or decode does."""
    tables: int
    """What depends on the schedule alone, at the model's number of steps."""
    kept: int
    """Size limit of the cache."""
    sizes: tuple[SizeFootprint, ...]
    """From the least to the most; one for each bucket, or the model's default picture and clip."""

    def peak(self, size: SizeFootprint, *, tiled: bool = False) -> int:
        """Bytes that a first request of this size needs beside Python and its libraries."""
        working = size.step + (size.decode_tiled if tiled else size.decode)
        return sum(self.weights.values()) + self.tables + max(self.visiting, working)


def predict(model: ModelDir, recipe: Recipe, kept: int) -> Footprint:
    """The bound for a model and a recipe; `kept` the `cache_bytes` of `Runtime.open`.

    Reads headers of weight files, needs no device. Raises EngineError where the recipe names kinds the model has not.
    """
    kinds = checked_kinds(model, recipe)
    loose = PRECISIONS.get(recipe.precision, torch.float32)
    shapes = usual_shapes(recipe.buckets, model.settings)
    block = max((_block_bytes(model, recipe, kinds, shape) for shape in shapes), default=0)
    sizes = [_of_size(model, recipe, kinds, shape, block) for shape in shapes]
    return Footprint(
        weights={part: _part_bytes(model, part, kinds, recipe.offload, loose) for part in PARTS},
        visiting=max((_layer_bytes(kinds[name]) for name in recipe.offload), default=0),
        tables=_table_bytes(model, recipe, kinds["dual_block"].dtype.itemsize),
        kept=kept,
        sizes=tuple(sorted(sizes, key=lambda size: (size.step + size.decode, size.clip))),
    )


def _recorded(recipe: Recipe) -> bool:
    return recipe.device == "cuda" and recipe.cuda_graphs


def _table_bytes(model: ModelDir, recipe: Recipe, itemsize: int) -> int:
    """What depends on the model's own schedule alone: as it is computed, as blocks take it, and copied."""
    config, copies, room = model.transformer, 0, 1
    if _recorded(recipe):
        copies, room = MEMORIES, STEP_ROOM
    # Of the blocks, two of the head, one of the refiner.
    rows = DUAL_MODULATIONS * config.num_layers + SINGLE_MODULATIONS * config.num_single_layers + 3
    return -(-model.settings.steps // room) * room * rows * config.width * (4 + (1 + copies) * itemsize)


def _part_bytes(
    model: ModelDir, part: str, kinds: Mapping[str, Kind], offload: Sequence[str], loose: torch.dtype
) -> int:
    """Every tensor once for each precision that kinds read the part in; what none of them reads counts with the others.

    A few tensors nobody reads, such as the last layer of a VLM: a hundredth of the whole. What only kinds in `offload`
    read does not count. `loose`: type of a part without kinds.
    """
    stored = model.part(part)
    readers = {name: kind for name, kind in kinds.items() if kind.part == part}
    held, away = _holders(list(readers.values()), loose), _away(readers, offload)
    return sum(size(stored.info(name)) for name in stored.names() if name not in away for size in held(name))


def _away(readers: Mapping[str, Kind], offload: Sequence[str]) -> set[str]:
    """Tensors that only offloaded kinds read."""
    if not readers.keys() & set(offload):
        return set()
    names = {name: set(_tensors(kind)) for name, kind in readers.items()}
    staying = set().union(*(found for name, found in names.items() if name not in offload))
    return set().union(*(names[name] for name in offload if name in names)) - staying


def _tensors(kind: Kind) -> Iterator[str]:
    """Names of a kind's weights in its part's files, layer by layer."""
    return (kind.prefix.format(layer=layer) + name for layer in range(kind.layers) for name in kind.shapes())


def _layer_bytes(kind: Kind) -> int:
    return sum(math.prod(shape) for shape in kind.shapes().values()) * kind.dtype.itemsize


Size = Callable[[TensorInfo], int]
"""Bytes of a stored tensor in one precision."""


def _holders(readers: Sequence[Kind], loose: torch.dtype) -> Callable[[str], Sequence[Size]]:
    """From the name of a tensor to its sizes in memory; modules are only looked into where precisions differ."""
    if len({kind.precision for kind in readers}) <= 1 and not any(kind.precision in QUANTISED for kind in readers):
        only = (_in_type(readers[0].dtype if readers else loose),)
        return lambda _: only
    found: dict[str, dict[str, Size]] = {}
    for kind in readers:
        size = _rounded if kind.precision in QUANTISED else _in_type(kind.dtype)
        for layer in range(kind.layers):
            prefix = kind.prefix.format(layer=layer)
            for name in kind.shapes():
                found.setdefault(prefix + name, {})[kind.precision] = size
    return lambda name: tuple(found.get(name, {"": _in_type(loose)}).values())


def _in_type(dtype: torch.dtype) -> Size:
    return lambda info: math.prod(info.shape) * dtype.itemsize


def _rounded(info: TensorInfo) -> int:
    """A matrix as int8 with its scales, and while a model is opened as the float32 it is rounded from.

    Vectors stay float32.
    """
    plain = _in_type(torch.float32)(info)
    return plain if len(info.shape) != 2 else plain + math.prod(info.shape) + INT8_SCALE_BYTES * info.shape[0]


def _of_size(model: ModelDir, recipe: Recipe, kinds: Mapping[str, Kind], shape: Shape, block: int) -> SizeFootprint:
    bucket, clip = (shape, shape.clip) if isinstance(shape, Bucket) else (None, shape)
    image, text = _rows(model, recipe, shape)
    inside = kinds["vae_decode"].dtype.itemsize
    tiled = (decode_memory(*clip, model.vae, Tiling(spatial=spatial), inside) for spatial in (False, True))
    if recipe.backend_of("vae_decode") in ONE_BLOCK:
        # Tiles are computed in the block: beside it lie the frames, those of a tile with copy and seams, the latents.
        pixels, sides = math.prod(clip), 8 * 8
        values = 4 * model.vae.out_channels * pixels + 2 * model.vae.latent_channels * pixels // sides
        tiled = (LIBRARY_BYTES + 4 * values for _ in range(2))
    references = bucket.branches * bucket.references if bucket else 0
    step = step_memory(model, recipe, kinds, (image, text), references)
    return SizeFootprint(clip, bucket, image, text, step + block, *tiled)


def step_memory(
    model: ModelDir, recipe: Recipe, kinds: Mapping[str, Kind], rows: tuple[int, int], references: int
) -> int:
    """Bytes of a step of one sequence, of so many rows of image and text, beside the blocks of `ONE_BLOCK`.

    references: how many of the rows are of references.
    """
    image, text = rows
    step = _step_bytes(model, recipe, kinds, image, text)
    if not _recorded(recipe):
        return step
    # It has memory of its own beside that of the run before it was recorded, and beside what requests bring.
    return 2 * step + (MEMORIES - 1) * _copied_bytes(model, kinds, image + text, references + text)


def _rows(model: ModelDir, recipe: Recipe, shape: Shape) -> tuple[int, int]:
    """Rows of image and text that the longest sequence holds there."""
    if isinstance(shape, Bucket):
        target = volume(patch_grid(shape.clip, model.settings.unit))
        return shape.branches * (shape.references + target), shape.branches * shape.text_tokens
    branches = (BranchShape((), model.connector.num_queries + PROMPT_ROWS),) * PROMPT_BRANCHES
    layouts = lay_out(Need(shape, (), branches), model.settings, (), recipe.pack_rows, recipe.pad_text)
    longest = max(layouts, key=lambda layout: len(layout.branches))
    return len(longest.branches) * volume(patch_grid(shape, model.settings.unit)), longest.lengths.text_tokens or 0


def _step_bytes(model: ModelDir, recipe: Recipe, kinds: Mapping[str, Kind], image: int, text: int) -> int:
    """What a request binds, and the activations of the kinds of a step, but for those in a block of their own."""
    rows, used = image + text, _activations(model, kinds, image, text)
    pooled = [size for name, size in used.items() if recipe.backend_class(name).pool_per_kind]
    apart = {name for name in used if recipe.backend_class(name).pool_per_kind or recipe.backend_of(name) in ONE_BLOCK}
    shared = [size for name, size in used.items() if name not in apart]
    # What engines give lies outside their block: the rows in two widths, before and after a block.
    given = [2 * size // BLOCK_WIDTHS for name, size in used.items() if recipe.backend_of(name) in ONE_BLOCK]
    # Latents and velocities beside it.
    bound = _copied_bytes(model, kinds, rows, 2 * rows) + 16 * rows * model.transformer.patch_values
    return sum(pooled) + max(shared, default=0) + max(given, default=0) + bound


def _block_bytes(model: ModelDir, recipe: Recipe, kinds: Mapping[str, Kind], shape: Shape) -> int:
    """What the backends of `ONE_BLOCK` need for one of the sizes."""
    used = _activations(model, kinds, *_rows(model, recipe, shape))
    if "vae_decode" in kinds:
        clip = shape.clip if isinstance(shape, Bucket) else shape
        used["vae_decode"] = decode_memory(*clip, model.vae, Tiling())
    return max((size for name, size in used.items() if recipe.backend_of(name) in ONE_BLOCK), default=0)


def _activations(model: ModelDir, kinds: Mapping[str, Kind], image: int, text: int) -> dict[str, int]:
    """Bytes of activations of each kind of a step by itself."""
    config = model.transformer
    width, rows = config.width, image + text
    block = BLOCK_WIDTHS * width + MLP_WIDTHS * config.mlp_width
    values = {"embed": 3 * image * width + text * block, "dual_block": rows * block, "single_block": rows * block}
    values["head"] = 3 * image * width
    return {name: count * kinds[name].dtype.itemsize for name, count in values.items()}


def _copied_bytes(model: ModelDir, kinds: Mapping[str, Kind], rows: int, constant: int) -> int:
    """Rotations and positions in two orders, indices; rows of images and text that no step changes."""
    config = model.transformer
    turned = rows * (2 * (4 * config.attention_head_dim + 12) + 16)
    return turned + constant * config.width * kinds["embed"].dtype.itemsize
