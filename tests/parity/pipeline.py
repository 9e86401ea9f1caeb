"""Cases of kind pipeline, from the recorded encodings on: all branches in one packed sequence, step by step to bytes.

The same transformer, schedule, guidance and decoding as the runtime's, on engines of either backend; `files` judges how
the encodings come about.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.parity import files
from tests.parity.case import BrokenCase, Case, all_ones, flat
from tests.parity.measure import BF16, FLIPS, LEVEL, PIPELINE, TIMESTEP, Judge
from tests.parity.mmdit import reference_rows
from vino_rt.backends.base import Engine
from vino_rt.backends.recipe import load_recipe
from vino_rt.backends.store import Store
from vino_rt.build import build
from vino_rt.conditioning import Conditioning, join
from vino_rt.decode import decode_latents, to_uint8
from vino_rt.denoise import denoise
from vino_rt.engines import open_engines
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.mmdit import MMDiT
from vino_rt.models.vino.patches import patch_grid, patchify, unpatchify
from vino_rt.models.vino.transformer import Transformer
from vino_rt.plan import BranchShape, Plan, pack
from vino_rt.schedule import Schedule, guide, make_schedule
from vino_rt.step import BoundModel, GuidedStep
from vino_rt.tiling import Tiling

RECIPES = {"eager": "eager", "onnxruntime": "cpu", "aotinductor": "aotinductor"}
BRANCHES = ("pos", "neg", "negimg")
"""Golden names of the branches in the order of the packed sequence."""
SCHEDULE_LIMITS = {"timesteps": LEVEL, "delta_t": LEVEL, "model_timesteps": TIMESTEP}


@dataclass(frozen=True, eq=False)
class Setup:
    """What a denoise needs besides its engines."""

    model: ModelDir
    plan: Plan
    references: list[Tensor]
    conditions: list[Conditioning]
    noise: Tensor
    schedule: Schedule
    guidance: float
    image_guidance: float


def judge(case: Case, judge: Judge, engines: str = "eager", store: Path | None = None) -> None:
    """Judge every output of a case on the engines of a backend, then what comes out of the files beside it."""
    with ExitStack() as stack:
        model = stack.enter_context(case.model())
        place = Store(store or model.path.parent / "store")
        recipe = load_recipe(RECIPES[engines])
        build(model, recipe, place)
        opened = open_engines(model, recipe, place, None)
        setup = recorded(case, model)
        found = run(setup, opened)
        for name in sorted(case.outputs):
            if name == "frames_uint8":
                _frames(judge, name, found)
            elif name in found:
                judge.close(name, found[name], SCHEDULE_LIMITS.get(name, PIPELINE))
        prepared = files.judge(case, judge, files.Parts(model, opened))
        _low_precision(case, judge, setup, prepared)
        # With a clip decoded elsewhere the end of the way says nothing that its beginning does not.
        if prepared is not None and not prepared.decoded:
            _from_files(judge, setup, prepared, opened)


def recorded(case: Case, model: ModelDir) -> Setup:
    """The inputs of a case as the runtime would hold them after conditioning."""
    config = sampling(case)
    references = [latents[0] for latents in case.numbered("vae_cond.")]
    conditions = [_condition(case, name, len(references)) for name in branch_names(case)]
    noise = case.input("noise")[0]
    return Setup(
        model=model,
        plan=_plan(model, references, conditions, noise),
        references=references,
        conditions=conditions,
        noise=noise,
        schedule=make_schedule(int(config["num_inference_steps"]), float(config["timestep_shift"])),
        guidance=float(config["guidance_scale"]),
        image_guidance=float(config.get("guidance_scale_image", 1.0)),
    )


def sampling(case: Case) -> dict[str, Any]:
    """The sampling settings of a case; `effective` are those the task left of what was asked for."""
    given = case.meta.get("pipeline_config") or case.json("config.json")
    return {**given, **given.get("effective", {})}


def branch_names(case: Case) -> list[str]:
    """Branches of a case in our order; BrokenCase for none or one unheard of."""
    given = case.meta.get("branches", {})
    if "pos" not in given or set(given) - set(BRANCHES):
        raise BrokenCase(f"{case.path}: branches {sorted(given)}; known are {BRANCHES}, the first always there")
    return [name for name in BRANCHES if name in given]


def _condition(case: Case, name: str, references: int) -> Conditioning:
    """One branch from the recorded encodings; it shows the last of the request's references."""
    said = case.meta["branches"][name]
    all_ones(case.inputs.get(f"{name}.mask"), f"{name}.mask")
    pairs = list(zip(flat(said["pos_vs"]), flat(said["pos_ve"]), strict=False))
    shown = tuple(range(references - len(pairs), references))
    if said.get("vae_conds_are_pos_indices") is not None:
        # The release pairs latents and boundary tokens one by one and stops with the shorter list.
        recorded_references = tuple(flat(said["vae_conds_are_pos_indices"])[: len(pairs)])
        if recorded_references != shown:
            raise BrokenCase(f"{case.path}: branch {name} shows references {recorded_references}, by our rule {shown}")
    rows = [row for pair in pairs for row in pair]
    return Conditioning(case.input(f"{name}.enc_vlm")[0], case.input(f"{name}.enc_vae")[0][rows], shown)


