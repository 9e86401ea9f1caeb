"""The engine store: what is put comes back, what does not match is named, what is damaged is never handed out."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from vino_rt.backends.store import MANIFEST, EngineKey, Manifest, Store, default_store, file_hash, read_manifest
from vino_rt.errors import EngineError, EngineMismatch, EngineMissing

KEY = EngineKey(
    kind="head", family="vino", config_hash="a1", bucket="dynamic", backend="onnxruntime", precision="float32",
    device="cpu", capability="x86_64", driver="none", cuda="none", torch_version="2.13.0", backend_version="1.31.1",
    kernels_version="0.1.0", flags=("x", "y"),
)  # fmt: skip
CONTENT = b"an engine" * 113

Make = Callable[[Path], Manifest]


def but(**changes: Any) -> EngineKey:
    return replace(KEY, **changes)


def maker(key: EngineKey = KEY, content: bytes = CONTENT) -> Make:
    def make(directory: Path) -> Manifest:
        artefact = directory / "engine.onnx"
        artefact.write_bytes(content)
        return Manifest(
            key=key, inputs=("a", "b"), outputs=("c",), artefact=artefact.name, bytes=len(content),
            sha256=file_hash(artefact), error=1e-7, bound=3e-7, verified_on="f00", build_seconds=0.5,
        )  # fmt: skip

    return make


def put(store: Store, key: EngineKey = KEY) -> Path:
    store.put(maker(key))
    return store.path / key.directory


def rewrite(directory: Path, **changes: Any) -> None:
    data = json.loads((directory / MANIFEST).read_text())
    (directory / MANIFEST).write_text(json.dumps(data | changes))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "deep" / "store")


def test_round_trip(store: Store) -> None:
    stored = store.put(maker())
    manifest, artefact = store.find(KEY)
    assert manifest == stored
    assert manifest.key == KEY
    assert manifest.inputs == ("a", "b")
    assert artefact.read_bytes() == CONTENT
    assert artefact.parent.name == KEY.directory
    assert KEY.directory.startswith("head-")
    assert [path.name for path in store.path.iterdir()] == [KEY.directory]
    assert artefact.parent.stat().st_mode & 0o777 == 0o755, "other users of a shared store cannot read it"


@pytest.mark.parametrize("name", [field.name for field in fields(EngineKey)])
def test_every_field_is_part_of_the_name(store: Store, name: str) -> None:
    other = but(**{name: ("x",) if name == "flags" else getattr(KEY, name) + "0"})
    assert other.digest != KEY.digest
    assert len(other.digest) == 16
    put(store, other)
    store.find(other)
    with pytest.raises(EngineMissing if name in ("kind", "backend") else EngineMismatch):
        store.find(KEY)


def test_nothing_there_names_the_command(store: Store) -> None:
    with pytest.raises(EngineMissing, match=r"no engine for kind 'head' in store ") as caught:
        store.find(KEY)
    assert not isinstance(caught.value, EngineMismatch)
    assert not store.path.exists(), "looking for an engine made a directory"
    put(store, but(kind="embed"))
    put(store, but(backend="other"))
    with pytest.raises(EngineMissing):
        store.find(KEY)


@pytest.mark.parametrize("name", ["config_hash", "capability", "torch_version", "backend_version", "kernels_version"])
def test_another_model_machine_or_version_is_named(store: Store, name: str) -> None:
    put(store, but(**{name: "other"}))
    with pytest.raises(EngineMismatch, match=f"{name} is 'other', needed '{getattr(KEY, name)}'") as caught:
        store.find(KEY)
    others = {field.name for field in fields(EngineKey)} - {name}
    assert not [other for other in others if f"{other} is" in str(caught.value)], "names a field that does not differ"


def test_the_nearest_of_several_is_named(store: Store) -> None:
    put(store, but(config_hash="b2", torch_version="2.11.0"))
    put(store, but(capability="aarch64"))
    with pytest.raises(EngineMismatch, match="capability is 'aarch64'") as caught:
        store.find(KEY)
    assert "torch_version" not in str(caught.value)


def test_manifest_of_another_key(store: Store) -> None:
    directory = put(store)
    rewrite(directory, key=asdict(but(precision="int8")))
    with pytest.raises(EngineMismatch, match="precision is 'int8', needed 'float32'"):
        store.find(KEY)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


ARTEFACT_DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "flipped": flip,
}


@pytest.mark.parametrize("damage", ARTEFACT_DAMAGE.values(), ids=ARTEFACT_DAMAGE)
def test_damaged_artefact_is_refused_and_replaced(store: Store, damage: Callable[[Path], object]) -> None:
    directory = put(store)
    damage(directory / "engine.onnx")
    with pytest.raises(EngineError, match=r"engine\.onnx is damaged.*build again"):
        store.find(KEY)
    put(store)
    assert store.find(KEY)[1].read_bytes() == CONTENT
    assert [path.name for path in store.path.iterdir()] == [KEY.directory]


MANIFEST_DAMAGE: dict[str, Callable[[Path], object]] = {
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_text(""),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "list": lambda path: path.write_text("[]"),
    "number": lambda path: path.write_text("3"),
    "key": lambda path: rewrite(path.parent, key=3),
    "key_field": lambda path: rewrite(path.parent, key=asdict(KEY) | {"colour": "red"}),
    "unknown": lambda path: rewrite(path.parent, colour="red"),
    "artefact": lambda path: rewrite(path.parent, artefact=3),
    "outside": lambda path: rewrite(path.parent, artefact="../engine.onnx"),
}


@pytest.mark.parametrize("damage", MANIFEST_DAMAGE.values(), ids=MANIFEST_DAMAGE)
def test_damaged_manifest_is_refused_and_replaced(store: Store, damage: Callable[[Path], object]) -> None:
    directory = put(store)
    damage(directory / MANIFEST)
    with pytest.raises(EngineError, match=r"manifest\.json cannot be read"):
        store.find(KEY)
    assert list(store.manifests()) == []
    with pytest.raises(EngineMissing):
        store.find(but(capability="aarch64"))
    put(store)
    store.find(KEY)


def test_manifests_are_listed_without_what_is_unfinished(store: Store) -> None:
    assert list(store.manifests()) == []
    keys = [but(kind=kind) for kind in ("text", "embed", "patch")]
    for key in keys:
        put(store, key)
    shutil.copytree(store.path / keys[0].directory, store.path / ".building-head-x")
    (store.path / "notes-1").mkdir()
    assert [manifest.key.kind for _, manifest in store.manifests()] == ["embed", "patch", "text"]
    assert all(read_manifest(directory) == manifest for directory, manifest in store.manifests())


def test_failing_make_leaves_nothing(store: Store) -> None:
    def fail(directory: Path) -> Manifest:
        maker()(directory)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.put(fail)
    assert list(store.path.iterdir()) == []


@pytest.mark.parametrize("where", ["artefact", "manifest", "flush"])
def test_full_disk_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def half(path: Path, text: str) -> None:
        path.write_bytes(text[: len(text) // 2].encode())
        full()

    def make(directory: Path) -> Manifest:
        manifest = maker()(directory)
        if where == "artefact":
            half(directory / "engine.onnx", CONTENT.decode())
        return manifest

    if where == "manifest":
        monkeypatch.setattr(Path, "write_text", half)
    if where == "flush":
        monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EngineError, match="No space left on device"):
        store.put(make)
    assert list(store.path.iterdir()) == []


def test_store_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(EngineError, match=r"cannot be written.*name another with --store"):
            Store(path).put(maker())
        with pytest.raises(EngineMissing):
            Store(path).find(KEY)
    store = Store(tmp_path / "store")
    put(store)

    def refuse(*_: object, **__: object) -> str:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(EngineError, match="Read-only file system; name another with --store"):
        store.put(maker(but(kind="text")))
    assert store.find(KEY)[1].read_bytes() == CONTENT, "a read-only store must serve what it has"


def test_two_builders_at_once_keep_the_first(store: Store) -> None:
    barrier, manifests = threading.Barrier(2, timeout=20), list[Manifest]()

    def build(content: bytes) -> None:
        def make(directory: Path) -> Manifest:
            barrier.wait()
            return maker(content=content)(directory)

        manifests.append(store.put(make))

    threads = [threading.Thread(target=build, args=(content,)) for content in (b"one", b"two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    manifest, artefact = store.find(KEY)
    assert manifests == [manifest, manifest], "a builder was told of an engine that is not in the store"
    assert artefact.read_bytes() in (b"one", b"two")
    assert [path.name for path in store.path.iterdir()] == [KEY.directory]


def test_damaged_engine_replaced_by_two_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = put(store)
    flip(directory / "engine.onnx")
    remove = shutil.rmtree

    def remove_and_lose_the_race(path: Path, ignore_errors: bool = False) -> None:
        remove(path, ignore_errors=ignore_errors)
        if Path(path) == directory:
            monkeypatch.setattr(shutil, "rmtree", remove)
            Store(store.path).put(maker())

    monkeypatch.setattr(shutil, "rmtree", remove_and_lose_the_race)
    assert store.put(maker(content=b"late")) == store.find(KEY)[0]
    assert store.find(KEY)[1].read_bytes() == CONTENT


def test_killed_builder_leaves_nothing_that_looks_valid(store: Store) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom vino_rt.backends.store import Store\n"
        "def make(directory):\n    (directory / 'engine.onnx').write_text('half')\n    os._exit(9)\n"
        "Store(Path(sys.argv[1])).put(make)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script, str(store.path)], cwd=root, check=False, timeout=60)
    assert done.returncode == 9
    assert len(list(store.path.iterdir())) == 1
    assert list(store.manifests()) == []
    with pytest.raises(EngineMissing):
        store.find(KEY)
    put(store)
    store.find(KEY)


def test_a_scratch_directory_that_vanishes_is_none_of_ours(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [store.path / ".building-renamed"]
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(listed))
    assert store.put(maker()) == store.find(KEY)[0]


def test_default_store_is_the_checkouts() -> None:
    assert default_store().path == Path(__file__).parents[2] / "engines" / "store"
