"""The objective `flow`: the three stages of the paper, which differ by their tables and not by code.

Flow matching on velocity, noise - data. What the paper leaves open and was chosen here: times are logit-normal, as is
common for flow matching, and spread evenly over a batch; the prompt is left out of some samples, and the references too
of some more, so that the guidance branches of sampling (MODEL.md section 5) are on the training distribution. Stages
name what they train: `queries`, `connectors`, `transformer`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vino_rt.backends.base import PRECISIONS
from vino_rt.errors import UsageError
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.vae import VaeDecoder, VaeEncoder
from vino_rt.request import Pixels
from vino_rt.train.export import Precision, export_model
from vino_rt.train.flow_batch import Drawn, Encoder, Prepared, Preparer, assemble, spread_normal
from vino_rt.train.flow_model import FlowModel
from vino_rt.train.flow_sample import draw_samples
from vino_rt.train.latents import LatentStore
from vino_rt.train.objective import Loss, noise_generator
from vino_rt.train.sample import Fault
from vino_rt.train.settings import take_table
from vino_rt.train.sheet import grid_sheet
from vino_rt.train.source import Source
from vino_rt.train.vae import channels_last
from vino_rt.train.world_data import WorldData

WHERE = "[settings]"
TRAINABLE = ("queries", "connectors", "transformer")
SHEET_SAMPLES = 12
SHEET_FRAMES = 5


@dataclass(frozen=True)
class FlowTable:
    """The table `[settings]` of a stage with objective `flow`."""

    train: tuple[str, ...] = TRAINABLE
    """What learns; the rest stays as the model directory has it."""
    fresh: bool = False
    """Forget transformer, connectors and queries of the model directory and begin anew."""
    queries: bool = True
    """Whether prompts end in the learnable queries; stage 1 goes without (paper, progressive training)."""
    boundary: bool = True
    """Whether boundary rows carry the connector's output; without, they are zero (an ablation of the paper)."""
    drop_prompt: float = 0.1
    """Share of samples whose prompt is empty."""
    drop_all: float = 0.05
    """Share of samples with neither prompt nor references."""
    time_mean: float = 0.0
    """Mean of the logit of the time: above 0 leans towards noise. ln(shift) is where sampling with that shift is."""
    time_spread: float = 1.0
    """Spread of that logit; that of sampling's levels is 1.8."""
    keep: bool = True
    """Keep the latents of the world's samples in memory; a GPU encodes faster than it is worth."""
    export: Precision = "float32"
    """Element type of the exported weights."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.train if name not in TRAINABLE]
        if unknown or not self.train:
            raise UsageError(f"{WHERE}: train is {list(self.train)}; name some of {', '.join(TRAINABLE)}")
        for name in ("drop_prompt", "drop_all"):
            if not 0 <= getattr(self, name) <= 0.5:
                raise UsageError(f"{WHERE}: {name} is {getattr(self, name)}, expected a share from 0 to 0.5")
        if not self.time_spread > 0:
            raise UsageError(f"{WHERE}: time_spread is {self.time_spread}, expected a number above 0")


@dataclass(frozen=True, eq=False)
class FlowBatch:
    """Samples of one micro-batch."""

    samples: tuple[Prepared, ...]
    faults: tuple[Fault, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the samples."""
        return tuple(sample.key for sample in self.samples)

    def to(self, _: torch.device) -> "FlowBatch":
        """Itself: the loss puts samples together on the host, where those that are kept must not fill a GPU."""
        return self


