"""The transformer as a set of engines: what is constant is bound once per request, a step runs the rest.

Follows `MMDiT.forward` engine by engine; knows no backend.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vino_rt.backends.base import Engine
from vino_rt.models.vino.blocks import DUAL_MODULATIONS, SINGLE_MODULATIONS
from vino_rt.models.vino.config import TransformerConfig
from vino_rt.models.vino.mmdit import branch_means, make_packing, static_rows
from vino_rt.plan import Plan
from vino_rt.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Modulation:
    """Outputs of the engine kind `modulation` for one schedule, cut by step and layer."""

    refiner: Tensor
    """[S, D]"""
    dual: tuple[tuple[Tensor, ...], ...]
    """Per step and dual block [12, D]."""
    single: tuple[tuple[Tensor, ...], ...]
    """Per step and single block [3, D]."""
    head: Tensor
    """[S, 2, D]"""


class Transformer:
    """Opened engines of every transformer kind, by name; one engine per layer."""

    def __init__(self, config: TransformerConfig, engines: Mapping[str, Sequence[Engine]]) -> None:
        self.config = config
        self.engines = engines

    def modulation(self, schedule: Schedule) -> Modulation:
        """Everything that depends on the schedule alone."""
        (engine,) = self.engines["modulation"]
        refiner, *tables = engine.run(**engine.fit(timesteps=schedule.timesteps))
        takers = (self.engines[name][0] for name in ("dual_block", "single_block", "head"))
        dual, single, head = (
            taker.fit(modulation=table)["modulation"] for taker, table in zip(takers, tables, strict=True)
        )
        return Modulation(
            refiner=refiner,
            dual=tuple(tuple(step.split(DUAL_MODULATIONS)) for step in dual),
            single=tuple(tuple(step.split(SINGLE_MODULATIONS)) for step in single),
            head=head,
        )

    def bind(
        self, plan: Plan, references: Tensor, boundary: Tensor, text: Tensor, modulation: Modulation
    ) -> "BoundTransformer":
        """Fix everything but time and latents.

        references [M, P], patches of all references of the plan in order; boundary [R, D] and text [rows, Z] from the
        connector, branch by branch, without padding. All of any floating type and on any device.
        """
        return BoundTransformer(self, plan, (references, boundary, text), modulation)


class BoundTransformer:
    """A request's constants in place; `velocity` is what a step costs."""

    def __init__(
        self, owner: Transformer, plan: Plan, rows: tuple[Tensor, Tensor, Tensor], modulation: Modulation
    ) -> None:
        references, boundary, text = rows
        self._engines = owner.engines
        self._modulation = modulation
        self._branches = len(plan.branches)
        packing = make_packing(plan, owner.config)
        padded = text.new_zeros(plan.text_tokens, text.shape[1])
        padded[: text.shape[0]] = text
        patch, words, embed, dual, single, head = (
            self._engines[name][0] for name in ("patch", "text", "embed", "dual_block", "single_block", "head")
        )
        (embedded,) = patch.run(**patch.fit(patches=references))
        tokens, pooled = words.run(**words.fit(text=padded, pooled=branch_means(text, plan)))
        self._condition = [embed.fit(condition=pooled + time) for time in modulation.refiner]
        static = static_rows(embedded, boundary.to(embedded))
        self._embed = embed.fit(static=static, image_index=plan.image_index, tokens=tokens)
        self._text = embed.fit(text_branch=plan.text_branch, text_offsets=plan.text_offsets)
        self._dual = dual.fit(**vars(packing))
        self._joint_index = self._dual["joint_index"]
        self._single = single.fit(
            cos=packing.cos.index_select(0, plan.joint_index),
            sin=packing.sin.index_select(0, plan.joint_index),
            offsets=plan.offsets,
        )
        self._head = head.fit(target_index=plan.target_index)

    def velocity(self, step: int, latents: Tensor) -> Tensor:
        """Target patches [N, P] before step `step` of the bound schedule -> velocities float32 [branches, N, P].

        The latents, float32, are on the engines' device.
        """
        m = self._modulation
        (embed,) = self._engines["embed"]
        image, text = embed.run(**embed.fit(target=latents), **self._embed, **self._condition[step], **self._text)
        for block, modulation in zip(self._engines["dual_block"], m.dual[step], strict=True):
            image, text = block.run(image=image, text=text, modulation=modulation, **self._dual)
        joint = torch.cat((image, text)).index_select(0, self._joint_index)
        for block, modulation in zip(self._engines["single_block"], m.single[step], strict=True):
            (joint,) = block.run(joint=joint, modulation=modulation, **self._single)
        (out,) = self._engines["head"][0].run(joint=joint, modulation=m.head[step], **self._head)
        return out.float().reshape(self._branches, -1, out.shape[1])


class BoundPlans:
    """Plans of one request run one after the other; together they hold all its branches, in order."""

    def __init__(self, bound: Sequence[BoundTransformer]) -> None:
        self._bound = bound

    def velocity(self, step: int, latents: Tensor) -> Tensor:
        """See `BoundTransformer.velocity`."""
        return torch.cat([bound.velocity(step, latents) for bound in self._bound])
