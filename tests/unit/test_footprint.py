"""Memory told beforehand: arithmetic of the released sizes, weights once, processes that stay below what was told."""

import json
import math
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vino_rt.footprint as footprint
import vino_rt.footprint_measured as measured
from tests.unit.small_model import small_preset
from vino_rt.backends.recipe import load_recipe
from vino_rt.backends.store import Store
from vino_rt.bucket import Bucket, Shape
from vino_rt.cli import main
from vino_rt.decode import decode_memory
from vino_rt.engines import checked_kinds, open_engines
from vino_rt.errors import EngineError, OutOfMemory
from vino_rt.footprint import predict
from vino_rt.memory import CPU, STATUS, Gauge, check_room, free_bytes, give_back
from vino_rt.model_dir import REQUIRED, ModelDir
from vino_rt.model_draft import new_model_dir
from vino_rt.model_settings import ModelSettings
from vino_rt.models.vino.checkpoint import RELEASE_DEFAULTS
from vino_rt.models.vino.config import TransformerConfig
from vino_rt.models.vino.connector import ConnectorConfig
from vino_rt.models.vino.preset import write_preset
from vino_rt.models.vino.tables import connector_table, optional_names, transformer_table, vae_table, vlm_table
from vino_rt.models.vino.vae_config import VaeConfig
from vino_rt.tiling import Tiling
from vino_rt.weight_writer import FileRecord

GB = 10**9
TRANSFORMER, CONNECTOR, VAE, VLM = 12_821_012_544, 178_954_240, 246_478_803, 4_437_815_808
"""Parameters of the release, the VLM without its head, which repeats its embedding."""
FACTOR = 3
"""How far below the prediction a process of some hundred megabytes may stay; much is the allowance for libraries."""