class FlowObjective:
    """See the module; built by `open_objective`."""

    def __init__(
        self, model: ModelDir, source: Source, table: Mapping[str, object], seed: int, cache: Path | None = None
    ) -> None:
        """`cache` is a directory for latents; without one they are encoded anew by every call.

        Raises UsageError for an entry of the table that cannot be used, ModelError for weights of another config.
        """
        self.directory, self.source, self.seed = model, source, seed
        self.table = take_table(table, FlowTable, WHERE)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model: FlowModel = FlowModel(model, queries=self.table.queries, boundary=self.table.boundary)
            if self.table.fresh:
                self.model.start_fresh()
            else:
                self.model.load(model)
        for name in TRAINABLE:
            chosen = name in self.table.train and (name != "queries" or self.table.queries)
            getattr(self.model, name).requires_grad_(chosen)
        # In the checkpoint and never run (MODEL.md section 4): without a gradient there is nothing to train.
        self.model.transformer.time_text_embed.text_embedder.requires_grad_(False)
        self.encoder, self.decoder = _autoencoder(model)
        store = None if cache is None else LatentStore(cache, model.part_hash("vae"))
        self._encode = Encoder(self.encoder, model.vae.scaling_factor, model.transformer, store)
        processor = self.model.conditioner.processor
        assert processor is not None
        self._prepare = Preparer(processor)
        self._kept: dict[str, Prepared] = {}

    def batch(self, index: int) -> FlowBatch:
        """The samples of a micro-batch, encoded where this process has met them before."""
        if not isinstance(self.source, WorldData):
            loaded = self.source.load(index)
            return FlowBatch(tuple(map(self._prepare, loaded.samples)), loaded.faults)
        keys = self.source.keys(index)
        return FlowBatch(tuple(self._kept.get(str(key)) or self._prepare(self.source.draw(key)) for key in keys))

    def loss(self, batch: FlowBatch, index: int) -> Loss:
        """Mean squared error of the velocity over all rows; parts are the means by task."""
        self.source.count(batch.faults)
        device = next(self.model.parameters()).device
        samples = self._encoded(batch.samples)
        drawn = self._draw(samples, index)
        ids = self.model.conditioner.vision_ids
        inputs, truth = assemble(samples, drawn, self._prepare.nothing, ids, self.model.query_count)
        out = self.model(inputs.to(device))
        errors = (out - truth.to(device)).square().mean(1)
        counts = [len(sample.latents[0].patches) for sample in samples]
        tasks: dict[str, list[Tensor]] = {}
        for sample, part in zip(samples, errors.detach().split(counts), strict=True):
            tasks.setdefault(sample.task, []).append(part.mean())
        parts = {task: torch.stack(means).mean().item() for task, means in tasks.items()}
        return Loss(errors.mean(), parts)

    def shards(self) -> Sequence[nn.Module]:
        """See `FlowModel.shards`."""
        return self.model.shards()

    def sheet(self) -> Pixels:
        """Held-out prompts: of each its references, then what is drawn, uint8 [H, W, 3]."""
        source = self.source.held_out()
        samples = [sample for number in range(SHEET_SAMPLES) for sample in source.load(number).samples[:1]]
        drawn = self.draw([self._prepare(sample) for sample in samples], self.seed)
        rows = []
        for sample, frames in zip(samples, drawn, strict=True):
            shown = [*sample.images, *([] if sample.video is None else _some(sample.video))]
            rows.append([*_some(sample.target), *shown, *_some(frames)])
        return grid_sheet(rows)

    def draw(self, samples: Sequence[Prepared], seed: int) -> list[Pixels]:
        """What the model makes of samples at the model directory's defaults: uint8 [F, H, W, 3] each."""
        return draw_samples(
            self.model, self.decoder, self.directory, self._encoded(samples), self._prepare.nothing, seed
        )

    def export(self, out: Path) -> None:
        """Write the model directory with this transformer, these connectors and queries.

        The frozen parts are copied; in bfloat16, which is for models that are done, they are rounded too.
        """
        parts = self.model.parts()
        if self.table.export == "bfloat16":
            for part in ("vae", "vlm"):
                weights = self.directory.part(part)
                parts[part] = {name: weights.read(name) for name in weights.names()}
        export_model(self.directory, out, parts, dtype=PRECISIONS[self.table.export])

    def _encoded(self, batch: Sequence[Prepared]) -> list[Prepared]:
        """The samples with latents, in the precision that training runs in; those of the world are kept: it is finite.

        bfloat16 is not only faster on a CPU: PyTorch leaves small float32 convolutions to a kernel nine times slower.
        """
        self.encoder.to(next(self.model.parameters()).device)
        # A worker process may not know what this one has met.
        samples = [self._kept.get(sample.key) or self._encode.encode(sample) for sample in batch]
        if self.table.keep and isinstance(self.source, WorldData):
            self._kept.update((sample.key, sample) for sample in samples)
        return samples

    def _draw(self, samples: Sequence[Prepared], index: int) -> Drawn:
        generator = noise_generator(self.seed, index)
        count, table = len(samples), self.table
        rows = sum(len(sample.latents[0].patches) for sample in samples)
        noise = torch.randn(rows, self.directory.transformer.patch_values, generator=generator)
        times = torch.sigmoid(table.time_mean + table.time_spread * spread_normal(count, generator))
        chance = torch.rand(count, generator=generator).tolist()
        return Drawn(
            noise,
            times,
            unprompted=tuple(table.drop_all <= c < table.drop_all + table.drop_prompt for c in chance),
            bare=tuple(c < table.drop_all for c in chance),
        )


def _autoencoder(model: ModelDir) -> tuple[VaeEncoder, VaeDecoder]:
    """Both halves, frozen."""
    encoder, decoder = VaeEncoder(model.vae), VaeDecoder(model.vae)
    for half in (encoder, decoder):
        own = {name: tuple(t.shape) for name, t in half.state_dict().items()}
        half.load_state_dict(model.part("vae").load(own, torch.float32, own))
        half.requires_grad_(False).eval()
        channels_last(half)
    return encoder, decoder


def _some(frames: Pixels) -> list[Pixels]:
    """A few frames of a clip."""
    step = max(1, (len(frames) - 1) // (SHEET_FRAMES - 1))
    return list(frames[::step][:SHEET_FRAMES])
