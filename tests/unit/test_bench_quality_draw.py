"""Who answers in the score table: requests as a user would make them, the autoencoder alone, questions."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from bench import quality, quality_work
from bench.quality_cases import UNDERSTAND, trials
from bench.quality_draw import Artist, Setup, question, request
from vino_rt.backends.recipe import load_recipe
from vino_rt.backends.store import Store
from vino_rt.engines import open_engines
from vino_rt.errors import UsageError
from vino_rt.model_dir import ModelDir
from vino_rt.runtime import Runtime
from vino_rt.understand import DESCRIBE_CLIP, DESCRIBE_IMAGE


@pytest.mark.parametrize("row", ["t2i", "t2v", "i2v", "edit", "ti2v"])
def test_a_request_comes_out_at_the_size_of_its_example(row: str, tiny_model: ModelDir, eager: Runtime) -> None:
    artist = Artist(Setup(tiny_model.path, steps=1))
    artist.__dict__["runtime"] = eager
    for trial in trials(row, 2, size=tiny_model.settings.default_size, frames=5):
        (frames,) = artist.answers([trial])
        assert isinstance(frames, np.ndarray)
        assert frames.shape == trial.example.truth().shape
        asked = request(trial.example, 4, Setup(tiny_model.path, steps=3, image_guidance=1.5))
        assert (asked.steps, asked.seed, asked.image_guidance) == (3, 4, 1.5 if asked.images else 1.0)
        assert len(asked.references) == len(trial.example.images) + (trial.example.video is not None)


def test_reconstructions_are_the_autoencoders(tiny_model: ModelDir, tmp_path: Path) -> None:
    truth = trials("t2v", 1, size=(64, 48), frames=5)[0].example.truth()
    artist = Artist(Setup(tiny_model.path))
    artist.__dict__["engines"] = open_engines(tiny_model, load_recipe("eager"), Store(tmp_path), 1)
    found = artist.reconstruct(truth)
    assert found.shape == truth.shape
    assert found.dtype == np.uint8


def test_the_autoencoder_alone_is_scored(tiny_model: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    quality.add_options(parser)
    given = ["--model", str(tiny_model.path), "--autoencoder", "--count", "2", "--workers", "1"]
    table = quality.asked(parser.parse_args(given), quick=False)
    assert not [name for name in table.rows if name.startswith(UNDERSTAND)]
    with pytest.raises(UsageError, match="--cases is 'understand'; name some of t2i"):
        quality.asked(parser.parse_args([*given, "--cases", UNDERSTAND]), quick=False)
    artist = Artist(table.setup)
    artist.__dict__["engines"] = open_engines(tiny_model, load_recipe("eager"), Store(tmp_path), 1)
    (trial,) = trials("t2i", 1, size=(64, 48))
    (answer,) = artist.answers([trial])
    assert np.array_equal(answer, artist.reconstruct(trial.example.truth()))
    monkeypatch.setattr(quality, "opened", lambda setup: artist)
    monkeypatch.setattr(quality_work, "opened", lambda setup: artist)
    outcome = quality.run(quick=False, options=parser.parse_args([*given, "--cases", "t2i"]))
    assert {row.case.partition(",")[0] for row in outcome.measures} == {"autoencoder"}
    assert not outcome.failures


def test_questions_show_the_truth(tiny_model: ModelDir) -> None:
    picture, clip = (trial.example for trial in trials(UNDERSTAND, 2, size=(64, 48), frames=9))
    asked = question(picture, tiny_model)
    assert asked.prompt == DESCRIBE_IMAGE
    assert np.array_equal(asked.images[0], picture.truth()[0])
    asked = question(clip, tiny_model)
    assert (asked.prompt, asked.images) == (DESCRIBE_CLIP, ())
    assert asked.video is not None
    assert len(asked.video) == 8
