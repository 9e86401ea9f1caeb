"""Weights that stay in host memory: the same bits, nothing left on the device, and what a recipe may not offload."""

import gc
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vino_rt.backends.base import Engine, Kind
from vino_rt.backends.eager import EagerBackend
from vino_rt.backends.offload import OffloadedEngine, open_offloaded
from vino_rt.backends.recipe import Recipe, load_recipe
from vino_rt.backends.store import Store
from vino_rt.engines import checked_kinds, kinds_of, layer_weights, open_engines
from vino_rt.errors import EngineError
from vino_rt.model_dir import ModelDir
from vino_rt.request import Request
from vino_rt.runtime import Runtime

META = torch.device("meta")


class Watched(EagerBackend):
    """Eager, but remembers the engines it opened without keeping them."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.opened: list[weakref.ref[Engine]] = []

    def open(self, kind: Kind, artefact: Path | None, weights: Sequence[Mapping[str, Tensor]]) -> list[Engine]:
        assert all(tensor.device == self.device for layer in weights for tensor in layer.values())
        engines = super().open(kind, artefact, weights)
        self.opened += map(weakref.ref, engines)
        return engines


def offloading(*kinds: str, **fields: bool) -> Recipe:
    """The recipe `eager` with offloaded kinds, which no file may ask for on a CPU."""
    return replace(load_recipe("eager"), name="mine", offload=kinds, **fields)  # type: ignore[arg-type]


def test_weights_visit_the_device_and_leave_nothing_there(tiny_model: ModelDir) -> None:
    kind = kinds_of(tiny_model)["modulation"]
    weights = [layer_weights(tiny_model, kind, layer) for layer in range(kind.layers)]
    backend = Watched(META)
    engines = open_offloaded(backend, kind, weights)
    assert not backend.opened, "nothing goes to the device before it runs"
    example = kind.examples()[0]
    for _ in range(2):
        outputs = engines[0].run(**engines[0].fit(**example))
        assert all(output.device == META for output in outputs)
    gc.collect()
    assert [found() for found in backend.opened] == [None, None]
    assert all(tensor.device.type == "cpu" for layer in weights for tensor in layer.values())


def test_an_offloaded_kind_computes_the_same_bits(tiny_model: ModelDir, tmp_path: Path) -> None:
    request = Request(prompt="a red square", size=(64, 32), frames=5, steps=3, seed=7)
    frames = []
    for chosen in (load_recipe("eager"), offloading("modulation", "vlm_layer", "connector")):
        engines = open_engines(tiny_model, chosen, Store(tmp_path), 1)
        found = {name for name, layers in engines.items() if any(isinstance(e, OffloadedEngine) for e in layers)}
        assert found == set(chosen.offload)
        with Runtime(tiny_model, chosen, engines) as runtime:
            frames.append(runtime.generate(request).frames)
    assert (frames[0] == frames[1]).all()


def test_a_recorded_step_cannot_run_what_moves(tiny_model: ModelDir) -> None:
    with pytest.raises(EngineError, match=r"'mine' offloads \['dual_block', 'head'\].*cuda_graphs = false"):
        checked_kinds(tiny_model, offloading("head", "modulation", "dual_block"))
    assert checked_kinds(tiny_model, offloading("head", cuda_graphs=False))


def test_a_kind_that_the_model_has_not(tiny_model: ModelDir) -> None:
    with pytest.raises(EngineError, match=r"engine kinds \['modulations'\]"):
        checked_kinds(tiny_model, offloading("modulations"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('like = "cpu"\noffload = ["modulation"]\n', "offload is for GPUs; on device 'cpu'"),
        ('like = "cuda"\noffload = "modulation"\n', "offload is 'modulation', expected an array of texts"),
        ('like = "cuda"\noffload = [1]\n', r"offload is \[1\], expected an array of texts"),
        (
            'like = "aotinductor-cuda"\noffload = ["connector"]\n',
            "kind 'connector' of backend 'aotinductor', .* those of 'eager', 'triton' need not",
        ),
    ],
)
def test_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(EngineError, match=message):
        load_recipe(path)
