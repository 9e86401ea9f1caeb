"""What a request is foreseen to come to, against what a runtime would pack."""

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.small_model import small_preset
from vino_rt.backends.recipe import load_recipe
from vino_rt.commands.outlook import foresee
from vino_rt.errors import EngineError
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
    apart: dict[str, Any] = foresee(request, large, recipe)
    together: dict[str, Any] = foresee(request, large, replace(recipe, pack_rows=None))
    assert (apart["sequences"], together["sequences"]) == (2, 1)
    assert [(s["sequence"], s["start"]) for s in apart["segments"] if s["what"] == "target"] == [(0, 0), (1, 0)]
    rows = ("image_tokens", "text_tokens", "attention_pairs")
    assert [apart[name] for name in rows] == [together[name] for name in rows]


def test_a_kind_that_the_model_has_not_is_refused(large: ModelDir) -> None:
    recipe = replace(load_recipe("eager"), kinds={"nosuch": "eager"})
    with pytest.raises(EngineError, match=r"names engine kinds \['nosuch'\]; this model has"):
        foresee(Request(prompt="a red square", seed=1), large, recipe)


def test_padding_of_text_is_foreseen(large: ModelDir) -> None:
    recipe = replace(load_recipe("eager"), pad_text=64)
    told: dict[str, Any] = foresee(Request(prompt="a red square", seed=1, guidance=3.0), large, recipe)
    texts = [s["rows"] for s in told["segments"] if s["what"] == "text"]
    assert told["text_tokens"] == sum(-(-rows // 64) * 64 for rows in texts) > sum(texts)
    padding = [(s["sequence"], s["rows"]) for s in told["segments"] if s["branch"] is None]
    assert padding == [(number, -rows % 64) for number, rows in enumerate(texts)]
