"""The file of measured tiles: read strictly, asked before the reasoned tables, by launches and ahead of time alike."""

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pytest
import torch

from vino_kernels import tiles
from vino_kernels.ahead.declare import variants
from vino_kernels.ahead.shapes import VINO
from vino_kernels.boundary_attention import configs as attention
from vino_kernels.gated_residual import configs as residual
from vino_kernels.norm_modulate import configs as norm
from vino_kernels.qk_norm_rope import configs as rope

BF16, HOPPER = torch.bfloat16, (9, 0)
PLAIN: dict[str, Any] = {"own": 64, "other": 32, "warps": 4, "stages": 5, "specialised": False}
TILES: dict[str, tuple[int, dict[str, Any]]] = {
    "boundary_attention.forward": (128, PLAIN),
    "boundary_attention.tma": (128, {**PLAIN, "specialised": True}),
    "qk_norm_rope": (128, {"heads": 2, "warps": 1}),
    "norm_modulate": (3072, {"rows": 4, "columns": 512, "warps": 2}),
    "norm_modulate.fp8": (3072, {"rows": 2, "columns": 512, "warps": 2}),
    "gated_residual": (3072, {"rows": 1, "columns": 2048, "warps": 2}),
}


def entry(operation: str, changes: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    size, tile = TILES[operation]
    found: dict[str, Any] = {
        "operation": operation, "capability": "9.0", "dtype": "bfloat16", "size": size, "length": "long", "tile": tile,
        "microseconds": 7.5, "gpu": "Some GPU", "versions": {"torch": "2.13.0"}, "commit": "abc",
    }  # fmt: skip
    return {**found, **changes}


def text(*entries: dict[str, Any]) -> str:
    return json.dumps({"format": 1, "entries": entries})


GATED = entry("gated_residual")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation with one entry for each operation."""
    found = tiles.read(text(*map(entry, TILES)), "test")
    monkeypatch.setattr(tiles, "packaged", lambda: found)


def test_what_is_packaged_can_be_read() -> None:
    tiles.packaged()
    assert tiles.render(tiles.read(tiles.PATH.read_text(), "file")) == tiles.render(tiles.packaged())


def test_a_file_survives_writing() -> None:
    found = tiles.read(text(*map(entry, TILES)), "test")
    assert tiles.read(tiles.render(found), "test") == found


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"operation": "magic"}, "entry 1: operation is 'magic'; legal are boundary_attention.forward"),
        ({"dtype": "float64"}, "entry 1: dtype is 'float64'; legal are"),
        ({"length": "middle"}, "entry 1: length is 'middle'; legal are short, long"),
        ({"capability": "90"}, "entry 1: capability is '90'; it must be two numbers such as 9.0"),
        ({"size": "128"}, "entry 1: size is '128', expected int"),
        ({"microseconds": 0}, "entry 1: microseconds is 0"),
        ({"microseconds": float("nan")}, "entry 1: microseconds is nan"),
        ({"versions": {"torch": 2}}, "entry 1: versions is"),
        ({"tile": {"heads": 3, "warps": 4}}, "entry 1: tile: heads is 3; no kernel takes that"),
        ({"tile": {"heads": True, "warps": 4}}, "entry 1: tile: heads is True"),
        ({"tile": {"heads": 4}}, r"entry 1: tile: unknown fields \[\], missing fields \['warps'\]"),
        ({"tile": None}, "entry 1: tile is NoneType"),
        ({"more": 1}, r"entry 1: unknown fields \['more'\]"),
        (GATED, "entry 1: given twice"),
    ],
)
def test_entries_that_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"file: {told}"):
        tiles.read(text(entry("gated_residual"), entry("qk_norm_rope", changes)), "file")


@pytest.mark.parametrize("broken", ["{", "[]", '{"format": 2, "entries": []}', '{"format": 1, "entries": {}}'])
def test_files_that_are_none(broken: str) -> None:
    with pytest.raises(ValueError, match=r"^file"):
        tiles.read(broken, "file")


@pytest.mark.usefixtures("measured")
def test_launches_take_what_was_measured() -> None:
    assert attention.tiles(128, BF16, 35_000, 9).forward == attention.Tile(**PLAIN)
    assert attention.tma_tile(128, BF16, 35_000, 9) == attention.Tile(**TILES["boundary_attention.tma"][1])
    assert rope.choose(24, 128, 35_000, BF16, HOPPER) == rope.Config(heads=2, warps=1)
    assert norm.choose(3072, rows=35_000, dtype=BF16, capability=HOPPER) == norm.Config(4, 512, 2)
    assert norm.choose(3072, quantise=True, rows=35_000, dtype=BF16, capability=HOPPER) == norm.Config(2, 512, 2)
    assert residual.choose(3072, 35_000, BF16, HOPPER) == residual.Config(1, 2048, 2)


OTHERS: dict[str, Callable[[], tuple[object, object]]] = {
    "length": lambda: (attention.tiles(128, BF16, 1600, 9), attention.tiles(128, BF16, 1600, 9, 9)),
    "size": lambda: (rope.choose(24, 64, 35_000, BF16, HOPPER), rope.choose(24, 64)),
    "dtype": lambda: (residual.choose(3072, 35_000, torch.float16, HOPPER), residual.choose(3072)),
    "capability": lambda: (rope.choose(24, 128, 35_000, BF16, (9, 1)), rope.choose(24, 128)),
    "no GPU": lambda: (norm.choose(3072, rows=35_000), norm.TABLE[4096]),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.usefixtures("measured")
def test_other_classes_have_the_reasoned_table(name: str) -> None:
    chosen, reasoned = OTHERS[name]()
    assert chosen == reasoned


@pytest.mark.usefixtures("measured")
def test_kernels_built_ahead_of_time_have_the_same_tiles() -> None:
    found = {variant.name: variant for variant in variants([VINO], 90)}
    long = found["boundary_attention-forward-bf16-128-long-16x16"]
    assert (long.constants["OWN"], long.constants["OTHER"], long.warps, long.stages) == (64, 32, 4, 5)
    turned = next(variant for variant in found.values() if variant.operation == "qk_norm_rope")
    assert (turned.constants["BLOCK_HEADS"], turned.warps) == (2, 1)
    normed, quantised = found["norm_modulate-bf16-3072"], found["norm_modulate-bf16-3072-fp8"]
    assert (normed.constants["BLOCK_ROWS"], normed.constants["BLOCK"], normed.warps) == (4, 512, 2)
    assert quantised.constants["BLOCK_ROWS"] == 2
    assert found["gated_residual-bf16-3072"].constants["BLOCK_COLUMNS"] == 2048
    assert all(v.constants.get("BLOCK_COLUMNS") != 2048 for v in variants([VINO], 80))


def test_a_symbol_for_the_rows_is_a_long_sequence() -> None:
    assert [tiles.length_of(rows) for rows in (1, 4095, 4096, object(), None)] == ["short"] * 2 + ["long"] * 3


@pytest.mark.parametrize("channels", [64, 128])
def test_candidates_begin_with_the_table(channels: int) -> None:
    for major in (8, 9, 10, 12):
        found = attention.candidates("forward", channels, BF16, major)
        assert found[0] == attention.tiles(channels, BF16, 1, major).forward
        assert len(set(found)) == len(found) > 4
        assert not any(tile.specialised for tile in found)
    assert any(tile.specialised for tile in attention.candidates("tma", channels, BF16, 9))
