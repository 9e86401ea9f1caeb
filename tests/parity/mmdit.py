"""Cases of kind mmdit: one forward of the transformer, its intermediates, and the same in bfloat16."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tests.parity.case import BrokenCase, Case, all_ones, flat
from tests.parity.measure import BF16, MMDIT, Judge
from vino_rt.models.vino.config import TransformerConfig
from vino_rt.models.vino.mmdit import GUIDANCE, MMDiT
from vino_rt.models.vino.ops import norm_modulate
from vino_rt.models.vino.patches import patch_grid, patchify, unpatchify
from vino_rt.plan import BranchShape, Plan, pack

INTERMEDIATE = "dbg."
Named = dict[str, Tensor]


def judge(case: Case, judge: Judge) -> None:
    """Judge every output of a case: velocity, `dbg.*`, and each of them with the suffix of bfloat16."""
    model, arguments, plan = _load(case)
    wanted = set(case.outputs)
    low = {name for name in wanted if name.endswith(BF16)}
    found = forward(model, arguments, plan)
    for name in sorted(wanted - low):
        if name == "dbg.attention_mask":
            judge.exact(name, found[name])
        elif name in found:
            judge.close(name, found[name], MMDIT)
    if low:
        found = forward(
            model.bfloat16(), {k: v if k == "timestep" else v.bfloat16() for k, v in arguments.items()}, plan
        )
        for name in sorted(low):
            if name.removesuffix(BF16) in found:
                judge.low_precision(name, found[name.removesuffix(BF16)])


def _load(case: Case) -> tuple[MMDiT, Named, Plan]:
    """The model on the case's weights, the arguments of its forward by name, and their plan."""
    config = TransformerConfig.from_json(case.json("config.json"), f"{case.name}/config.json")
    model = MMDiT(config)
    model.load_state_dict(case.weights() or case.release_weights("transformer."))
    all_ones(case.inputs.get("encoder_attention_mask"), "encoder_attention_mask")
    guidance = case.inputs.get("guidance", torch.tensor([GUIDANCE]))
    if not torch.equal(guidance, torch.full_like(guidance, GUIDANCE)):
        raise BrokenCase(f"input 'guidance' is {guidance.tolist()}; the model was only ever told {GUIDANCE}")
    latents, text, rows = (case.input(name) for name in ("latents", "enc_vlm", "enc_vae"))
    if len(latents) != 1:
        raise BrokenCase(f"input 'latents' holds a batch of {len(latents)}; the released code runs 1")
    pairs = list(zip(flat(case.meta.get("pos_vs")), flat(case.meta.get("pos_ve")), strict=False))
    # The release walks latents and boundary tokens side by side and stops with the shortest list.
    references = [latent[0] for latent in case.numbered("vae_cond.")][: len(pairs)]
    boundary = [row for pair in pairs[: len(references)] for row in pair]
    target = latents[0]
    plan = pack(
        patch_grid(config, *target.shape[1:]),
        [patch_grid(config, *latent.shape[1:]) for latent in references],
        [BranchShape(tuple(range(len(references))), text.shape[1])],
    )
    arguments = {
        "target": patchify(target, config),
        "references": reference_rows(references, config),
        "boundary": rows[0][boundary],
        "text": text[0],
        "timestep": case.input("timestep"),
    }
    return model.eval(), arguments, plan


def reference_rows(references: list[Tensor], config: TransformerConfig) -> Tensor:
    """Patches of all references [M, P]; no rows without any."""
    rows = [patchify(latents, config) for latents in references]
    return torch.cat(rows) if rows else torch.zeros(0, config.patch_values)


def forward(model: MMDiT, arguments: Mapping[str, Tensor], plan: Plan) -> Named:
    """Velocity [C, F, H, W] and every intermediate by its golden name, of a plan with one branch."""
    seen: dict[str, Any] = {}
    owners: dict[str, nn.Module] = {
        "refiner": model.get_submodule("context_embedder.token_refiner"),
        "time": model.time_text_embed,
        "head": model.norm_out,
        **{f"transformer_blocks.{i}": block for i, block in enumerate(model.transformer_blocks)},
        **{f"single_transformer_blocks.{i}": block for i, block in enumerate(model.single_transformer_blocks)},
    }
    handles = [owner.register_forward_hook(_keep(seen, name)) for name, owner in owners.items()]
    with torch.inference_mode():
        out = model(**arguments, plan=plan)
        found = _intermediates(model, seen, plan)
    for handle in handles:
        handle.remove()
    return {"velocity": unpatchify(out[0], plan.target, model.config), **found}


def _keep(seen: dict[str, Any], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_: nn.Module, given: Any, out: Any) -> None:
        seen[name] = (given, out)

    return hook


def _intermediates(model: MMDiT, seen: Mapping[str, Any], plan: Plan) -> Named:
    """Golden names of what the hooks saw."""
    count = plan.image_tokens
    found: Named = {"refiner_temb": seen["refiner"][0][1], "context": seen["refiner"][1], "temb": seen["time"][1]}
    first, _, _, packing = seen["transformer_blocks.0"][0]
    found["tokens_in"] = first
    # The release stores one entry per channel, ours one per rotated pair; its mask says who is seen, as our segments.
    found["rope_cos"], found["rope_sin"] = (x[:count].repeat_interleave(2, 1) for x in (packing.cos, packing.sin))
    start, end = plan.offsets[:2].tolist()
    rows = torch.arange(plan.joint_index.shape[0])
    found["attention_mask"] = ((rows >= start) & (rows < end))[None, None]
    joint = first
    for name, (_, out) in seen.items():
        if name.startswith("transformer_blocks."):
            found[f"{name}.hidden"], found[f"{name}.context"] = out
        elif name.startswith("single_transformer_blocks."):
            joint = out.index_select(0, plan.stream_index)
            found[f"{name}.hidden"], found[f"{name}.context"] = joint[:count], joint[count:]
    scale, shift = seen["head"][1][0].chunk(2)
    found["norm_out"] = norm_modulate(joint[:count], shift, scale)
    found["proj_out"] = model.proj_out(found["norm_out"])
    return {f"{INTERMEDIATE}{name}": tensor for name, tensor in found.items()}
