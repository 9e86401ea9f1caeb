"""The first half of a pipeline case: from its task file and references to encodings, latents and noise.

Nothing recorded goes in but what no file holds: the posterior's noise, and pixels of a clip where the case has them,
because those depend on the library that decodes.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.parity.case import BrokenCase, Case, find_key, flat
from tests.parity.measure import VAE, VLM, Judge
from tests.parity.vae import posterior_parts
from tests.parity.vlm import CONNECTORS, PATCHED, connector, video_limits
from vino_rt.backends.base import Engine
from vino_rt.conditioning import Conditioning, branch_input, condition
from vino_rt.decode import encode_video
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.checkpoint import release_settings
from vino_rt.models.vino.conditioner import Conditioner
from vino_rt.models.vino.prefill import VlmStates
from vino_rt.models.vino.prepare import vae_pixels
from vino_rt.models.vino.prompt import VlmInput
from vino_rt.noise import draw_noise
from vino_rt.request import Pixels
from vino_rt.settings import Branch, Settings, branches, resolve
from vino_rt.sources import Sources, load_sources
from vino_rt.task_rules import TASKS
from vino_rt.tasks import read_tasks
from vino_rt.tiling import Tiling

BRANCHES: Mapping[str, Branch] = {"pos": "prompt", "neg": "negative", "negimg": "negative_no_images"}
FETCH_MINIMA = (None, 784, 3136, 12544, 50176)
"""Least pixels of a clip's frame that a small case may have been made with; None is the released limit."""
DECODED = "from a clip decoded here: the release decoded with another library"


@dataclass(frozen=True, eq=False)
class Parts:
    """A model with its engines."""

    model: ModelDir
    engines: Mapping[str, list[Engine]]

    def connect(self, states: Tensor, boundary_states: Tensor) -> tuple[Tensor, Tensor]:
        """Engine kind `connector`."""
        states, boundary_states = states.contiguous(), boundary_states.contiguous()
        text, boundary = self.engines["connector"][0].run(states=states, boundary_states=boundary_states)
        return text, boundary

    def encode_tile(self, pixels: Tensor) -> Tensor:
        """Engine kind `vae_encode`."""
        return self.engines["vae_encode"][0].run(pixels=pixels)[0]


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the files came to."""

    references: list[Tensor]
    conditions: list[Conditioning]
    low: list[Conditioning]
    """The same with VLM and connectors in bfloat16, rotary frequencies included, as the release runs them."""
    noise: Tensor
    decoded: bool
    """Whether a clip was decoded here that the release decoded with another library."""


@torch.inference_mode()
def judge(case: Case, judge: Judge, parts: Parts) -> Prepared | None:
    """Judge preparation and encodings as `files.<name>`; None when the case has no task file."""
    if not (case.path / str(case.meta.get("task", "task.json"))).is_file():
        return None
    settings, sources = read(case)
    given = given_clip(case, sources) is not None and given_vlm_frames(case, sources) is not None
    noise = draw_noise(settings, parts.model.transformer.in_channels)
    judge.exact("files.noise", noise, case.input("noise"))
    _branches(case, judge, settings)
    for i, image in enumerate(sources.images):
        if f"ref_image.{i}" in case.inputs:
            judge.exact(f"files.ref_image.{i}", torch.from_numpy(image), case.inputs[f"ref_image.{i}"])
    references = _references(case, judge, sources, parts)
    conditions = _conditions(case, judge, settings, sources, parts)
    return Prepared(
        references, conditions, _low_conditions(case, settings, sources), noise, sources.clip is not None and not given
    )


def read(case: Case) -> tuple[Settings, Sources]:
    """The case's task as the command line would read it, at the size and with the sampling that `meta.json` records."""
    tasks = read_tasks(case.path / str(case.meta.get("task", "task.json")))
    if len(tasks) != 1:
        raise BrokenCase(f"{case.path}: the task file holds {len(tasks)} entries, expected one")
    asked, config = case.meta["dataset_config"], case.meta["pipeline_config"]
    config = {**config, **config.get("effective", {})}
    rule = TASKS[tasks[0].task]
    request = tasks[0].request(
        size=(config["width"], config["height"]),
        frames=asked["num_frames"] if rule.video else config["num_frames"],
        steps=config["num_inference_steps"],
        seed=case.meta["seed"],
        guidance=float(config["guidance_scale"]),
        image_guidance=float(config.get("guidance_scale_image", 1.0)),
    )
    area = asked["height"] * asked["width"]
    defaults = release_settings(area=area)
    sources = load_sources(request, defaults)
    if rule.size_from == "request":
        # Only the references are bound to the area here; the release draws any size it is asked for.
        defaults = dataclasses.replace(defaults, area=max(area, 2 * config["height"] * config["width"]))
    return resolve(request, defaults, sources.sizes), sources


