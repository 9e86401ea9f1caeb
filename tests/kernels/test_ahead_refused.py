"""Directories of cubins that the loader must refuse, and what it says."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kernels.ahead_driver import GPU, StandIn
from tests.kernels.ahead_folders import entry_of, stand_in, write_folder
from vino_kernels.ahead.declare import variants
from vino_kernels.ahead.loader import Library
from vino_kernels.ahead.manifest import NAME, Manifest, write_json
from vino_kernels.ahead.shapes import MINI

ALL = variants([MINI], 90)
GATED = next(variant for variant in ALL if variant.operation == "gated_residual")


def test_an_architecture_without_cubins(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [*variants([MINI], 80), *ALL])
    driver = stand_in(ALL, arch=86)
    with pytest.raises(ValueError, match=r"GPU 0 is sm_86; .* holds sm_80, sm_90: build with --arch sm_86"):
        Library.open(folder, GPU, driver)
    assert driver.names[-1] == "cuDevicePrimaryCtxRelease"


def test_only_the_own_architecture_is_loaded(tmp_path: Path) -> None:
    library = Library.open(write_folder(tmp_path, [*variants([MINI], 80), *ALL]), GPU, stand_in(ALL))
    assert set(library.names) == {variant.name for variant in ALL}


def test_a_flipped_byte(tmp_path: Path) -> None:
    path = write_folder(tmp_path, [GATED]) / entry_of(GATED).file
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    driver = stand_in([GATED])
    with pytest.raises(ValueError, match=r"gated_residual-bf16-192\.cubin has SHA-256 .*, the manifest says"):
        Library.open(tmp_path, GPU, driver)
    assert "cuModuleLoadData" not in driver.names


def test_a_missing_cubin(tmp_path: Path) -> None:
    (write_folder(tmp_path, [GATED]) / entry_of(GATED).file).unlink()
    with pytest.raises(FileNotFoundError, match="is missing, though the manifest names it"):
        Library.open(tmp_path, GPU, stand_in([GATED]))


def test_a_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"manifest.json is missing: python -m vino_kernels.ahead --out"):
        Library.open(tmp_path, GPU, StandIn({}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "has format 2, this version reads 1"),
        ({"entries": None}, "no manifest of compiled kernels"),
        ({"entries": [{}]}, "no manifest of compiled kernels"),
        ({"triton": ...}, "no manifest of compiled kernels"),
    ],
    ids=["format", "no_entries", "empty_entry", "missing_field"],
)
def test_a_corrupt_manifest(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = write_folder(tmp_path, [GATED]) / NAME
    content = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))
    with pytest.raises(ValueError, match=words):
        Library.open(tmp_path, GPU, stand_in([GATED]))


@pytest.mark.parametrize("text", ["", "{", "[]", "\udcff"], ids=["empty", "cut", "list", "bytes"])
def test_a_manifest_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match="no manifest of compiled kernels"):
        Library.open(tmp_path, GPU, StandIn({}))


def test_a_rule_in_a_manifest_is_data(tmp_path: Path) -> None:
    """Neither a grid nor a file name can be more than what it is meant to be."""
    path = write_folder(tmp_path, [GATED]) / NAME
    whole = path.read_text()
    content = json.loads(whole)
    content["entries"][0]["variant"]["grid"] = [["__import__", "os", 1]]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is no rule: a number, a name or"):
        Library.open(tmp_path, GPU, stand_in([GATED]))
    content = json.loads(whole)
    content["entries"][0]["variant"]["name"] = "../../elsewhere"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="a kernel's name is the name of a file"):
        Library.open(tmp_path, GPU, stand_in([GATED]))


@pytest.mark.parametrize("field", ["num_ctas", "global_scratch", "profile_scratch"])
def test_what_the_loader_does_not_give(tmp_path: Path, field: str) -> None:
    write_folder(tmp_path, [GATED])
    entry = entry_of(GATED)
    entry = dataclasses.replace(entry, made=dataclasses.replace(entry.made, **{field: 2}))  # type: ignore[arg-type]
    write_json(tmp_path / NAME, Manifest("3.0", {}, {}, (entry,)))
    with pytest.raises(ValueError, match="wants clusters or scratch memory"):
        Library.open(tmp_path, GPU, stand_in([GATED]))


def test_a_device_that_is_no_gpu(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cpu is no GPU"):
        Library.open(tmp_path, torch.device("cpu"), StandIn({}))
