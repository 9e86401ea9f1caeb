"""A tiny model of every part, imported from the golden release, and its engines, each made once; the golden VLM."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import GOLDEN
from tests.unit.models import AREA, SIZE, Built, Get
from vino_rt.backends.recipe import load_recipe
from vino_rt.backends.store import Store
from vino_rt.build import BuildProgress, build
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.checkpoint import import_release
from vino_rt.models.vino.conditioner import Conditioner
from vino_rt.runtime import Runtime


@pytest.fixture(scope="session")
def tiny_model(tiny_release: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelDir:
    """The golden release as a model directory of ours."""
    out = tmp_path_factory.mktemp("models") / "tiny"
    hunyuan, qwen = tiny_release / "HunyuanVideo-tiny", tiny_release / "Qwen3-VL-tiny"
    return import_release(tiny_release / "vino.safetensors", hunyuan, qwen, out, area=AREA, default_size=SIZE)


@pytest.fixture(scope="session")
def built(tiny_model: ModelDir, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The tiny model's engines of the recipe `cpu`. Tests read this store; those that change one copy it."""
    torch.set_num_threads(1)
    store, recipe = Store(tmp_path_factory.mktemp("engines") / "store"), load_recipe("cpu")
    progress: list[BuildProgress] = []
    manifests = build(tiny_model, recipe, store, on_progress=progress.append)
    return Built(store, recipe, tuple(manifests), tuple(progress))


@pytest.fixture(scope="session")
def compiled(tiny_model: ModelDir, built: Built, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The engines of the recipe `aotinductor`, beside a copy of those of `cpu`, some of which it uses too."""
    store, recipe = Store(tmp_path_factory.mktemp("packages") / "store"), load_recipe("aotinductor")
    shutil.copytree(built.store.path, store.path)
    progress: list[BuildProgress] = []
    manifests = build(tiny_model, recipe, store, on_progress=progress.append)
    return Built(store, recipe, tuple(manifests), tuple(progress))


@pytest.fixture(scope="session")
def aotinductor(tiny_model: ModelDir, compiled: Built) -> Iterator[Runtime]:
    """The tiny model on the recipe `aotinductor`."""
    with Runtime.open(tiny_model.path, recipe="aotinductor", store=compiled.store.path, threads=1) as runtime:
        yield runtime


@pytest.fixture(scope="session")
def cpu(tiny_model: ModelDir, built: Built) -> Iterator[Runtime]:
    """The tiny model on the recipe `cpu`."""
    with Runtime.open(tiny_model.path, recipe="cpu", store=built.store.path, threads=1) as runtime:
        yield runtime


@pytest.fixture(scope="session")
def eager(tiny_model: ModelDir, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """The tiny model on the recipe `eager`, which needs no store."""
    with Runtime.open(tiny_model.path, recipe="eager", store=tmp_path_factory.mktemp("none")) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def vlm() -> Conditioner:
    """The golden vision-language model with its queries; it looks at small pictures, so that little is computed."""
    checkpoint = GOLDEN / "e2e_ckpt"
    queries = load_file(checkpoint / "vino.safetensors")["mm_encoder.metaquery"]
    conditioner = Conditioner.from_dir(checkpoint / "Qwen3-VL-tiny", queries)
    assert conditioner.processor is not None
    config = conditioner.processor.config
    small: Any = {"min_pixels": 1024, "max_pixels": 9216, "fetch_min_pixels": 3136, "fetch_max_pixels": 9408}
    conditioner.processor.config = replace(
        config, image=replace(config.image, **small), video=replace(config.video, **small)
    )
    return conditioner


@pytest.fixture
def get(request: pytest.FixtureRequest) -> Get:
    """The runtime of a recipe by name; opened when first asked for."""

    def find(recipe: str) -> Runtime:
        runtime: Runtime = request.getfixturevalue(recipe)
        return runtime

    return find
