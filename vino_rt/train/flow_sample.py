"""Samples drawn from the model that is being trained, many in one packed sequence: for sheets and quick looks.

The schedule, guidance and step are those of the runtime; everything runs eagerly. It knows no files.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from vino_rt.decode import decode_latents, to_uint8
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.patches import unpatchify
from vino_rt.models.vino.prompt import ProcessedInput
from vino_rt.plan import volume
from vino_rt.request import Pixels
from vino_rt.schedule import euler, guide, make_schedule
from vino_rt.tiling import Tiling
from vino_rt.train.flow_batch import Drawn, Prepared, assemble
from vino_rt.train.flow_model import FlowModel

TOGETHER = 16
"""Samples in one packed sequence."""


@torch.no_grad()
def draw_samples(
    model: FlowModel,
    decoder: nn.Module,
    directory: ModelDir,
    samples: Sequence[Prepared],
    nothing: ProcessedInput,
    seed: int,
) -> list[Pixels]:
    """uint8 [F, H, W, 3] for each encoded sample, with the directory's default steps, guidance and shift.

    The second branch has an empty prompt and the same references (MODEL.md section 5).
    """
    device = next(model.parameters()).device
    decoder.to(device)
    results: list[Pixels] = []
    for first in range(0, len(samples), TOGETHER):
        group = samples[first : first + TOGETHER]
        moving = [sample.latents[0].grid[0] > 1 for sample in group]
        # One schedule a call: pictures and clips may have different shifts.
        latents: dict[int, Tensor] = {}
        for kind in (False, True):
            chosen = [number for number, moves in enumerate(moving) if moves is kind]
            if chosen:
                drawn = _denoise(model, directory, [group[n] for n in chosen], nothing, seed + first)
                latents.update(zip(chosen, drawn, strict=True))
        for number, sample in enumerate(group):
            rows = unpatchify(latents[number], sample.latents[0].grid, directory.transformer)
            pixels = decode_latents(rows[None], decoder, Tiling(), directory.vae.scaling_factor)
            results.append(to_uint8(pixels.float()).numpy())
    return results


def _denoise(
    model: FlowModel, directory: ModelDir, samples: Sequence[Prepared], nothing: ProcessedInput, seed: int
) -> Sequence[Tensor]:
    """Target patches of each sample, all of one kind of output, on the model's device."""
    device = next(model.parameters()).device
    sampling = directory.settings.video if samples[0].latents[0].grid[0] > 1 else directory.settings.image
    schedule = make_schedule(directory.settings.steps, sampling.shift)
    counts = [volume(sample.latents[0].grid) for sample in samples]
    both = [*samples, *samples]
    noise = torch.randn(sum(counts), directory.transformer.patch_values, generator=torch.Generator().manual_seed(seed))
    unprompted = (False,) * len(samples) + (True,) * len(samples)
    drawn = Drawn(torch.cat((noise, noise)), torch.ones(len(both)), unprompted, (False,) * len(both))
    inputs, _ = assemble(both, drawn, nothing, model.conditioner.vision_ids, model.query_count)
    inputs, x = inputs.to(device), noise.to(device)
    for level, delta in zip(schedule.level.tolist(), schedule.delta.tolist(), strict=True):
        times = torch.full((len(both),), level, device=device)
        velocity = model(replace(inputs, targets=torch.cat((x, x)), times=times))
        x = euler(x, guide(velocity.chunk(2), sampling.guidance, 1.0), torch.tensor(delta, device=device))
    ends = itertools.accumulate(counts)
    return [x[end - count : end] for count, end in zip(counts, ends, strict=True)]
