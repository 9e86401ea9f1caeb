"""Reading and writing of safetensors parts, against the format's own library; damage in every form names itself."""

import json
import resource
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vino_rt.errors import ModelError, OutputError
from vino_rt.weight_source import PickleWeights, open_source
from vino_rt.weight_writer import check_space, staged_directory, write_file, write_part
from vino_rt.weights import PartWeights, TensorInfo, compare_names


def sample() -> dict[str, Tensor]:
    return {
        "a.weight": torch.randn(3, 7, 5),
        "b.weight": torch.randn(11, 13).bfloat16(),
        "c.scale": torch.tensor(1.5, dtype=torch.float16),
        "d.empty": torch.zeros(0, 4),
        "e.bias": torch.randn(17),
    }


def write(directory: Path, tensors: dict[str, Tensor], shard_bytes: int = 10**9) -> dict[str, int]:
    infos = [TensorInfo(name, value.dtype, tuple(value.shape)) for name, value in tensors.items()]
    return {name: r.bytes for name, r in write_part(directory, infos, iter(tensors.items()), shard_bytes).items()}


def same(given: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return list(given) == list(expected) and all(
        given[n].dtype == t.dtype and torch.equal(given[n], t) for n, t in expected.items()
    )


def test_written_part_is_what_the_library_reads(tmp_path: Path) -> None:
    tensors = sample()
    sizes = write(tmp_path, tensors)
    assert sizes == {"model.safetensors": (tmp_path / "model.safetensors").stat().st_size}
    loaded = load_file(tmp_path / "model.safetensors")
    assert same({name: loaded[name] for name in tensors}, tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("shard_bytes", [10**9, 300, 1])
def test_shards_come_back_bitwise(tmp_path: Path, shard_bytes: int) -> None:
    tensors = sample()
    sizes = write(tmp_path, tensors, shard_bytes)
    part = PartWeights(tmp_path)
    assert set(part.names()) == set(tensors)
    assert same(part.load(tensors, dtype=None), tensors)
    assert same({name: part.read(name) for name in tensors}, tensors)
    assert len(sizes) == {10**9: 1, 300: 4, 1: 6}[shard_bytes]
    assert ("model.safetensors.index.json" in sizes) == (shard_bytes < 10**9)
    assert all(part.shape(name) == tuple(value.shape) for name, value in tensors.items())


def test_reads_what_the_library_wrote_and_converts(tmp_path: Path) -> None:
    tensors = sample()
    save_file(tensors, tmp_path / "model.safetensors")
    loaded = PartWeights(tmp_path).load(list(tensors))
    assert same(loaded, {name: value.float() for name, value in tensors.items()})


def test_map_is_private(tmp_path: Path) -> None:
    write(tmp_path, {"x": torch.zeros(5)})
    before = (tmp_path / "model.safetensors").read_bytes()
    part = PartWeights(tmp_path)
    part.load(["x"])["x"].fill_(7.0)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert part.load(["x"])["x"].sum() == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_not_finite_names_the_tensor(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    bad = torch.zeros(3, 5, dtype=dtype)
    bad[2, 3] = value
    write(tmp_path, {"good": torch.ones(2), "layer.bad": bad})
    part = PartWeights(tmp_path)
    for wanted in (torch.float32, torch.bfloat16, None):
        with pytest.raises(ModelError, match=r"model\.safetensors.*'layer\.bad'.*NaN or infinity"):
            part.load(["good", "layer.bad"], dtype=wanted)


def test_missing_tensor_and_wrong_shape(tmp_path: Path) -> None:
    write(tmp_path, {"x": torch.zeros(5, 3)})
    part = PartWeights(tmp_path)
    with pytest.raises(ModelError, match="holds no tensor 'y', only x"):
        part.load(["y"])
    with pytest.raises(ModelError, match=r"model\.safetensors: 'x' has shape \(5, 3\), expected \(3, 5\)"):
        part.load(["x"], shapes={"x": (3, 5)})


def test_missing_part_and_shard(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.safetensors and model\.safetensors\.index\.json is missing"):
        PartWeights(tmp_path)
    write(tmp_path, sample(), 300)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match=r"missing shard model-00002-of-00003\.safetensors"):
        PartWeights(tmp_path)


@pytest.mark.parametrize(
    ("keep", "message"), [(0, "header"), (5, "header"), (60, "header"), (-3, "truncated inside 'e.bias'")]
)
def test_truncated_file(tmp_path: Path, keep: int, message: str) -> None:
    write(tmp_path, sample())
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match=rf"model\.safetensors.*{message}"):
        PartWeights(tmp_path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}, "'x' has element type 'I8'"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "'x' of shape .* has 4 bytes, expected 8"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, "'x' has shape"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}, "'x' overlaps or leaves a gap"),
        ({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, "longer than its header says"),
        ({"shape": [1]}, "not a readable safetensors file"),
    ],
)
def test_damaged_header(tmp_path: Path, entry: dict[str, object], message: str) -> None:
    header = json.dumps({"x": entry}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ModelError, match=message):
        PartWeights(tmp_path)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"weight_map": {"x": "../x.safetensors"}}', '{"weight_map": {"x": 3}}', "{"]
)
def test_damaged_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json"):
        PartWeights(tmp_path)


