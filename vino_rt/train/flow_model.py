"""What the three stages train, as one module: learnable queries, connectors and the transformer behind a frozen VLM.

It maps a batch's prompts, references, noisy targets and times to velocities. It knows no loss, no data and no files but
a model directory's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.conditioner import Conditioner
from vino_rt.models.vino.connector import ConnectorPair
from vino_rt.models.vino.mmdit import MMDiT
from vino_rt.plan import Grid
from vino_rt.schedule import TIMESTEP_SCALE
from vino_rt.train.pack import SampleShape, pack_samples
from vino_rt.train.vlm_batch import VlmBatch, batch_states

GATES = ("norm.linear", "norm1.linear", "norm1_context.linear", "norm_out.linear")
OUTPUT = "transformer.proj_out"
"""Layers that begin at zero in a fresh transformer."""


@dataclass(frozen=True, eq=False)
class FlowInputs:
    """A batch of B samples as the model reads it."""

    prompts: VlmBatch
    targets: Tensor
    """float32 [sum of N, P]: noisy patches of all targets."""
    references: Tensor
    """float32 [sum of M, P]: patches of all references, sample by sample."""
    target_grids: tuple[Grid, ...]
    reference_grids: tuple[tuple[Grid, ...], ...]
    times: Tensor
    """float32 [B], 0 (data) to 1 (noise)."""

    def to(self, device: torch.device) -> "FlowInputs":
        """A copy on a device."""
        prompts = self.prompts.to(device)
        targets, references, times = (t.to(device) for t in (self.targets, self.references, self.times))
        return FlowInputs(prompts, targets, references, self.target_grids, self.reference_grids, times)


class FlowModel(nn.Module):
    """See the module. Parameter names begin with `queries`, `connectors`, `transformer` or (frozen) `conditioner`."""

    def __init__(self, model: ModelDir, *, queries: bool, boundary: bool) -> None:
        """Modules with the sizes of a model directory; `queries` and `boundary` take these parts away for ablations."""
        super().__init__()
        metaquery = model.part("connector").load(["metaquery"])["metaquery"].clone()
        # The queries are handed in at each call: the frozen conditioner has none of its own.
        self.conditioner = Conditioner.from_dir(model.path / "vlm", metaquery[:0])
        self.queries = nn.Parameter(metaquery, requires_grad=queries)
        self.connectors = ConnectorPair(model.connector)
        self.transformer = MMDiT(model.transformer)
        self.use_queries, self.use_boundary = queries, boundary

    def forward(self, given: FlowInputs) -> Tensor:
        """Velocities of all targets [sum of N, P], float32."""
        queries = self.queries if self.use_queries else self.queries[:0]
        states = batch_states(self.conditioner, given.prompts, queries)
        hidden = states.states.float()
        text, boundary = self.connectors(hidden, hidden[states.boundary])
        if not self.use_boundary:
            boundary = torch.zeros_like(boundary)
        shapes = [
            SampleShape(target, references, length)
            for target, references, length in zip(
                given.target_grids, given.reference_grids, states.lengths, strict=True
            )
        ]
        rows = pack_samples(shapes).to(text.device)
        timesteps = given.times * TIMESTEP_SCALE
        out = self.transformer.velocity(given.targets, given.references, boundary, text, rows, timesteps)
        return out.float()

    @property
    def query_count(self) -> int:
        """Rows that a prompt gets behind its last token."""
        return len(self.queries) if self.use_queries else 0

    def load(self, model: ModelDir) -> None:
        """Take transformer and connectors from a model directory; ModelError names what does not fit."""
        for module, part in ((self.transformer, "transformer"), (self.connectors, "connector")):
            own = {name: tuple(t.shape) for name, t in module.state_dict().items()}
            module.load_state_dict(model.part(part).load(own, torch.float32, own))

    def start_fresh(self) -> None:
        """Weights to train from nothing, from PyTorch's global generator: every block begins as the identity."""
        for name, module in self.named_modules():
            if name.startswith("conditioner") or not isinstance(module, nn.Linear | nn.Conv3d):
                continue
            nn.init.xavier_uniform_(module.weight.data.flatten(1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if name == OUTPUT or name.endswith(GATES):
                nn.init.zeros_(module.weight)
        nn.init.normal_(self.queries.data, std=self.queries.shape[1] ** -0.5)

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """Weights by part and name of a model directory."""
        connector = {"metaquery": self.queries.detach(), **self.connectors.state_dict()}
        return {"transformer": dict(self.transformer.state_dict()), "connector": connector}

    def shards(self) -> Sequence[nn.Module]:
        """Modules that run through `forward` alone: AdaLN Linears are called apart from the blocks they lie in."""
        blocks = [*self.transformer.transformer_blocks, *self.transformer.single_transformer_blocks]
        linears = [
            block.get_submodule(name)
            for block in blocks
            for name in ("norm", "norm1", "norm1_context")
            if name in dict(block.named_children())
        ]
        return [*linears, *blocks]
