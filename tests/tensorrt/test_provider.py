"""What ONNX Runtime's TensorRT provider is given and told; files run on the CPU provider, plans never did."""

import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

from tests.tensorrt.small import AREA, BUCKET, UNIT, first_weights, small_kinds
from tests.unit.host_provider import OnHost
from vino_export.tensorrt.profiles import Span
from vino_export.tensorrt.provider import ranges, write_for_provider
from vino_export.verify import verify
from vino_rt.backends.onnxruntime_tensorrt import OPTIONS, RANGES, OnnxRuntimeTensorRtBackend, read_ranges
from vino_rt.bucket import Bucket
from vino_rt.errors import EngineError

GPU = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a single block, float32, and its ranges."""
    path = tmp_path_factory.mktemp("provider") / "engine.onnx"
    write_for_provider(small_kinds()["single_block"], path, [BUCKET], UNIT, AREA)
    return path


def test_the_file_computes_what_the_reference_does(written: Path) -> None:
    kind = small_kinds()["single_block"]
    weights = first_weights(kind)
    (engine,) = OnHost().open(kind, written, [weights])
    verdict = verify(kind, engine, weights)
    assert 0 <= verdict.error <= verdict.bound < 1e-3


def parsed(option: str) -> dict[str, tuple[int, ...]]:
    """Shapes by input."""
    pairs = (part.partition(":") for part in option.split(","))
    return {name: tuple(map(int, shape.split("x"))) for name, _, shape in pairs}


def test_ranges_hold_every_size_that_is_read(written: Path) -> None:
    kind = small_kinds()["single_block"]
    told = read_ranges(kind, written)
    least, best, most = (parsed(told[option]) for option in OPTIONS)
    dynamic = {spec.name for spec in kind.spec.inputs if isinstance(spec.dims[0], str)}
    assert least.keys() == best.keys() == most.keys() == dynamic - {"positions"}, "only another backend reads positions"
    for name in least:
        assert all(a <= b <= c for a, b, c in zip(least[name], best[name], most[name], strict=True))
    for example in kind.examples():
        assert least["joint"][0] <= example["joint"].shape[0] <= most["joint"][0]
    count = BUCKET.branches
    assert best["joint"][0] == count * (BUCKET.references + 12 + BUCKET.text_tokens)


def test_one_range_over_all_sizes() -> None:
    kind = small_kinds()["head"]
    told = ranges(kind, ["joint"], [{"J": Span(5, 5, 5), "V": Span(1, 1, 1)}, {"J": Span(2, 7, 9), "V": Span(1, 1, 1)}])
    width = kind.spec.inputs[0].dims[1]
    assert list(told.values()) == [f"joint:2x{width}", f"joint:5x{width}", f"joint:9x{width}"]


@pytest.mark.slow
def test_convolutions_and_recipes_without_sizes_are_refused(tmp_path: Path) -> None:
    kinds = small_kinds()
    with pytest.raises(EngineError, match=r"vae_decode: .*convolutions as constants.*vae_decode = \"eager\""):
        write_for_provider(kinds["vae_decode"], tmp_path / "engine.onnx", [BUCKET], UNIT, AREA)
    with pytest.raises(EngineError, match=r"head: .*add a \[\[bucket\]\]"):
        write_for_provider(kinds["head"], tmp_path / "engine.onnx", [], UNIT, AREA)


def test_a_mask_that_is_too_large(tmp_path: Path) -> None:
    long = Bucket(frames=85, height=480, width=848, references=0, text_tokens=640)
    with pytest.raises(EngineError, match=r"dual_block: .* 71240 x 71240 elements.*recipe tensorrt"):
        write_for_provider(small_kinds()["dual_block"], tmp_path / "engine.onnx", [long], UNIT, AREA)
    assert not list(tmp_path.iterdir())


def test_what_the_provider_is_told(written: Path) -> None:
    kind = small_kinds("bfloat16")["single_block"]
    cuda: Any = OnHost().host
    backend = OnnxRuntimeTensorRtBackend(GPU, cuda=cuda)
    told = backend.options("TensorrtExecutionProvider", kind, written)
    assert told["user_compute_stream"] == "4711"
    assert told["trt_engine_cache_path"] == str(written.parent)
    assert (told["trt_engine_cache_enable"], told["trt_bf16_enable"]) == ("1", "1")
    assert {name: told[name] for name in OPTIONS} == json.loads(written.with_name(RANGES).read_text())
    assert "trt_engine_cache_path" not in backend.options("CUDAExecutionProvider", kind, written)


def test_nothing_is_built_when_an_engine_is_opened(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(OnnxRuntimeTensorRtBackend.providers))
    kind = small_kinds()["single_block"]
    with pytest.raises(EngineError, match=r"single_block: TensorRT left no plan beside .*build it again"):
        OnnxRuntimeTensorRtBackend(GPU).open(kind, written, [])


@pytest.mark.parametrize("text", ["", "[3]", "{}", None])
def test_ranges_that_cannot_be_read(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / RANGES).write_text(text)
    with pytest.raises(EngineError, match=rf"head: .*{RANGES} cannot be read .*build"):
        read_ranges(small_kinds()["head"], tmp_path / "engine.onnx")