def given_clip(case: Case, sources: Sources) -> Tensor | None:
    """Pixels [1, 3, F, H, W] in [-1, 1] of the clip as the autoencoder got them, where the case holds them.

    Known by `video` in the name and the size the clip comes to here; which library decoded it cannot change that.
    """
    if sources.clip is None:
        return None
    size = sources.clip.shape[:3]
    for name, tensor in sorted(case.inputs.items()):
        if "video" not in name:
            continue
        frames = _frames_last(tensor)
        if frames is not None and tuple(frames.shape[:3]) == size:
            if frames.dtype == torch.uint8:
                return vae_pixels(frames.numpy())
            return frames.permute(3, 0, 1, 2)[None].contiguous()
    return None


def given_vlm_frames(case: Case, sources: Sources) -> Pixels | None:
    """Frames uint8 [8, H, W, 3] as the VLM got them, known by number and size; None where the case has none."""
    if sources.vlm_frames is None:
        return None
    for _, tensor in sorted(case.inputs.items()):
        frames = _frames_last(tensor) if tensor.dtype == torch.uint8 else None
        if frames is not None and tuple(frames.shape) == sources.vlm_frames.shape:
            found: Pixels = frames.numpy()
            return found
    return None


def _frames_last(frames: Tensor) -> Tensor | None:
    """Frames with channels first, second or last, batched or not, as [F, H, W, 3]; None when these are none."""
    frames = frames[0] if frames.dim() == 5 else frames
    axes = [axis for axis in (3, 1, 0) if frames.dim() == 4 and frames.shape[axis] == 3]
    return frames.movedim(axes[0], 3).contiguous() if axes else None


def _branches(case: Case, judge: Judge, settings: Settings) -> None:
    """The branches that ours would run; the third may be missing where it is the second again."""
    ours, golden = list(branches(settings)), [BRANCHES[name] for name in BRANCHES if name in case.meta["branches"]]
    repeats = "negimg.enc_vlm" in case.inputs and torch.equal(
        case.inputs["negimg.enc_vlm"], case.inputs.get("neg.enc_vlm", torch.empty(0))
    )
    same = ours == golden or (repeats and ours == golden[:2])
    judge.number("files.branches", float(not same), 0.0, "" if same else f"ours runs {ours}, golden {golden}")


def _references(case: Case, judge: Judge, sources: Sources, parts: Parts) -> list[Tensor]:
    """Posterior and scaled latents of every reference, judged; returns latents [C, F, H, W]."""
    clips = [vae_pixels(image[None]) for image in sources.images]
    given = given_clip(case, sources)
    decoded = len(clips) if sources.clip is not None and given is None else None
    if sources.clip is not None:
        clips.append(vae_pixels(sources.clip) if given is None else given)
    golden = len(case.numbered("vae_cond."))
    judge.number("files.references", float(abs(len(clips) - golden)), 0.0)
    found = []
    for i, pixels in enumerate(clips[:golden]):
        moments = posterior_parts(encode_video(pixels, parts.encode_tile, Tiling()))
        reason = DECODED if i == decoded else ""
        noise = case.inputs.get(f"posterior.{i}.noise")
        for name in ("mean", "logvar"):
            _near(judge, f"files.posterior.{i}.{name}", moments[name], case.inputs.get(f"posterior.{i}.{name}"), reason)
        if noise is None or noise.shape != moments["mean"].shape:
            judge.fail(f"files.vae_cond.{i}", f"no input posterior.{i}.noise of shape {list(moments['mean'].shape)}")
            continue
        latents = (moments["mean"] + moments["std"] * noise) * parts.model.vae.scaling_factor
        _near(judge, f"files.vae_cond.{i}", latents, case.inputs[f"vae_cond.{i}"], reason)
        found.append(latents[0])
    return found