@pytest.fixture(scope="module")
def released(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelDir:
    """A model directory of the released sizes whose files of weights are headers and holes."""
    configs = json.loads((golden / "keymap" / "configs.json").read_text())
    configs["vlm"] = {"model_type": "qwen3_vl", **configs.pop("qwen3_vl_4b")}
    configs["connector"] |= {"num_queries": configs.pop("metaquery")}
    tables = {
        "transformer": transformer_table(TransformerConfig.from_json(configs["transformer"])),
        "connector": connector_table(ConnectorConfig.from_json(configs["connector"])),
        "vae": vae_table(VaeConfig.from_json(configs["vae"])),
        "vlm": {n: s for n, s in vlm_table(configs["vlm"]).items() if n not in optional_names(configs["vlm"])},
    }
    out = tmp_path_factory.mktemp("released") / "vino"
    settings = ModelSettings.from_json(json.loads(RELEASE_DEFAULTS.read_text()), "release")
    with new_model_dir(out, settings) as draft:
        for part, table in tables.items():
            draft.write_json(part, "config.json", configs[part])
            size = write_holes(draft.part(part) / "model.safetensors", table)
            draft.add(part, {"model.safetensors": FileRecord("0" * 64, size)})
        for name in REQUIRED:
            if name not in draft.files:
                draft.write_json(*name.split("/"), {})  # type: ignore[call-arg]
    return ModelDir.open(out)


def write_holes(path: Path, table: Mapping[str, tuple[int, ...]]) -> int:
    """A file of safetensors in bfloat16 that takes no room on the disk; returns its size."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in table.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with path.open("r+b") as file:
        file.truncate(8 + len(text) + end)
    return 8 + len(text) + end


def test_the_released_sizes_on_a_gpu(released: ModelDir) -> None:
    clips = [(frames, 480, 848) for frames in (1, 25, 49, 85)]
    buckets = tuple(Bucket(frames=f, height=h, width=w, references=0, text_tokens=640, branches=3) for f, h, w in clips)
    told = predict(released, replace(load_recipe("cuda"), buckets=buckets), kept=0)
    # The AdaLN Linears and the timestep embedder stay in host memory.
    away = told.visiting
    assert 2 * 3.4e9 < away < 2 * 3.5e9
    kept = {"transformer": 2 * TRANSFORMER - away, "connector": 2 * CONNECTOR, "vae": 2 * VAE, "vlm": 2 * VLM}
    assert told.weights == kept
    everything = predict(released, replace(load_recipe("cuda"), offload=()), kept=0)
    assert (everything.weights["transformer"], everything.visiting) == (2 * TRANSFORMER, 0)
    # In float32, in bfloat16, and copied for recorded steps.
    assert told.tables == 50 * (12 * 20 + 3 * 40 + 3) * 3072 * (4 + 2 + 4 * 2)
    assert [size.clip for size in told.sizes] == clips
    assert [size.image_rows for size in told.sizes] == [3 * 30 * 53 * latents for latents in (1, 7, 13, 22)]
    for size in told.sizes:
        # Ten rows as wide as a block and two as its MLP in bfloat16, a tenth for what is bound, twice for the graph.
        activations = 2 * 2 * (size.image_rows + 3 * 640) * (10 * 3072 + 2 * 4 * 3072)
        assert 1.05 * activations < size.step < 1.3 * activations
    assert [round(size.decode / 2**30) for size in told.sizes][0::3] == [5, 31]
    assert all(size.decode_tiled < 6 * 2**30 for size in told.sizes)
    # An 85-frame clip fits a GPU of 80 GB in tiles, and not without.
    assert [round(told.peak(size, tiled=True) / GB) for size in told.sizes][0::3] == [36, 63]
    assert told.peak(told.sizes[-1]) > 85 * GB


def test_inspect_shows_the_released_sizes(released: ModelDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--model", str(released.path), "--recipe", "cuda", "--json"]) == 0
    events = {event["event"]: event for event in map(json.loads, capsys.readouterr().out.splitlines())}
    told = events["memory"]
    assert told["weights"]["transformer"] == 2 * TRANSFORMER - told["visiting"]
    assert [size["clip"] for size in told["sizes"]] == [[1, 480, 848], [85, 480, 848]]
    assert [size["image_rows"] for size in told["sizes"]] == [2 * 1590, 2 * 34980]
    assert all(size["measured"] is None for size in told["sizes"])
    assert main(["inspect", "--model", str(released.path), "--recipe", "cuda"]) == 0
    shown = capsys.readouterr().out
    assert "transformer 18.7 GB" in shown
    assert "on the GPU only while they run: modulation, 6.9 GB at a time" in shown


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ModelDir:
    return write_preset(small_preset(), tmp_path_factory.mktemp("small") / "model", seed=3)


@pytest.mark.parametrize("mixed", [False, True])
def test_weights_are_what_engines_hold(small: ModelDir, tmp_path: Path, mixed: bool) -> None:
    recipe = load_recipe("eager")
    if mixed:
        recipe = replace(recipe, precision="bfloat16", precisions={"modulation": "float32", "vae_decode": "float32"})
    held: dict[int, int] = {}
    kinds = checked_kinds(small, recipe)
    for name, layers in open_engines(small, recipe, Store(tmp_path), None).items():
        for engine in layers if kinds[name].part != "vlm" else ():
            module: torch.nn.Module = engine._module  # type: ignore[attr-defined]
            held |= {tensor.data_ptr(): tensor.nbytes for tensor in module.state_dict().values()}
    told = predict(small, recipe, kept=0).weights
    engines = sum(size for part, size in told.items() if part != "vlm")
    # The queries and an embedder that is never used are no engine's; of the VLM its last layer is nobody's.
    assert sum(held.values()) <= engines < 1.1 * sum(held.values())


def test_kinds_to_come_count_without_an_edit(small: ModelDir, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("cpu-bf16")
    kinds = {name: kind for name, kind in checked_kinds(small, recipe).items() if kind.part != "vlm"}
    tower = replace(kinds["head"].at("float32"), part="vlm")
    stored = small.part("vlm")
    found = []
    for known in (kinds, {**kinds, "tower": tower}, {**kinds, "tower": tower, "tail": tower.at("bfloat16")}):
        monkeypatch.setattr(footprint, "checked_kinds", lambda *_, known=known: known)
        found.append(predict(small, recipe, kept=0).weights["vlm"])
    values = sum(math.prod(stored.shape(name)) for name in stored.names())
    assert found[:2] == [2 * values, 4 * values]
    # Two precisions: by the names of the tensors, and those of a head are not there.
    assert found[2] == found[0]


def test_int8_matrices_take_a_byte_beside_what_they_are_rounded_from(small: ModelDir) -> None:
    plain, rounded = (predict(small, load_recipe(name), kept=0).weights["transformer"] for name in ("cpu", "cpu-int8"))
    more = 0
    for name, kind in checked_kinds(small, load_recipe("cpu-int8")).items():
        if kind.precision == "int8":
            assert name in ("dual_block", "single_block")
            with torch.device("meta"):
                shapes = [t.shape for t in kind.build().state_dict().values() if t.dim() == 2]
            more += kind.layers * sum(math.prod(shape) + 4 * shape[0] for shape in shapes)
    assert rounded - plain == more > 0


def test_branches_that_run_one_by_one_need_less_at_once(small: ModelDir) -> None:
    recipe = load_recipe("eager")
    together, apart = (predict(small, replace(recipe, pack_rows=rows), kept=0).sizes[-1] for rows in (None, 1))
    assert (together.image_rows, together.text_rows) == (2 * apart.image_rows, 2 * apart.text_rows)
    assert together.step == 2 * apart.step
    padded = predict(small, replace(recipe, pad_text=(640,)), kept=0).sizes[-1]
    assert together.text_rows < padded.text_rows == -(-together.text_rows // 1280) * 1280


def test_plans_compute_in_one_block_of_the_largest_size(small: ModelDir) -> None:
    sides = (32, 64, 128)
    buckets = tuple(Bucket(frames=1, height=s, width=s, references=0, text_tokens=64) for s in sides)
    recipe = replace(load_recipe("tensorrt"), buckets=buckets)
    sizes = predict(small, recipe, kept=0).sizes
    (alone,) = predict(small, replace(recipe, buckets=buckets[-1:]), kept=0).sizes
    assert sizes[-1] == alone
    block = footprint._block_bytes(small, recipe, checked_kinds(small, recipe), buckets[-1])
    assert block == alone_decode(small, buckets[-1])
    # A small size takes the block of the large one, and recording it does not take the block again.
    assert all(block < size.step < 1.5 * block for size in sizes)
    # Tiles are computed in the block as well.
    assert all(size.decode == size.decode_tiled < alone_decode(small, buckets[-1]) for size in sizes)
    plain = predict(small, replace(recipe, backend="eager", kinds={}), kept=0).sizes
    assert plain[0].step < sizes[0].step


def alone_decode(model: ModelDir, bucket: Bucket) -> int:
    """Of a whole frame, on PyTorch."""
    return decode_memory(*bucket.clip, model.vae, Tiling())


# A process that imports everything, opens a model and runs it.
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_wider_model_stays_below_what_was_told(tmp_path: Path) -> None:
    data = json.loads((Path(footprint.__file__).parent / "models/vino/presets/mini.json").read_text())
    data["transformer"] |= {"num_attention_heads": 8, "num_single_layers": 4}
    data["connector"] |= {"hy_dim": 512}
    data["settings"] |= {"area": 128 * 128, "default_size": [128, 128], "default_frames": 5}
    model, recipe, store = write_preset(data, tmp_path / "wide", seed=1), load_recipe("eager"), Store(tmp_path / "s")
    told = predict(model, recipe, kept=0)
    found = measured.measure(model, "eager", store, [size.clip for size in told.sizes])
    assert list(found) == [(1, 128, 128), (5, 128, 128)]
    for size in told.sizes:
        assert sum(told.weights.values()) < found[size.clip] <= told.peak(size) < FACTOR * found[size.clip]
    measured.keep(model, recipe, store, found)
    assert measured.kept(model, recipe, store) == found
    assert not measured.kept(model, load_recipe("cpu"), store)
    (path,) = (store.path / "memory").iterdir()
    path.write_text("{}")
    with pytest.raises(EngineError, match="delete it and build again"):
        measured.kept(model, recipe, store)


def test_a_bucket_is_measured_and_kept_by_itself(
    small: ModelDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = Bucket(frames=1, height=64, width=64, references=9, text_tokens=300, branches=3)
    path, store = tmp_path / "one.toml", Store(tmp_path / "store")
    table = {
        name: getattr(bucket, name) for name in ("frames", "height", "width", "references", "text_tokens", "branches")
    }
    path.write_text('like = "eager"\n[[bucket]]\n' + "".join(f"{name} = {value}\n" for name, value in table.items()))
    recipe = load_recipe(path)
    assert recipe.buckets == (bucket,)
    assert measured.main([str(small.path), str(path), str(store.path), "1x64x64x9x300x3"]) == 0
    found: dict[Shape, int] = {bucket: int(capsys.readouterr().out)}
    measured.keep(small, recipe, store, found)
    assert measured.kept(small, recipe, store) == found


def test_engines_that_do_not_run_are_named(small: ModelDir, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"measure their memory failed with code 1: .*no engine for kind"):
        measured.measure(small, "cpu", Store(tmp_path), [(1, 64, 64)])


def test_sizes_that_were_not_reached_stay_predicted(small: ModelDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(command: list[str], **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, 1.0, output=b"5000\n60")

    monkeypatch.setattr(subprocess, "run", late)
    clips = [(1, 64, 64), (5, 64, 64)]
    assert measured.measure(small, "eager", Store(Path("s")), clips) == {(1, 64, 64): 5000}


def test_a_gauge_sees_what_is_taken() -> None:
    gauge = Gauge(CPU)
    before = gauge.peak()
    block = torch.ones(50_000_000, dtype=torch.uint8)
    assert gauge.peak() >= len(block) / 2 + min(before, 0)
    del block
    assert gauge.peak() >= 25_000_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries give back by themselves, or cannot")
def test_holes_between_what_stays_are_given_back() -> None:
    blocks = [torch.ones(64_000, dtype=torch.uint8) for _ in range(2000)]
    kept_blocks = blocks[::2]
    with_holes = resident()
    del blocks
    give_back()
    assert with_holes - resident() > 30_000_000
    assert all(bool((block == 1).all()) for block in kept_blocks)


def resident() -> int:
    """Bytes of this process."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS:"))
    return 1024 * int(line.split()[1])


def test_a_system_that_does_not_tell_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vino_rt.memory.STATUS", tmp_path / "none")
    with pytest.raises(EngineError, match="does not tell VmRSS"):
        Gauge(CPU)


def test_room_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vino_rt.memory.available_bytes", lambda: 2**30)
    assert free_bytes(CPU) == 2**30
    with pytest.raises(OutOfMemory, match=r"it needs up to 2.0 GiB and 1.0 GiB are free; wait"):
        check_room(2**31, "it", "wait")