def _plan(model: ModelDir, references: Sequence[Tensor], conditions: Sequence[Conditioning], noise: Tensor) -> Plan:
    grids = [patch_grid(model.transformer, *latents.shape[1:]) for latents in references]
    shapes = [BranchShape(c.references, c.text.shape[0]) for c in conditions]
    return pack(patch_grid(model.transformer, *noise.shape[1:]), grids, shapes)


class Recorder:
    """A bound model that keeps what it was given and what it gave."""

    def __init__(self, inner: BoundModel) -> None:
        self._inner = inner
        self.latents: list[Tensor] = []
        self.velocities: list[Tensor] = []

    def velocity(self, step: Tensor, latents: Tensor) -> Tensor:
        """See `BoundModel`."""
        self.latents.append(latents.clone())
        self.velocities.append(self._inner.velocity(step, latents))
        return self.velocities[-1]


class ModuleBound:
    """The reference module itself behind the protocol, in whatever precision it is; no engine knows bfloat16 yet."""

    def __init__(self, setup: Setup, module: MMDiT) -> None:
        self._module, self._setup = module, setup
        dtype = module.proj_out.weight.dtype
        text, boundary = join(setup.conditions)
        rows = reference_rows(setup.references, module.config)
        self._rows = {"references": rows.to(dtype), "boundary": boundary.to(dtype), "text": text.to(dtype)}

    def velocity(self, step: Tensor, latents: Tensor) -> Tensor:
        """See `BoundModel`."""
        timestep = self._setup.schedule.timesteps[step]
        out: Tensor = self._module(target=latents, **self._rows, plan=self._setup.plan, timestep=timestep)
        return out


def bind(setup: Setup, engines: Mapping[str, list[Engine]]) -> BoundModel:
    """Bind a setup to engines as the runtime does."""
    transformer = Transformer(setup.model.transformer, engines)
    text, boundary = join(setup.conditions)
    rows = reference_rows(setup.references, setup.model.transformer)
    return transformer.bind(setup.plan, rows, boundary, text, transformer.modulation(setup.schedule))


