"""Preview of a request without running it: settings, rows of the packed sequence, memory.

Reads the references and the tokenizer, but no weights and no engines.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vino_rt.backends.base import Kind
from vino_rt.backends.recipe import Recipe
from vino_rt.bucket import Bucket, Need, lay_out, patch_grid, pick
from vino_rt.conditioning import branch_input
from vino_rt.decode import decode_memory
from vino_rt.engines import checked_kinds
from vino_rt.explanation import Explanation, explain, why
from vino_rt.footprint import step_memory
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.prompt import Processor
from vino_rt.plan import BranchShape
from vino_rt.request import Request
from vino_rt.settings import Branch, Clip, Settings, branches, prepared_sizes, resolve
from vino_rt.sources import load_sources
from vino_rt.tiling import Tiling


@dataclass(frozen=True)
class Outlook:
    """The resolved settings of a request, its packed sequences and the memory of its decode."""

    settings: Mapping[str, Any]
    """Every field of `Settings`, as a result records them."""
    references: tuple[Clip, ...]
    """Frames, height and width that each reference is fitted to."""
    branches: tuple[Branch, ...]
    rows: Explanation
    bucket: Bucket | None
    """The chosen bucket; None if the recipe has none."""
    reason: str | None
    """Why that bucket was chosen."""
    step_bytes: int
    """Of the sequence that takes most."""
    decode_bytes: int
    """Upper bound of the decode's memory, weights excluded."""

    def record(self) -> dict[str, Any]:
        """All facts by name, ready for JSON."""
        bucket = None if self.bucket is None else {**asdict(self.bucket), "reason": self.reason}
        return {
            "settings": self.settings,
            "references": [{"frames": f, "height": h, "width": w} for f, h, w in self.references],
            "branches": list(self.branches),
            "bucket": bucket,
            **asdict(self.rows),
            "step_bytes": self.step_bytes,
            "decode_bytes": self.decode_bytes,
        }


def foresee(request: Request, model: ModelDir, recipe: Recipe) -> Outlook:
    """Resolve and lay out a request. Raises what `Runtime.generate` would raise before it computes."""
    kinds = checked_kinds(model, recipe)
    defaults = model.settings
    sources = load_sources(request, defaults)
    settings = resolve(request, defaults, sources.sizes)
    references = prepared_sizes(request, defaults, sources.sizes)
    processor = Processor.from_dir(model.path / "vlm")
    names = branches(settings)
    shapes = []
    for name in names:
        tokens = len(processor(branch_input(name, settings, sources)).input_ids) + model.connector.num_queries
        shapes.append(BranchShape(seen_references(name, settings, len(references)), tokens))
    need = Need(settings.clip, tuple(patch_grid(size, defaults.unit) for size in references), tuple(shapes))
    told = explain(need, defaults.unit, lay_out(need, defaults, recipe.buckets, recipe.pack_rows, recipe.pad_text))
    bucket = pick(need, recipe.buckets, defaults)
    return Outlook(
        settings=settings.record(),
        references=tuple(references),
        branches=tuple(names),
        rows=told,
        bucket=bucket,
        reason=None if bucket is None else why(need, bucket, recipe.buckets),
        step_bytes=max(_step_bytes(told, number, model, recipe, kinds) for number in range(told.sequences)),
        decode_bytes=decode_memory(
            *settings.clip,
            model.vae,
            Tiling(spatial=settings.spatial_tiling),
            kinds["vae_decode"].dtype.itemsize,
        ),
    )


def _step_bytes(told: Explanation, sequence: int, model: ModelDir, recipe: Recipe, kinds: Mapping[str, Kind]) -> int:
    """Bytes of a step of one sequence."""
    # Padding may be of either stream, of which text takes more.
    text = told.rows(sequence, "text") + told.rows(sequence, "padding")
    image = told.rows(sequence) - text
    return step_memory(model, recipe, kinds, (image, text), told.rows(sequence, "reference"))


def seen_references(branch: Branch, settings: Settings, count: int) -> tuple[int, ...]:
    """Indices of the `count` references that a branch sees: all, or for the branch without images the last ones.

    Those are the video and, where the last of several images is edited, that image (MODEL.md section 5).
    """
    if branch != "negative_no_images":
        return tuple(range(count))
    return tuple(range(settings.images - settings.base_image, count))
