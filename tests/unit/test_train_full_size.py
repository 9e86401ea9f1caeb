"""The released checkpoint trains with the same code: one step at full size without storage, some steps at a tiny size.

Nothing of the full size is computed: every tensor has a shape, a type and a place in the graph, and no numbers.
"""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.unit.models import ask
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.conditioner import Conditioner
from vino_rt.models.vino.config import TransformerConfig
from vino_rt.models.vino.connector import ConnectorConfig
from vino_rt.models.vino.prompt import ProcessedInput
from vino_rt.plan import Grid, volume
from vino_rt.runtime import Runtime
from vino_rt.train.distributed import trained
from vino_rt.train.flow import FlowObjective
from vino_rt.train.flow_model import FlowInputs, FlowModel
from vino_rt.train.optimiser import gradient_norm, make_optimiser
from vino_rt.train.stage import OptimiserStage
from vino_rt.train.vlm_batch import collate
from vino_rt.train.world_data import WorldData

META = torch.device("meta")
CLIP, PICTURE = (22, 30, 53), (1, 30, 53)
"""Patches of 85 frames, and of one picture, at 848 x 480."""
QUERIES, HIDDEN, PATCH = 256, 2560, 64
VISUAL: Grid = (1, 30, 52)
"""Patches of a reference in the VLM, before the merge of four into one."""
TRANSFORMER, CONNECTORS = 12_821_012_544, 178_298_880


# Seconds on an idle machine.
pytestmark = pytest.mark.timeout(300)


class Shapes(TorchFunctionMode):
    """Numbers have no storage, indices do: attention reads the lengths of segments.

    What asks for integers without storage gets real ones, which join the others where they meet.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.to and args[1:] == (META,) and not args[0].is_floating_point():
            return args[0]
        if kwargs.get("device") == META:
            made = func(*args, **{**kwargs, "device": "cpu"})
            return made.to(META) if made.is_floating_point() else made
        places = {leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        if META in places and len(places) > 1:
            args, kwargs = tree_map(lambda leaf: leaf.to(META) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
        return func(*args, **kwargs)


@pytest.fixture
def full(golden: Path, monkeypatch: pytest.MonkeyPatch) -> FlowModel:
    """What the three stages train, with the released sizes."""
    configs = json.loads((golden / "keymap" / "configs.json").read_text())
    vlm = {"model_type": "qwen3_vl", **configs["qwen3_vl_4b"]}
    monkeypatch.setattr(Conditioner, "from_dir", lambda path, queries: Conditioner(vlm, len(queries)))
    released: Any = SimpleNamespace(
        path=Path(),
        part=lambda name: SimpleNamespace(load=lambda names: {"metaquery": torch.empty(QUERIES, HIDDEN)}),
        transformer=TransformerConfig.from_json(configs["transformer"]),
        connector=ConnectorConfig(num_queries=QUERIES, **configs["connector"]),
    )
    with META:
        return FlowModel(released, queries=True, boundary=True)


def inputs(model: FlowModel) -> FlowInputs:
    """A clip with a picture as its reference, and a picture from words alone."""
    ids = model.conditioner.vision_ids
    seen = [ids.start, *[ids.image] * (volume(VISUAL) // 4), ids.end]
    words = torch.arange(40)
    prompts = [
        ProcessedInput(
            torch.cat((torch.tensor(seen), words)), torch.empty(volume(VISUAL), 3 * 2 * 16 * 16, device=META), (VISUAL,)
        ),
        ProcessedInput(words),
    ]
    return FlowInputs(
        prompts=collate(prompts, ids, queries=model.query_count),
        targets=torch.empty(volume(CLIP) + volume(PICTURE), PATCH, device=META),
        references=torch.empty(volume(PICTURE), PATCH, device=META),
        target_grids=(CLIP, PICTURE),
        reference_grids=((PICTURE,), ()),
        times=torch.empty(2, device=META),
    )


@pytest.mark.slow
def test_a_step_at_full_size(full: FlowModel, golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = json.loads((golden / "keymap" / "vino_ckpt.json").read_text())
    counts = {part: sum(t.numel() for t in tensors.values()) for part, tensors in full.parts().items()}
    assert counts == {"transformer": TRANSFORMER, "connector": CONNECTORS + QUERIES * HIDDEN}
    assert sum(counts.values()) == sum(map(math.prod, released.values()))

    given = inputs(full)
    with Shapes():
        velocity = full(given.to(META))
        loss = (velocity - given.targets).square().mean()
    assert (velocity.shape, velocity.dtype, velocity.is_meta) == (given.targets.shape, torch.float32, True)
    torch.autograd.backward(loss)
    idle = {name for name, parameter in trained(full).items() if parameter.grad is None}
    # In the checkpoint and never run, which is why the objective freezes it.
    unused = "transformer.time_text_embed.text_embedder."
    assert idle == {name for name, _ in full.named_parameters() if name.startswith(unused)}
    full.get_submodule(unused[:-1]).requires_grad_(False)
    learnt = trained(full)
    assert all(p.grad is not None and p.grad.shape == p.shape for p in learnt.values())
    assert {name.split(".")[0] for name in learnt} == {"queries", "connectors", "transformer"}

    # Its fused form is the same update for devices with storage.
    plain = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, **given: plain(groups, **{**given, "fused": False}))
    optimiser = make_optimiser(OptimiserStage(lr=1e-5), full, learnt)
    assert gradient_norm(list(learnt.values())).shape == ()
    optimiser.step()
    assert all(optimiser.moments(p)["exp_avg_sq"].shape == p.shape for p in learnt.values())


def test_an_imported_release_trains_and_its_export_draws(tiny_model: ModelDir, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    table = {
        "source": "world",
        "tasks": {"t2i": 1, "ti2i": 1, "t2v": 1, "tv2v": 1},
        "buckets": [
            {"size": [48, 32], "frames": 1, "share": 1},
            {"size": [32, 48], "frames": 5, "share": 1},
        ],
        "budget": 40,
        "overhead": 8,
        "examples": 5,
    }
    objective = FlowObjective(tiny_model, WorldData(table, 5), {"drop_prompt": 0.2}, 5)
    learnt = list(trained(objective.model).values())
    optimiser = torch.optim.AdamW(learnt, lr=2e-3)
    losses, frames = [], set[int]()
    for index in range(6):
        batch = objective.batch(index % 3)
        frames.update(sample.pixels[0].shape[0] for sample in batch.samples if sample.pixels)
        loss = objective.loss(batch, index % 3)
        losses.append(loss.value.item())
        optimiser.zero_grad()
        torch.autograd.backward(loss.value)
        assert all(parameter.grad is not None for parameter in learnt)
        optimiser.step()
    assert frames == {1, 5}
    assert sum(losses[3:]) < sum(losses[:3])

    objective.export(tmp_path / "out")
    pictures = []
    for path in (tiny_model.path, tmp_path / "out"):
        with Runtime.open(path, recipe="eager", store=tmp_path / "none") as runtime:
            pictures.append(runtime.generate(ask(frames=5, size=(32, 16))).frames)
    assert pictures[1].shape == (5, 16, 32, 3)
    assert not np.array_equal(pictures[0], pictures[1])