def _near(judge: Judge, name: str, ours: Tensor, golden: Tensor | None, reason: str, limit: float = VAE) -> None:
    """Judge a tensor, saying why where it may be off for another reason than ours."""
    if golden is None or ours.numel() != golden.numel() or not reason:
        return judge.close(name, ours, limit, golden if golden is not None else torch.empty(0))
    gap = (ours.reshape(golden.shape).double() - golden.double()).abs().max().item()
    judge.number(name, gap, limit, reason)


def _conditions(case: Case, judge: Judge, settings: Settings, sources: Sources, parts: Parts) -> list[Conditioning]:
    """States of every branch through both connectors, at all rows, and the rows of the boundary tokens."""
    vlm = Conditioner.from_dir(parts.model.path / "vlm", parts.model.part("connector").load(["metaquery"])["metaquery"])
    reason = DECODED if sources.vlm_frames is not None and given_vlm_frames(case, sources) is None else ""
    references, found = len(sources.images) + (sources.clip is not None), []
    for name, states in _states(case, vlm, settings, sources):
        golden = {part: case.input(f"{name}.{part}") for part in ("enc_vlm", "enc_vae")}
        hidden = states.states.float()
        text, rows = parts.connect(hidden, hidden)
        _near(judge, f"files.{name}.enc_vlm", text, golden["enc_vlm"], reason, VLM)
        _near(judge, f"files.{name}.enc_vae", rows, golden["enc_vae"], reason, VLM)
        said = case.meta["branches"][name]
        pairs = list(zip(flat(said["pos_vs"]), flat(said["pos_ve"]), strict=False))
        ours = list(zip(states.vision_start, states.vision_end, strict=True))
        judge.number(f"files.{name}.positions", float(ours != pairs), 0.0, "" if ours == pairs else f"{ours}, {pairs}")
        found.append(condition(states, references, parts.connect))
    return found


def _low_conditions(case: Case, settings: Settings, sources: Sources) -> list[Conditioning]:
    """Every branch as the release sees it after its cast to bfloat16, which rounds the rotary frequencies too."""
    queries = case.release_weights("mm_encoder.")["metaquery"]
    vlm = Conditioner.from_dir(case.qwen(), queries, torch.bfloat16, rotary_bf16=True)
    text, boundary = (connector(case, branch).bfloat16() for branch in CONNECTORS.values())
    references = len(sources.images) + (sources.clip is not None)

    def connect(states: Tensor, boundary_states: Tensor) -> tuple[Tensor, Tensor]:
        return text(states.bfloat16()), boundary(boundary_states.bfloat16())

    return [condition(states, references, connect) for _, states in _states(case, vlm, settings, sources)]


def _states(case: Case, vlm: Conditioner, settings: Settings, sources: Sources) -> Iterator[tuple[str, VlmStates]]:
    """Golden name and states of every branch of the case, in our order."""
    if (vlm_frames := given_vlm_frames(case, sources)) is not None:
        sources = dataclasses.replace(sources, vlm_frames=vlm_frames)
    for name in (name for name in BRANCHES if name in case.meta["branches"]):
        shown = branch_input(BRANCHES[name], settings, sources)
        yield name, vlm(_fitted(vlm, case, shown, case.input(f"{name}.enc_vlm").shape[1]))


def _fitted(vlm: Conditioner, case: Case, shown: VlmInput, rows: int) -> Any:
    """The processed input at the clip size the case was made with: as recorded, else whichever gives its row count."""
    assert vlm.processor is not None, "from_dir reads the processor"
    processor, released = vlm.processor, vlm.processor.config
    recorded = find_key(case.meta, PATCHED)
    minima = FETCH_MINIMA if shown.video is not None and recorded is None else (recorded,)
    made = []
    for minimum in minima:
        processor.config = video_limits(released, minimum)
        made.append(vlm.process(shown))
        if len(made[-1].input_ids) + len(vlm.metaquery) == rows:
            break
    processor.config = released
    return made[-1] if len(made[-1].input_ids) + len(vlm.metaquery) == rows else made[0]
