"""What is declared of a kernel: rules of sizes, models' shapes, names, and the way to JSON and back."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from vino_kernels.ahead.declare import variants
from vino_kernels.ahead.resources import SHARED
from vino_kernels.ahead.shapes import MINI, PRESETS, VINO, Shapes, read_config
from vino_kernels.ahead.variant import Argument, Variant, variant_from_json, variant_to_json
from vino_kernels.grid import Rule, evaluate, from_json, grid

OPERATIONS = {"qk_norm_rope", "norm_modulate", "gated_residual", "guide_and_step", "boundary_attention"}
TINY = Path(__file__).parents[1] / "golden/vino/e2e_ckpt/HunyuanVideo-tiny/transformer/config.json"


def test_rules_count_as_the_words_say() -> None:
    dice = random.Random(1)
    rule: Rule = ("add", ("ceil_div", "rows", 8), ("multiply", ("floor_div", "rows", "own"), 3))
    for _ in range(100):
        rows, own = dice.randrange(10**6), dice.randrange(1, 300)
        expected = math.ceil(rows / 8) + rows // own * 3
        assert evaluate(rule, {"rows": rows, "own": own}) == expected
    assert grid((rule, 7), {"rows": 0, "own": 1}) == (0, 7)


def test_a_name_that_is_not_known() -> None:
    with pytest.raises(ValueError, match="'rows' is not known; known are heads, own"):
        evaluate(("add", "rows", 1), {"own": 1, "heads": 3})


@pytest.mark.parametrize(
    "value", [None, 1.5, True, [], ["add", 1], ["power", 2, 3], ["add", 1, [2]], {"add": 1}, ["add", 1, None]]
)
def test_what_is_no_rule(value: object) -> None:
    with pytest.raises(ValueError, match="is no rule"):
        from_json(value)


@pytest.mark.parametrize("arch", SHARED)
def test_a_variant_survives_json(arch: int) -> None:
    for variant in variants([*PRESETS["vino"], *PRESETS["mini"]], arch):
        assert variant_from_json(json.loads(json.dumps(variant_to_json(variant)))) == variant


@pytest.mark.parametrize("arch", SHARED)
def test_every_operation_is_there_once(arch: int) -> None:
    found = variants([VINO, MINI, VINO], arch)
    assert {variant.operation for variant in found} == OPERATIONS
    assert len({variant.name for variant in found}) == len(found)
    fp8 = [variant for variant in found if variant.name.endswith("fp8")]
    assert len(fp8) == (2 if arch >= 89 else 0)


def test_architectures_differ_in_tiles() -> None:
    tiles = {arch: [v.constants["OTHER"] for v in variants([VINO], arch) if "OTHER" in v.constants] for arch in SHARED}
    assert tiles[80] != tiles[90]
    assert tiles[80] == tiles[120]


def test_two_kernels_of_one_name() -> None:
    near = [Shapes(3, 64, (16, 24, 24), theta) for theta in (256.0, 256.000001)]
    with pytest.raises(ValueError, match="two different kernels would be called qk_norm_rope"):
        variants(near, 90)


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a/b", "a b"])
def test_names_that_are_no_file_names(name: str) -> None:
    with pytest.raises(ValueError, match="a kernel's name is the name of a file"):
        Variant(90, name, "op", "kernel", (), {}, (), 4)


def test_types_that_are_not_packed() -> None:
    with pytest.raises(ValueError, match="argument x has type 'i8': legal are"):
        Argument("x", "i8")


@pytest.mark.parametrize("change", [{"warps": ...}, {"extra": 1}, {"arguments": [{"name": "x"}]}, {"grid": None}])
def test_what_describes_no_kernel(change: dict[str, Any]) -> None:
    given = {**variant_to_json(variants([MINI], 90)[0]), **change}
    with pytest.raises(ValueError, match="no description of a kernel"):
        variant_from_json({name: value for name, value in given.items() if value is not ...})


def test_shapes_of_a_config_file() -> None:
    assert read_config(TINY, "float32") == Shapes(3, 16, (4, 6, 6), 256.0, "float32")
    bundled = Path(__file__).parents[2] / "vino_rt/mini/transformer/config.json"
    assert read_config(bundled, "bfloat16") == MINI


@pytest.mark.parametrize("text", ["{", "[]", '{"num_attention_heads": 3}', '{"num_attention_heads": null}'])
def test_config_files_that_are_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is no"):
        read_config(path, "bfloat16")


@pytest.mark.parametrize(
    "wrong", [{"dtype": "float64"}, {"heads": 0}, {"axes": (16, 24, 23)}, {"axes": (32, 32)}, {"segments": 0}]
)
def test_shapes_that_no_model_has(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"legal are|too small|three even numbers"):
        Shapes(**{**vars(MINI), **wrong})
