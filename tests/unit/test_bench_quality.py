"""The score table: what stands in its rows, perfect and wrong answers, intervals, a run that goes on where it ended.

The answers come from drawers that know the truth, or spoil it in one way, so what a row must say is known.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import quality, quality_sheet, quality_work
from bench.quality_cases import ROWS, UNDERSTAND, Trial, moves, trials
from bench.quality_draw import Artist, Setup
from bench.quality_score import Answer, Judged, failures, judged, measures, wilson
from bench.quality_verdicts import Verdicts
from vino_rt.errors import UsageError
from vino_rt.model_dir import bundled_model
from vino_rt.request import Pixels
from vino_rt.world.examples import Example, caption
from vino_rt.world.scene import Thing
from vino_rt.world.split import held_out

COUNT = 6
BACK = {"left": "right", "right": "left", "up": "down", "down": "up"}


def oracle(example: Example) -> Answer:
    return example.truth()


def say(example: Example) -> str:
    return caption(example.target, np.random.default_rng(0), "long")


def spoilt(change: Callable[[tuple[Thing, ...]], tuple[Thing, ...]]) -> Callable[[Example], Answer]:
    """A drawer of the truth with other things."""
    return lambda e: replace(e, target=replace(e.target, things=change(e.target.things))).truth()


def swapped(things: tuple[Thing, ...]) -> tuple[Thing, ...]:
    """Each thing in the colour of the one before it."""
    return tuple(replace(thing, colour=things[i - 1].colour) for i, thing in enumerate(things))


def backwards(things: tuple[Thing, ...]) -> tuple[Thing, ...]:
    """Everything goes the other way, from where it should have ended."""
    found = []
    for thing in things:
        end = thing.pose(2.0)
        motion = replace(thing.motion, direction=BACK.get(thing.motion.direction or ""))
        found.append(replace(thing, x=end.x, y=end.y, motion=motion))
    return tuple(found)


def unchanged(example: Example) -> Pixels:
    """The source of an edit."""
    clip = example.clip()
    return example.picture(len(example.images) - 1)[None] if clip is None else clip


def washed(example: Example) -> Pixels:
    """The truth, its pixels somewhat brighter."""
    return np.clip(example.truth().astype(np.int16) + 25, 0, 255).astype(np.uint8)


def percent(row: str, answer: Callable[[Example], Answer], count: int = COUNT) -> dict[str, float]:
    """Value by metric of the row itself (`right`) and its parts."""
    found = measures([judged(trial, answer(trial.example), None) for trial in trials(row, count)])
    return {m.metric: m.value for m in found if m.case in (row, f"{row}: parts")}


@pytest.mark.parametrize("row", ROWS)
def test_the_truth_is_right(row: str) -> None:
    assert percent(row, say if row.startswith(UNDERSTAND) else oracle)["right"] == 100


def test_swapped_identities_are_wrong() -> None:
    assert percent("t2i_two", spoilt(swapped))["right"] == 0
    assert percent("ti2v", spoilt(swapped))["right"] == 0


@pytest.mark.parametrize("row", ["t2v", "i2v"])
def test_the_wrong_way_is_wrong(row: str) -> None:
    found = percent(row, spoilt(backwards))
    assert found["right"] == found["motion"] == 0


def test_an_edit_must_be_done_and_the_rest_kept() -> None:
    undone = percent("edit", unchanged, 12)
    assert (undone["right"], undone["done"], undone["kept"]) == (0, 0, 100)
    assert percent("edit", washed, 12)["kept"] == 0


def test_a_clip_must_begin_at_its_picture() -> None:
    found = percent("i2v", washed)
    assert found["motion"] == 100
    assert found["right"] == found["kept"] == 0


def test_what_is_kept_is_held_against_the_autoencoder() -> None:
    def blind(frames: Pixels) -> Pixels:
        return np.zeros_like(frames)

    assert measures([judged(trial, washed(trial.example), blind) for trial in trials("i2v", COUNT)])[0].value == 100


def test_a_caption_of_something_else_is_wrong() -> None:
    assert percent(UNDERSTAND, lambda e: say(e) if e.frames == 1 else "a red circle")["right"] == 50


def test_rows_hold_what_they_say() -> None:
    def of(row: str) -> list[Example]:
        return [trial.example for trial in trials(row, 24)]

    assert {(e.task, e.kind) for e in of("t2i")} == {("t2i", "single")}
    assert all(moves(e) for row in ("t2v", "i2v") for e in of(row))
    assert all(len(e.images) == 2 for e in of("ti2v"))
    assert [e.task for e in of("edit")] == ["ti2i", "tv2v"] * 12
    assert [e.frames for e in of(UNDERSTAND)] == [1, 17] * 12
    for row in ROWS:
        unseen = [any(map(held_out, e.about)) for e in of(row)]
        assert all(unseen) if row.endswith("_unseen") else not any(unseen)


def test_rows_begin_alike_and_prompts_take_turns() -> None:
    assert trials("edit", 4) == trials("edit", 9)[:4]
    assert [trial.number for trial in trials("edit", 4)] == [0, 1, 2, 3]
    ends = [trial.example.prompt.endswith(".") for trial in trials("edit", 8)]
    assert ends == [True, True, False, False] * 2
    with pytest.raises(UsageError, match="'t2x'"):
        trials("t2x", 1)


def test_intervals_are_wilsons() -> None:
    for right, count, low, high in ((0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (270, 300, 0.8609, 0.9290)):
        assert wilson(right, count) == pytest.approx((low, high), abs=1e-4)
    assert wilson(300, 300) == pytest.approx((0.98736, 1.0), abs=1e-4)
    assert wilson(300, 300)[1] <= 1


def fake(row: str, number: int, right: bool, kind: str = "a", floor: float | None = None) -> Judged:
    return Judged(row, number, kind, "p", "w", right, {"kept": right}, "s", 2.0, floor)


def test_measures_tell_bars_kinds_parts_floors_and_time() -> None:
    found = [fake("t2i", n, n > 0, "ab"[n % 2], 30.0 + n if n < 2 else None) for n in range(4)]
    rows = measures([*found, fake("t2i_unseen", 0, False)])
    by_name = {(m.case, m.metric): m for m in rows}
    first = by_name["t2i", "right"]
    assert (first.value, first.unit, first.ceiling and first.ceiling.value) == (75, "%", 90)
    assert vars(first.spread) == pytest.approx({"runs": 4, "low": 30.06, "high": 95.44}, abs=0.01)
    assert (by_name["t2i: a", "right"].value, by_name["t2i: b", "right"].value) == (50, 100)
    assert by_name["t2i: b", "autoencoder on the truth, mean"].value == 31
    assert by_name["t2i: parts", "kept"].value == 75
    assert by_name["t2i: time", "an answer"].value == 2
    assert by_name["t2i_unseen", "right"].ceiling is None
    assert failures(rows) == ["t2i: 75.0 %, 15.0 below 90 %"]


class Truthful(Artist):
    """An artist that opens nothing and answers with the truth."""

    asked = 0

    def prepare(self, case: str) -> None:  # type: ignore[override]
        pass

    def answers(self, trials: Sequence[Trial]) -> list[Answer]:
        """The truth of every trial."""
        type(self).asked += len(trials)
        return [say(t.example) if t.case == UNDERSTAND else oracle(t.example) for t in trials]

    def reconstruct(self, frames: Pixels) -> Pixels:
        """As it is."""
        return frames


@pytest.fixture
def truthful(monkeypatch: pytest.MonkeyPatch) -> type[Truthful]:
    artist = Truthful(Setup(bundled_model()))
    monkeypatch.setattr(quality, "opened", lambda setup: artist)
    monkeypatch.setattr(quality_work, "opened", lambda setup: artist)
    Truthful.asked = 0
    return Truthful


def test_a_run_goes_on_where_it_ended(truthful: type[Truthful], tmp_path: Path) -> None:
    table = quality.Table(Setup(bundled_model()), ("t2i", "i2v", UNDERSTAND), 2, verdicts=tmp_path / "v.jsonl")
    first = quality.fill(table)
    assert [(v.row, v.right) for v in first] == [(row, True) for row in table.rows for _ in range(2)]
    assert [verdict.floor_db for verdict in first] == [60.0] * 4 + [None] * 2
    assert truthful.asked == 6
    assert quality.fill(table) == first
    assert truthful.asked == 6
    quality.fill(replace(table, count=3, sheet=tmp_path / "sheet.png"))
    assert truthful.asked == 6 + 9
    quality.fill(replace(table, setup=replace(table.setup, steps=7)))
    assert truthful.asked == 6 + 9 + 6
    assert len((tmp_path / "v.jsonl").read_text().splitlines()) == 9 + 6
    assert Image.open(tmp_path / "sheet.png").size[0] == quality_sheet.WIDTH


def test_a_torn_line_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    one, two = trials("t2i", 2)
    verdict = judged(one, oracle(one.example), None)
    Verdicts(path, "run").add(one, verdict)
    path.write_text(path.read_text() + '{"run": "run", "tri')
    again = Verdicts(path, "run")
    assert (again.known(one), again.known(two)) == (verdict, None)
    again.add(two, replace(verdict, number=1))
    lines = path.read_text().splitlines()
    assert json.loads(lines[2])["number"] == 1
    assert Verdicts(path, "run").known(two) is not None
    assert Verdicts(path, "other").known(one) is None


def test_jobs_take_turns_and_captions_go_together() -> None:
    todo = [trial for row in ("t2i", UNDERSTAND) for trial in trials(row, 20)]
    found = quality_work.jobs(todo)
    assert [len(job) for job in found[:3]] == [1, 16, 1]
    assert sorted(trial.number for job in found for trial in job if trial.row == UNDERSTAND) == list(range(20))
    assert len(found) == 22


def test_the_sheet_frames_answers_by_verdict() -> None:
    (trial,) = trials("i2v", 1)
    truth = trial.example.truth()
    right = judged(trial, truth, None)
    for verdict, colour in ((right, quality_sheet.RIGHT), (replace(right, right=False), quality_sheet.WRONG)):
        pixels = np.asarray(quality_sheet.cell(quality_sheet.Entry(trial, truth, verdict)))
        side = 128 + 2 * quality_sheet.RIM
        assert tuple(pixels[0, 0]) == quality_sheet.FAINT
        assert tuple(pixels[0, side + quality_sheet.RIM]) == colour
        inside = pixels[quality_sheet.RIM : 130 : 2, quality_sheet.RIM : 130 : 2]
        assert np.array_equal(inside[:64, :64], trial.example.picture(0))
    assert len(quality_sheet.some(truth)) == 4
    assert np.array_equal(quality_sheet.some(truth)[-1], truth[-1])


def test_options_are_checked() -> None:
    parser = argparse.ArgumentParser()
    quality.add_options(parser)
    table = quality.asked(parser.parse_args(["--cases", "t2i,edit_unseen", "--guidance", "2"]), quick=False)
    assert (table.rows, table.count, table.setup.guidance) == (("t2i", "edit_unseen"), 300, 2.0)
    table = quality.asked(parser.parse_args([]), quick=True)
    assert (set(table.rows), table.count, table.setup.steps) == (set(ROWS), 2, 2)
    for bad, told in (
        (["--cases", "t2i,t3i"], "t3i"),
        (["--count", "0"], "--count"),
        (["--workers", "0"], "--workers"),
    ):
        with pytest.raises(UsageError, match=told):
            quality.asked(parser.parse_args(bad), quick=False)
