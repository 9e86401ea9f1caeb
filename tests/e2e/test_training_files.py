"""Training from files through the command line: pictures, clips, edit pairs and a tar, some of them broken."""

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stages import bits, log_lines, run, trained, write_stage
from tests.unit.datasets import clip, picture, png, record, tar

Capture = pytest.CaptureFixture[str]
SKIPPED = {
    "media unreadable": 1,
    "caption missing or empty": 1,
    "record unreadable": 1,
    "smaller than every bucket": 1,
    "tar cut off or damaged": 1,
}
BROKEN = {"broken while decoding": 2}
DATA: dict[str, Any] = {
    "source": "files",
    "paths": ["set", "shard.tar"],
    "area": 1024,
    "frames": [1, 5],
    "budget": 16,
    "max_broken": 0.5,
}


@pytest.fixture(autouse=True)
def data_set(place: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set beside the model."""
    for name, value in (("START_BATCHES", 6), ("START_SAMPLES", 8), ("SCALE_BATCHES", 2)):
        monkeypatch.setattr(f"vino_rt.train.vae.{name}", value)
    monkeypatch.setattr("vino_rt.train.vae_start.ROWS", 2000)
    make_set(Path("set"))
    good, whole = {"a.png": png(), "a.txt": b"a plain one"}, png(300, 300)
    torn = {"b.png": whole[: len(whole) // 2], "b.json": b'{"caption": "a torn one"}'}
    tar(Path("shard.tar"), good | torn | {"c.png": png()})
    data = Path("shard.tar").read_bytes()
    # Without the end mark and the last member.
    Path("shard.tar").write_bytes(data[: data.index(b"c.png") + 600])


def make_set(root: Path) -> None:
    """Six pictures, two clips, two edit pairs, and one of each kind of damage."""
    for number in range(6):
        picture(root / f"p{number}.png", seed=number)
        captions = {"long": [f"a gradient, number {number}", "a long one"], "short": ["gradient", f"number {number}"]}
        record(root / f"p{number}.json", caption=captions)
    (root / "clips").mkdir()
    for number in range(2):
        clip(root / "clips" / f"{number}.mp4")
        (root / "clips" / f"{number}.txt").write_text("brighter and brighter")
        picture(root / f"e{number}.png", seed=number)
        picture(root / f"e{number}.source.png", seed=number + 9)
        record(root / f"e{number}.json", caption=["make it bluer", "more blue"])
    jpeg = picture(root / "torn.jpg", 160, 160)
    jpeg.write_bytes(jpeg.read_bytes()[: jpeg.stat().st_size * 2 // 3])
    (root / "noise.png").write_bytes(b"noise")
    picture(root / "tiny.png", 9, 9)
    for name in ("torn", "noise", "tiny"):
        (root / f"{name}.txt").write_text(name)
    picture(root / "silent.png")
    picture(root / "bad.png")
    (root / "bad.json").write_text("{")


@pytest.mark.parametrize("objective", ["vae", "flow"])
def test_broken_files_are_skipped_and_told_and_workers_change_nothing(objective: str, capsys: Capture) -> None:
    tables: dict[str, Any] = {"data": DATA, "steps": 10, "log": {"every": 4, "sheet_every": 10}}
    tables["settings"] = {"fresh": True}
    alone = trained(capsys, write_stage("alone.toml", objective, "start", "alone", **tables))
    before, after = alone.named("data")
    assert before["skipped"] == SKIPPED
    assert after["skipped"] == SKIPPED | BROKEN
    assert before["lines"][0].startswith("13 records; ")
    assert "broken while decoding: 2; first: " in after["lines"][-1]
    lines = log_lines("alone")
    assert [line["step"] for line in lines] == [4, 8, 10]
    assert sum(line.get("replaced", 0) for line in lines) >= 2
    stage = write_stage("helped.toml", objective, "start", "helped", workers=2, **tables)
    helped = run(capsys, "train", stage)
    assert helped.code == 0
    assert helped.out.startswith("data: 13 records; ")
    assert "skipped 1, media unreadable; first: noise: noise.png" in helped.out
    assert "samples replaced" in helped.out
    assert "  broken while decoding: 2; first: " in helped.out.rpartition("data: ")[2]
    assert log_lines("helped") == lines
    assert bits("helped/model") == bits("alone/model")
    assert bits("helped/checkpoints") == bits("alone/checkpoints")


def test_paraphrases_edit_pairs_and_clips_are_all_drawn(capsys: Capture) -> None:
    stage = write_stage("flow.toml", "flow", "start", "run", data=DATA, steps=8)
    trained(capsys, stage)
    assert set().union(*(line["parts"] for line in log_lines("run"))) == {"t2i", "t2v", "ti2i"}


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_broken_files_end_a_run_that_can_be_mended(workers: int, capsys: Capture) -> None:
    tables: dict[str, Any] = {"data": DATA | {"max_broken": 0.1}, "steps": 10, "log": {"checkpoint_every": 1}}
    stage = write_stage("vae.toml", "vae", "start", "run", workers=workers, **tables)
    ended = run(capsys, "train", stage, "--json")
    assert ended.code == 3
    assert "2 of 13 records cannot be decoded, max_broken 0.1 allows 1; first: " in ended.err
    assert "torn.jpg: " in ended.err
    assert "shard.tar/b.png: " in ended.err
    assert ended.named("data")[-1]["skipped"] == SKIPPED | BROKEN
    reached = ended.named("checkpoint")[-1]["step"] if ended.named("checkpoint") else 0
    picture(Path("set/torn.jpg"), 160, 160)
    again = trained(capsys, stage)
    assert [event["step"] for event in again.named("resume")] == ([reached] if reached else [])
