"""Files that a backend keeps beside an artefact are as much a part of an engine as the artefact."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.unit.test_store import ARTEFACT_DAMAGE, CONTENT, KEY, maker, rewrite
from vino_rt.backends.store import Manifest, Store, file_hash
from vino_rt.errors import EngineError

FILES: Mapping[str, bytes] = {"engine.json": b'{"format": 1}', "engine.onnx": CONTENT, "tactics.engine": CONTENT[:99]}


def make(directory: Path) -> Manifest:
    for name, content in FILES.items():
        (directory / name).write_bytes(content)
    return maker()(directory)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_every_file_is_hashed(store: Store) -> None:
    manifest = store.put(make)
    directory = store.path / KEY.directory
    assert manifest.files == {name: file_hash(directory / name) for name in FILES}
    assert store.find(KEY) == (manifest, directory / "engine.onnx")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ARTEFACT_DAMAGE.values(), ids=ARTEFACT_DAMAGE)
def test_a_damaged_file_is_refused_and_replaced(store: Store, damage: Callable[[Path], object], file: str) -> None:
    store.put(make)
    damage(store.path / KEY.directory / file)
    with pytest.raises(EngineError, match=rf"{file} is damaged \(missing, unreadable.*delete .* and build again"):
        store.find(KEY)
    store.put(make)
    assert (store.find(KEY)[1].parent / file).read_bytes() == FILES[file]


@pytest.mark.parametrize("files", [{}, 3, {"engine.onnx": "0" * 64}, "outside"])
def test_a_manifest_that_does_not_vouch_for_its_files(store: Store, files: object) -> None:
    """Such as one of a version that hashed the artefact alone."""
    manifest = store.put(make)
    given = {**manifest.files, "../engine.json": "0" * 64} if files == "outside" else files
    rewrite(store.path / KEY.directory, files=given)
    with pytest.raises(EngineError, match=r"manifest\.json cannot be read"):
        store.find(KEY)
    assert store.put(make).files == manifest.files