@torch.inference_mode()
def run(setup: Setup, engines: Mapping[str, list[Engine]]) -> dict[str, Tensor]:
    """Everything from noise to bytes by golden name, without a batch."""
    found = steps(setup, bind(setup, engines))
    scale = setup.model.vae.scaling_factor
    latents = found["final_latents"]

    def decode_tile(tile: Tensor) -> Tensor:
        return engines["vae_decode"][0].run(latents=tile)[0]

    video = decode_latents(latents[None], decode_tile, Tiling(), scale)
    schedule = setup.schedule
    return {
        **found,
        "timesteps": schedule.level,
        "delta_t": schedule.delta,
        "model_timesteps": schedule.timesteps,
        "decode_input": latents / scale,
        "video": video[0],
        "frames_uint8": to_uint8(video),
    }


def steps(setup: Setup, model: BoundModel, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The denoise with all it passes through: `velocity_<branch>.<s>`, `velocity.<s>`, `latents.<s>`."""
    config, grid, recorder = setup.model.transformer, setup.plan.target, Recorder(model)
    noise = patchify(setup.noise, config).contiguous().to(dtype)
    mix = {"guidance": setup.guidance, "image_guidance": setup.image_guidance}
    guided = GuidedStep(recorder, noise, setup.schedule, (setup.guidance, setup.image_guidance))
    last = denoise(guided, noise, setup.schedule.steps, lambda _: None)
    found = {"final_latents": unpatchify(last, grid, config)}
    for step, velocity in enumerate(recorder.velocities):
        for name, rows in zip(BRANCHES, velocity, strict=False):
            found[f"velocity_{name}.{step}"] = unpatchify(rows, grid, config)
        found[f"velocity.{step}"] = unpatchify(guide(velocity, **mix), grid, config)
        after = [*recorder.latents[1:], last][step]
        found[f"latents.{step}"] = unpatchify(after, grid, config)
    return found


def _frames(judge: Judge, name: str, found: Mapping[str, Tensor]) -> None:
    """Bytes: truncation may turn a value by one where the float video is a rounding away from the next."""
    golden, ours = judge.outputs[name][0], found[name]
    if golden.shape != ours.shape:
        return judge.fail(name, f"ours has shape {list(ours.shape)}, golden {list(golden.shape)}")
    gap = (golden.int() - ours.int()).abs()
    share = gap.gt(0).float().mean().item()
    if share > FLIPS:
        return judge.fail(name, f"{share:.2%} of the bytes differ, at most {FLIPS:.1%} may by truncation", 1.0)
    count = int(gap.gt(0).sum())
    judge.number(name, float(gap.max()), 1.0, f"{count} of {gap.numel()} bytes differ by truncation" if count else "")


@torch.inference_mode()
def _low_precision(case: Case, judge: Judge, setup: Setup, prepared: files.Prepared | None) -> None:
    """Outputs of the release in bfloat16, its loop and latents too, by the reference module in bfloat16.

    The release's encodings were made in bfloat16 as well and are not recorded; without files the float32 ones serve.
    """
    low = [name for name in case.outputs if name.endswith(BF16)]
    if not low:
        return
    if prepared is not None:
        setup = replace(setup, conditions=prepared.low)
    module = MMDiT(setup.model.transformer)
    module.load_state_dict(case.release_weights("transformer."))
    found = steps(setup, ModuleBound(setup, module.bfloat16().eval()), torch.bfloat16)
    last = f"latents.{setup.schedule.steps - 1}"
    for name in low:
        base = name.removesuffix(BF16)
        if base in found:
            judge.low_precision(name, found[base], last if base == "final_latents" else base)


def _from_files(judge: Judge, setup: Setup, prepared: files.Prepared, engines: Mapping[str, list[Engine]]) -> None:
    """The whole way: latents after the last step from what the files alone gave."""
    plan = _plan(setup.model, prepared.references, prepared.conditions, setup.noise)
    own = replace(
        setup, plan=plan, references=prepared.references, conditions=prepared.conditions, noise=prepared.noise
    )
    name = f"latents.{setup.schedule.steps - 1}"
    with torch.inference_mode():
        ours = steps(own, bind(own, engines))[name]
    judge.close(f"files.{name}", ours, PIPELINE, judge.outputs.get(name))
