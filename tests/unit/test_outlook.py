"""What a request is foreseen to come to, against what a runtime would pack."""

from dataclasses import replace

import pytest

from tests.unit.small_model import small_preset
from vino_rt.backends.recipe import load_recipe
from vino_rt.bucket import Bucket
from vino_rt.commands.outlook import foresee
from vino_rt.errors import EngineError, InputError
from vino_rt.footprint import predict
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.preset import write_preset
from vino_rt.request import Request


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> ModelDir:
    """A model of a few thousand weights that makes pictures of 640x640."""
    data = small_preset()
    data["settings"] |= {"area": 640 * 640, "default_size": [640, 640]}
    return write_preset(data, tmp_path_factory.mktemp("large") / "model", seed=3)


def test_branches_that_a_recipe_runs_apart_are_foreseen_apart(large: ModelDir) -> None:
    recipe = load_recipe("eager")
    assert recipe.pack_rows == 3072
    request = Request(prompt="a red square", seed=1, guidance=3.0)
    apart = foresee(request, large, recipe).record()
    together = foresee(request, large, replace(recipe, pack_rows=None)).record()
    assert (apart["sequences"], together["sequences"]) == (2, 1)
    assert [(s["sequence"], s["start"]) for s in apart["segments"] if s["what"] == "target"] == [(0, 0), (1, 0)]
    rows = ("image_tokens", "text_tokens", "attention_pairs")
    assert [apart[name] for name in rows] == [together[name] for name in rows]


def test_the_bucket_is_named_with_the_reason(large: ModelDir) -> None:
    small, roomy = (
        Bucket(frames=1, height=640, width=640, references=0, text_tokens=rows, branches=2) for rows in (400, 900)
    )
    recipe = replace(load_recipe("eager"), buckets=(roomy, small))
    told = foresee(Request(prompt="a red square", seed=1, guidance=3.0), large, recipe)
    assert told.bucket == small
    assert told.record()["bucket"]["reason"].startswith("of 2 for this size and 2 branches the smallest")
    with pytest.raises(InputError, match=r"has 1 branch; .* have 2 branches: for 2 branches set --guidance"):
        foresee(Request(prompt="a red square", seed=1, guidance=1.0), large, recipe)
    assert foresee(Request(prompt="x", seed=1), large, load_recipe("eager")).record()["bucket"] is None


def test_a_kind_that_the_model_has_not_is_refused(large: ModelDir) -> None:
    recipe = replace(load_recipe("eager"), kinds={"nosuch": "eager"})
    with pytest.raises(EngineError, match=r"names engine kinds \['nosuch'\]; this model has"):
        foresee(Request(prompt="a red square", seed=1), large, recipe)


def test_padding_of_text_is_foreseen(large: ModelDir) -> None:
    recipe = replace(load_recipe("eager"), pad_text=(64,))
    told = foresee(Request(prompt="a red square", seed=1, guidance=3.0), large, recipe).record()
    texts = [s["rows"] for s in told["segments"] if s["what"] == "text"]
    assert told["text_tokens"] == sum(-(-rows // 64) * 64 for rows in texts) > sum(texts)
    padding = [(s["sequence"], s["rows"]) for s in told["segments"] if s["branch"] is None]
    assert padding == [(number, -rows % 64) for number, rows in enumerate(texts)]


def test_memory_of_a_step_is_that_of_the_footprint(large: ModelDir) -> None:
    request = Request(prompt="a red square", seed=1, guidance=3.0)
    bucket = Bucket(frames=1, height=640, width=640, references=0, text_tokens=400, branches=2)
    for recipe in (replace(load_recipe("eager"), buckets=(bucket,)), replace(load_recipe("cuda"), buckets=(bucket,))):
        (size,) = predict(large, recipe, 0).sizes
        assert foresee(request, large, recipe).record()["step_bytes"] == size.step
    recipe = load_recipe("eager")
    apart, together = (foresee(request, large, replace(recipe, pack_rows=rows)).step_bytes for rows in (3072, None))
    assert apart < together
    longer = foresee(replace(request, prompt="a red square " * 100), large, recipe).step_bytes
    assert longer > apart
