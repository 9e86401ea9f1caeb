"""Latents on disk: the same bits come back, for the same pixels, autoencoder and precision alone."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vino_rt.errors import OutputError
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.preset import init_preset
from vino_rt.train.flow import FlowObjective
from vino_rt.train.latents import NAME, LatentStore
from vino_rt.train.stage import load_stage
from vino_rt.train.world_data import WorldData

CLIP = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)
PATCHES = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


def test_what_is_put_comes_back_to_the_bit_in_another_process_too(tmp_path: Path) -> None:
    LatentStore(tmp_path / "new" / "folder", "a").put(CLIP, "float32", PATCHES, (1, 2, 3))
    found = LatentStore(tmp_path / "new" / "folder", "a").get(CLIP, "float32")
    assert found is not None
    assert torch.equal(found[0], PATCHES)
    assert found[1] == (1, 2, 3)


def test_other_pixels_shapes_precisions_and_autoencoders_are_others(tmp_path: Path) -> None:
    store = LatentStore(tmp_path, "a")
    store.put(CLIP, "float32", PATCHES, (1, 2, 3))
    assert store.get(CLIP + 1, "float32") is None
    assert store.get(CLIP.reshape(2, 6, 4, 3), "float32") is None
    assert store.get(CLIP, "bfloat16") is None
    assert LatentStore(tmp_path, "b").get(CLIP, "float32") is None


def test_a_file_that_is_no_store_is_named(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"not a database at all" * 100)
    with pytest.raises(OutputError, match=f"{NAME}.*remove it"):
        LatentStore(tmp_path, "a")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="choose another folder"):
        LatentStore(tmp_path / "file" / "cache", "a")


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    store = LatentStore(tmp_path, "a")
    store._file.execute("pragma max_page_count = 1")
    with pytest.raises(OutputError, match="free its disk"):
        store.put(CLIP, "float32", torch.zeros(6, 100_000), (1, 2, 3))
    assert store.get(CLIP, "float32") is None


def test_training_with_a_cache_gives_the_same_losses_and_encodes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = init_preset("mini", tmp_path / "mini")
    table = {"tasks": {"i2v": 1.0}, "buckets": [{"size": [32, 32], "frames": 5, "share": 1.0}], "budget": 60}

    def loss(cache: Path | None) -> float:
        objective = FlowObjective(model, WorldData(table, 1), {}, 1, cache=cache)
        with torch.no_grad():
            return objective.loss(objective.batch(0), 0).value.item()

    expected = loss(None)
    assert loss(tmp_path / "cache") == expected
    rows = sqlite3.connect(tmp_path / "cache" / NAME).execute("select count(*) from latents").fetchone()[0]
    assert rows > 1
    monkeypatch.setattr("vino_rt.train.flow_batch.encode_video", lambda *_: pytest.fail("encoded a second time"))
    assert loss(tmp_path / "cache") == expected


def test_only_the_autoencoder_of_a_model_matters(tmp_path: Path) -> None:
    one, other = (init_preset("mini", tmp_path / str(seed), seed=seed) for seed in (0, 1))
    mixed = ModelDir.open(one.path)
    assert mixed.part_hash("vae") == one.part_hash("vae") != other.part_hash("vae")
    files = {name: (other if name.startswith("vlm/") else one).files[name] for name in one.files}
    assert replace(one, files=files).part_hash("vae") == one.part_hash("vae")


def test_a_stage_names_its_cache_relative_to_itself_and_may_change_it(tmp_path: Path) -> None:
    text = 'objective = "flow"\nmodel = "m"\nout = "o"\nseed = 1\nsteps = 1\n{}[optimiser]\nlr = 1e-3\n'
    stages = []
    for number, line in enumerate(("", 'cache = "c"\n')):
        (tmp_path / f"{number}.toml").write_text(text.format(line))
        stages.append(load_stage(tmp_path / f"{number}.toml"))
    assert [stage.cache for stage in stages] == [None, tmp_path / "c"]
    assert stages[0].fingerprint(1) == stages[1].fingerprint(1)
