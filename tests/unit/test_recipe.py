"""Recipes: the shipped ones parse, everything else in a recipe file is refused with its name."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vino_rt.backends.aotinductor import AotInductorBackend
from vino_rt.backends.eager import EagerBackend
from vino_rt.backends.onnxruntime import OnnxRuntimeBackend
from vino_rt.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend
from vino_rt.backends.recipe import BACKENDS, load_recipe, make_backend, recipe_dir
from vino_rt.errors import EngineError

GOOD = 'description = "x"\ndevice = "cpu"\nprecision = "float32"\nbackend = "onnxruntime"\n'


def write(directory: Path, text: str) -> Path:
    path = directory / "mine.toml"
    path.write_text(text)
    return path


def test_shipped_recipes_parse() -> None:
    recipes = {path.stem: load_recipe(path.stem) for path in recipe_dir().glob("*.toml")}
    assert {"cpu", "eager", "aotinductor"} <= recipes.keys()
    assert all(recipe.name == name and recipe.description for name, recipe in recipes.items())
    assert {name for name, recipe in recipes.items() if recipe.device != "cpu"} == {
        "aotinductor-cuda",
        "cuda",
        "onnxruntime-cuda",
        "onnxruntime-tensorrt",
        "tensorrt",
        "tensorrt-mini",
        "tensorrt-plugin",
        "torch-tensorrt",
    }
    assert recipes["cpu"].backend_of("dual_block") == "onnxruntime"
    assert recipes["cpu"].backend_of("modulation") == "eager"
    assert recipes["eager"].backend_of("dual_block") == "eager"
    kinds = ("modulation", "dual_block", "single_block", "vae_decode")
    assert [recipes["aotinductor"].backend_of(kind) for kind in kinds] == [
        "eager", "aotinductor", "aotinductor", "onnxruntime",
    ]  # fmt: skip


def test_unknown_name_lists_the_known() -> None:
    known = r"aotinductor, aotinductor-cuda, cpu, .*, tensorrt, .*, torch-tensorrt; or name"
    with pytest.raises(EngineError, match=f"no recipe named 'cpux'; shipped recipes are {known}"):
        load_recipe("cpux")


def test_recipe_from_a_file(tmp_path: Path) -> None:
    bucket = "frames = 1\nheight = 48\nwidth = 64\nreferences = 0\ntext_tokens = 7\n"
    path = write(tmp_path, f'{GOOD}[kinds]\nhead = "eager"\n[[bucket]]\n{bucket}[[bucket]]\n{bucket}')
    recipe = load_recipe(path)
    assert load_recipe(str(path)) == recipe
    assert (recipe.name, recipe.description, recipe.precision) == ("mine", "x", "float32")
    assert [recipe.backend_of(kind) for kind in ("head", "text")] == ["eager", "onnxruntime"]
    assert len(recipe.buckets) == 2
    assert recipe.buckets[0].text_tokens == 7
    assert load_recipe(write(tmp_path, GOOD)).buckets == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("onnxruntime", "onnxruntime-tensorrt"), "'onnxruntime-tensorrt' does not run on device 'cpu'"),
        (
            GOOD.replace('"cpu"', '"cuda"').replace("float32", "int8"),
            "'onnxruntime' does not run on device 'cuda' .* cpu",
        ),
        (f"{GOOD}max_autotune = true\n", "max_autotune is for backend 'aotinductor', which runs no kind here"),
        (f"{GOOD}max_autotune = 1\n", "max_autotune is 1, expected true or false"),
        (GOOD.replace("float32", "bfloat16"), "'onnxruntime' does not run .* with precision 'bfloat16'"),
        (GOOD.replace("float32", "half").replace("onnxruntime", "eager"), "'half'; it runs on cpu: float32, bfloat16"),
        (f'{GOOD}[precisions]\nhead = "bfloat16"\n', "kind 'head' on backend 'onnxruntime' does not run"),
        (f"{GOOD}variant = 'fast'\n", "variant is 'fast', expected one of native, plugin"),
        (f"{GOOD}cuda_graphs = 1\n", "cuda_graphs is 1, expected true or false"),
        (f"{GOOD}pad_text = 64\n", "pad_text is 64, expected an array of whole numbers"),
        (f"{GOOD}pad_text = [64, 0]\n", r"pad_text is \[64, 0\], expected an array of whole numbers of at least 1"),
        (f"{GOOD}pack_rows = true\n", "pack_rows is True, expected a whole number"),
        (f"{GOOD}precisions = 3\n", "precisions is 3, expected a table"),
        (GOOD.replace("onnxruntime", "openvino"), "no backend named 'openvino'; there are eager, onnxr.*"),
        (f'{GOOD}[kinds]\nhead = "onnx"\n', "no backend named 'onnx'"),
        (f"{GOOD}[kinds]\nhead = 3\n", "kinds.head is 3, expected a text"),
        (f'{GOOD}[kinds]\nhead = ["eager"]\n', r"kinds\.head is \['eager'\], expected a text"),
        (f'{GOOD}[precisions]\nhead = ["float32"]\n', r"precisions\.head is \['float32'\], expected a text"),
        (f"{GOOD}pack_rows = -4\n", "pack_rows is -4, expected a whole number of at least 1"),
        (f"{GOOD}threads = 4\n", r"mine.toml: unknown fields: threads; a recipe has description, .*, or like"),
        (GOOD.replace('precision = "float32"\n', ""), "mine.toml: missing fields: precision; a recipe"),
        (f"{GOOD}kinds = 3\n", "kinds is 3, expected a table"),
        (f"{GOOD}bucket = 3\n", "bucket is 3, expected an array of tables"),
        (f"{GOOD}bucket = [3]\n", r"bucket is \[3\], expected an array of tables"),
        (GOOD.replace('"x"', "3"), "description is 3, expected a text"),
        (GOOD.replace('"onnxruntime"', '["onnxruntime"]'), "backend is .* expected a text"),
        (GOOD[:-3], "mine.toml"),
        (GOOD.replace("device", "place"), "missing fields: device, unknown fields: place; a recipe"),
        ("", "missing fields: backend, description, device, precision; a recipe"),
    ],
)
def test_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        load_recipe(write(tmp_path, text))
    assert "mine.toml" in str(caught.value)


def test_max_autotune_of_one_kind_is_enough(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, f'{GOOD}max_autotune = true\n[kinds]\nhead = "aotinductor"\n'))
    assert recipe.max_autotune
    assert not load_recipe(write(tmp_path, GOOD)).max_autotune


def test_like_another_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, 'like = "cpu-int8"\n')
    with pytest.raises(EngineError, match=r"mine.toml: like is 'cpu-int8', itself like 'cpu': name that one"):
        load_recipe(path)
    text = 'like = "cpu"\npack_rows = 7\nkinds = { head = "eager" }\n'
    recipe, cpu = load_recipe(write(tmp_path, text)), load_recipe("cpu")
    assert (recipe.name, recipe.pack_rows) == ("mine", 7)
    assert dict(recipe.kinds) == {"head": "eager"}
    assert dict(cpu.kinds) == {"modulation": "eager"}
    assert replace(recipe, name="cpu", pack_rows=cpu.pack_rows, kinds=cpu.kinds) == cpu


def test_like_the_shipped_recipe_of_its_own_name(tmp_path: Path) -> None:
    path = tmp_path / "cpu.toml"
    path.write_text('like = "cpu"\npack_rows = 7\n')
    assert load_recipe(path) == replace(load_recipe("cpu"), pack_rows=7)


def test_like_no_name(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"mine.toml: like is 3, expected the name of a shipped recipe"):
        load_recipe(write(tmp_path, "like = 3\n"))


def test_like_an_unknown_recipe(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no recipe named 'cpux'; shipped recipes are"):
        load_recipe(write(tmp_path, 'like = "cpux"\n'))


def test_recipes_of_one_library_are_for_the_same_model() -> None:
    plain = load_recipe("tensorrt")
    assert len(plain.buckets) == 57
    assert replace(load_recipe("tensorrt-plugin"), name="", description="") == replace(
        plain, name="", description="", variant="plugin"
    )
    for name in ("torch-tensorrt", "onnxruntime-tensorrt"):
        recipe = load_recipe(name)
        assert set(recipe.buckets) == {bucket for bucket in plain.buckets if bucket.frames == 1}
        assert recipe.backend == name


def test_no_readable_file(tmp_path: Path) -> None:
    (tmp_path / "directory.toml").mkdir()
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    for name in ("absent.toml", "directory.toml", "binary.toml"):
        with pytest.raises(EngineError, match=name):
            load_recipe(tmp_path / name)


def test_precision_of_a_kind(tmp_path: Path) -> None:
    text = GOOD.replace("float32", "bfloat16").replace("onnxruntime", "eager")
    recipe = load_recipe(write(tmp_path, f'{text}[precisions]\nhead = "float32"\n'))
    assert [recipe.precision_of(kind) for kind in ("head", "text")] == ["float32", "bfloat16"]


def test_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = GOOD.replace("onnxruntime", "eager")
    assert load_recipe(write(tmp_path, text)).torch_device == torch.device("cpu")
    recipe = load_recipe(write(tmp_path, text.replace("cpu", "cuda")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match=r"'mine' runs on an NVIDIA GPU and torch .* sees none"):
        _ = recipe.torch_device


def test_backends_by_name() -> None:
    assert isinstance(make_backend("eager", 3), EagerBackend)
    backend = make_backend("onnxruntime", 3)
    assert isinstance(backend, OnnxRuntimeBackend)
    assert backend.threads == 3
    compiled = make_backend("aotinductor", 3)
    assert isinstance(compiled, AotInductorBackend)
    assert compiled.threads == 3
    assert "max_autotune" in make_backend("aotinductor", 3, max_autotune=True).target()
    assert isinstance(make_backend("onnxruntime", 3, torch.device("cuda", 0)), OnnxRuntimeCudaBackend)
    for name, classes in BACKENDS.items():
        assert all(backend.name == name for backend in classes.values())
    assert type(make_backend("triton", None)) is BACKENDS["triton"]["cpu"]


def test_what_code_outside_asks_of_a_backend() -> None:
    cpu, cuda = load_recipe("cpu"), load_recipe("onnxruntime-cuda")
    assert cpu.backend_class("dual_block") is OnnxRuntimeBackend
    assert cuda.backend_class("dual_block") is OnnxRuntimeCudaBackend
    facts = {
        name: {(c.needs_artefact, c.pool_per_kind, c.embeds_kernels) for c in classes.values()}
        for name, classes in BACKENDS.items()
    }
    nothing, stored = {(False, False, False)}, {(True, False, False)}
    assert facts == {
        "eager": nothing,
        "triton": nothing,
        "onnxruntime": {(True, True, False)},
        "onnxruntime-tensorrt": {(True, True, False)},
        "aotinductor": {(True, False, True)},
        "tensorrt": stored,
        "torch-tensorrt": stored,
    }
