"""The transformer run as engines: tensors that stay constant are bound once per request, a step computes the rest.

Follows `MMDiT.forward` engine by engine; knows no backend (MODEL.md section 4).
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vino_rt.backends.base import Engine
from vino_rt.models.vino.blocks import DUAL_MODULATIONS, SINGLE_MODULATIONS
from vino_rt.models.vino.config import TransformerConfig
from vino_rt.models.vino.mmdit import branch_means, make_packing, static_rows
from vino_rt.plan import Plan
from vino_rt.schedule import Schedule, lengthen


@dataclass(frozen=True, eq=False)
class ModulationTables:
    """Outputs of engine kind `modulation` for a schedule of K steps, each in the dtype of the engine that reads it.

    For recorded steps the tables are padded with zero rows, which no step reads; see `Transformer`.
    """

    refiner: Tensor
    """[K, D]"""
    dual: Tensor
    """[K, 12 * dual blocks, D]"""
    single: Tensor
    """[K, 3 * single blocks, D]"""
    head: Tensor
    """[K, 2, D] (scale, then shift)"""


class Transformer:
    """Opened engines of every transformer kind, by name; one engine per layer."""

    def __init__(self, config: TransformerConfig, engines: Mapping[str, Sequence[Engine]], room: int = 1) -> None:
        """room: modulation tables are padded to a multiple of this many steps (`vino_rt.step.StepCache`)."""
        self.config = config
        self.engines = engines
        self._room = room

    def modulation(self, schedule: Schedule) -> ModulationTables:
        """Compute everything that depends on the schedule alone: the modulations of all steps."""
        (engine,) = self.engines["modulation"]
        found = engine.run(**engine.fit(timesteps=schedule.timesteps))
        refiner, *tables = (lengthen(table, self._room) for table in found)
        takers = (self.engines[name][0] for name in ("dual_block", "single_block", "head"))
        dual, single, head = (
            taker.fit(modulation=table)["modulation"] for taker, table in zip(takers, tables, strict=True)
        )
        return ModulationTables(refiner, dual, single, head)

    def bind(
        self, plan: Plan, references: Tensor, boundary: Tensor, text: Tensor, modulation: ModulationTables
    ) -> "BoundTransformer":
        """Bind all inputs of the transformer but the time and the latents.

        references [M, P]: patches of all references of the plan, in order. boundary [R, D] and text [rows, Z]: from the
        connector, branch by branch, without padding. All may be of any floating dtype and on any device.
        """
        return BoundTransformer(self, plan, (references, boundary, text), modulation)


class BoundTransformer:
    """The transformer bound to one packed sequence and schedule; `velocity` runs the part that every step repeats."""

    def __init__(
        self, owner: Transformer, plan: Plan, rows: tuple[Tensor, Tensor, Tensor], modulation: ModulationTables
    ) -> None:
        references, boundary, text = rows
        self._engines = owner.engines
        self._branches = len(plan.branches)
        packing = make_packing(plan, owner.config)
        padded = text.new_zeros(plan.text_tokens, text.shape[1])
        padded[: text.shape[0]] = text
        patch, words, embed, dual, single, head = (
            self._engines[name][0] for name in ("patch", "text", "embed", "dual_block", "single_block", "head")
        )
        (embedded,) = patch.run(**patch.fit(patches=references))
        tokens, pooled = words.run(**words.fit(text=padded, pooled=branch_means(text, plan)))
        static = static_rows(embedded, boundary.to(embedded))
        # Pad the static rows to what the sequence can hold beside its targets, so that their number does not depend on
        # the references: a recorded step then serves any references.
        free = max(0, 1 + plan.image_tokens - plan.target_index.shape[0] - static.shape[0])
        image_index = plan.image_index + free * (plan.image_index >= static.shape[0])
        static = F.pad(static, (0, 0, 0, free))
        in_streams = dual.fit(**packing.tensors())
        # Reordered on the device: the tables are copied from the host once.
        order = in_streams["orders"][0]
        in_joint_order = {n: in_streams[n].index_select(0, order) for n in ("cos", "sin", "positions")}
        self._fixed = {
            "embed": embed.fit(static=static, image_index=image_index, tokens=tokens),
            "text": embed.fit(text_branch=plan.text_branch, text_offsets=plan.text_offsets),
            "dual": in_streams,
            "single": single.fit(**in_joint_order, offsets=plan.offsets),
            "head": head.fit(target_index=plan.target_index),
        }
        self._by_step = {
            "condition": embed.fit(condition=modulation.refiner[:, None] + pooled)["condition"],
            "dual": modulation.dual,
            "single": modulation.single,
            "head": modulation.head,
        }

    def velocity(self, step: Tensor, latents: Tensor) -> Tensor:
        """Velocities float32 [branches, N, P] of the latents at a step of the bound schedule.

        step: number of the step, int64 [1]; latents: target patches float32 [N, P]. Both on the engines' device.
        """
        condition, dual, single, ends = (table.index_select(0, step)[0] for table in self._by_step.values())
        fixed = self._fixed
        (embed,), (head,) = self._engines["embed"], self._engines["head"]
        image, text = embed.run(**embed.fit(target=latents), **fixed["embed"], condition=condition, **fixed["text"])
        for block, modulation in zip(self._engines["dual_block"], torch.split(dual, DUAL_MODULATIONS), strict=True):
            image, text = block.run(image=image, text=text, modulation=modulation, **fixed["dual"])
        joint = torch.cat((image, text)).index_select(0, fixed["dual"]["orders"][0])
        for block, modulation in zip(
            self._engines["single_block"], torch.split(single, SINGLE_MODULATIONS), strict=True
        ):
            (joint,) = block.run(joint=joint, modulation=modulation, **fixed["single"])
        (out,) = head.run(joint=joint, modulation=ends, **fixed["head"])
        return out.float().reshape(self._branches, -1, out.shape[1])

    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor that depends on the request or its schedule, in a fixed order."""
        return tuple(t for group in (*self._fixed.values(), self._by_step) for t in group.values())

    def copy(self, allocate: Callable[[Tensor], Tensor]) -> "BoundTransformer":
        """A copy of this object whose `tensors` are copies made by `allocate`."""
        own = copy.copy(self)
        own._fixed = {name: {n: allocate(t) for n, t in group.items()} for name, group in self._fixed.items()}
        own._by_step = {name: allocate(table) for name, table in self._by_step.items()}
        return own


class BoundPlans:
    """The packed sequences of one request, run one after the other; together they hold all branches, in order."""

    def __init__(self, bound: Sequence[BoundTransformer]) -> None:
        self._bound = bound

    def velocity(self, step: Tensor, latents: Tensor) -> Tensor:
        """See `BoundTransformer.velocity`."""
        return torch.cat([bound.velocity(step, latents) for bound in self._bound])

    def tensors(self) -> tuple[Tensor, ...]:
        """See `BoundTransformer.tensors`."""
        return tuple(tensor for bound in self._bound for tensor in bound.tensors())

    def copy(self, allocate: Callable[[Tensor], Tensor]) -> "BoundPlans":
        """See `BoundTransformer.copy`."""
        return BoundPlans([bound.copy(allocate) for bound in self._bound])