def test_index_that_does_not_fit(tmp_path: Path) -> None:
    write(tmp_path, sample(), 300)
    index = tmp_path / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["new"] = data["weight_map"].pop("e.bias")
    index.write_text(json.dumps(data))
    with pytest.raises(ModelError, match=r"not in the shards: new; in a shard but not listed: e\.bias"):
        PartWeights(tmp_path)


def test_compare_names_tells_everything() -> None:
    expected = {"a": (1,), "b": (2,), "c": (3,), "d": (4,)}
    with pytest.raises(ModelError, match=r"^here: missing a; unknown z; wrong shape b \(5,\) instead of \(2,\)\."):
        compare_names({"b": (5,), "c": (3,), "z": (1,)}, expected, "here", optional=("d",))
    compare_names({"a": (1,), "b": (2,), "c": (3,)}, expected, "here", optional=("d",))


def test_writer_refuses_another_tensor_than_announced(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'x'.*was announced"):
        write_part(tmp_path, [TensorInfo("x", torch.float32, (3,))], [("x", torch.zeros(4))])
    with pytest.raises(ModelError, match=r"'nothing'.*was announced"):
        write_part(tmp_path, [TensorInfo("x", torch.float32, (3,))], [])
    assert not list(tmp_path.iterdir())
    with pytest.raises(ModelError, match="'y' after the last tensor"):
        write_part(tmp_path, [TensorInfo("x", torch.float32, (3,))], [("x", torch.zeros(3)), ("y", torch.zeros(1))])


def test_disk_full_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*model\.safetensors.*free space"):
            write(tmp_path, {"x": torch.zeros(30_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
    with pytest.raises(OutputError, match="GB are needed"):
        check_space(tmp_path, 10**18)


def interrupt(file: Path) -> None:
    file.write_text("1")
    raise KeyboardInterrupt


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "x.json"

    def slow() -> Iterator[bytes]:
        yield b"first "
        write_file(path, [b"second"])
        yield b"and last"

    write_file(path, slow())
    assert path.read_bytes() == b"first and last"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


def test_staged_directory_is_all_or_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), staged_directory(out) as staging:
        interrupt(staging / "mark")
    assert not list(tmp_path.iterdir())
    with staged_directory(out) as staging:
        (staging / "mark").write_text("1")
        assert not out.exists()
    with pytest.raises(OutputError, match="exists"), staged_directory(out):
        pass
    with pytest.raises(KeyboardInterrupt), staged_directory(out, replaces="mark"):
        raise KeyboardInterrupt
    assert (out / "mark").read_text() == "1"
    with staged_directory(out, replaces="mark") as staging:
        (staging / "mark").write_text("2")
    assert (out / "mark").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_staged_directory_never_replaces_what_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path, message in (
        (tmp_path, "holds no mark"),
        (tmp_path / "file", "not a directory"),
        (tmp_path / "a" / "b", "create it"),
    ):
        with pytest.raises(OutputError, match=message), staged_directory(path, replaces="mark"):
            pass
    (tmp_path / "empty").mkdir()
    with staged_directory(tmp_path / "empty") as staging:
        (staging / "new").write_text("x")
    assert (tmp_path / "empty" / "new").is_file()


@pytest.mark.parametrize("wrapper", [None, "state_dict", "module"])
def test_torch_checkpoint(tmp_path: Path, wrapper: str | None) -> None:
    tensors = {**sample(), "view": torch.arange(12.0).reshape(3, 4).t()}
    torch.save({wrapper: tensors} if wrapper else tensors, tmp_path / "x.ckpt")
    source = PickleWeights(tmp_path / "x.ckpt")
    assert same({name: source.read(name) for name in source.names()}, tensors)


def test_torch_checkpoint_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    for content, message in (
        ({"x": torch.zeros(2), "epoch": 3}, "epoch are no floating-point tensors"),
        ({"x": torch.zeros(2, dtype=torch.int64)}, "x are no floating-point tensors"),
        ([torch.zeros(2)], "holds a list"),
        ({"path": Path("x")}, r"is not loaded: it asks to run pathlib\.PosixPath"),
    ):
        torch.save(content, path)
        with pytest.raises(ModelError, match=message):
            PickleWeights(path)
    torch.save({"x": torch.zeros(2000)}, path)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(ModelError, match="not a readable checkpoint"):
        PickleWeights(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", b"\x80\x02.")
        file.writestr("x/version", b"3")
    with pytest.raises(ModelError, match="not a readable checkpoint"):
        PickleWeights(path)
    torch.save({"x": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match="zip format"):
        PickleWeights(path)
    torch.save({"x": torch.tensor([1.0, float("nan")])}, path)
    with pytest.raises(ModelError, match="'x' holds NaN"):
        PickleWeights(path).read("x")


def test_checkpoint_is_mapped_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vino_rt.weight_source.REOPEN_BYTES", 50)
    tensors = sample()
    torch.save(tensors, tmp_path / "x.ckpt")
    source = PickleWeights(tmp_path / "x.ckpt")
    assert same({name: source.read(name) for name in source.names()}, tensors)


def test_open_source_finds_the_one_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no file"):
        open_source(tmp_path)
    with pytest.raises(ModelError, match=r"x\.ckpt is missing"):
        open_source(tmp_path / "x.ckpt")
    write(tmp_path, sample())
    assert set(open_source(tmp_path).names()) == set(sample())
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors, other\.safetensors; name one"):
        open_source(tmp_path)
    assert set(open_source(tmp_path / "other.safetensors").names()) == set(sample())
