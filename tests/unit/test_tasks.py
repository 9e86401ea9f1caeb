"""Task files: the authors' format runs unchanged, and everything else names its entry and field."""

import json
from pathlib import Path
from typing import Any

import pytest

from vino_rt import tasks
from vino_rt.errors import TaskFileError
from vino_rt.tasks import read_tasks

ENTRY = {"index": "id_1", "task": "t2i", "caption": "A baseball."}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "v.mp4"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def write(folder: Path, *entries: Any) -> Path:
    path = folder / "tasks.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


@pytest.mark.parametrize("case", ["pipeline_t2i_cfg", "pipeline_t2v_cfg", "pipeline_ti2i_dualcfg"])
def test_the_released_files(golden: Path, case: str) -> None:
    (task,) = read_tasks(golden / case / "task.json")
    assert task.index == "id_1"
    assert task.request(steps=4).steps == 4
    assert [path.name for path in task.images] == (["img0.png"] if "ti2i" in case else [])


def test_all_fields(folder: Path) -> None:
    path = write(
        folder,
        {**ENTRY, "task": "ti2i", "ref_image_paths": ["a.png", "b.png"], "ref_image_have_base": True},
        {**ENTRY, "index": 7, "task": "clone", "ref_image_paths": "['b.png']", "ref_video_path": "v.mp4"},
        {**ENTRY, "index": "c", "ref_image_paths": None, "ref_video_path": "", "ref_image_have_base": None},
    )
    edit, clone, plain = read_tasks(path)
    assert edit.base_image
    assert edit.request().base_image
    assert [r.path for r in edit.request().references] == [folder / "a.png", folder / "b.png"]
    assert (clone.index, clone.video, clone.request().resolved_task) == ("7", folder / "v.mp4", "tiv2v")
    assert (plain.images, plain.video, plain.base_image) == ((), None, False)


def test_paths_beside_the_file_come_first_then_the_current_directory(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("a.png", "only_here.png"):
        (elsewhere / name).write_bytes(b"y")
    monkeypatch.chdir(elsewhere)
    names = ["./a.png", "./only_here.png"]
    (task,) = read_tasks(write(folder, {**ENTRY, "task": "ti2i", "ref_image_paths": names}))
    assert [path.read_bytes() for path in task.images] == [b"x", b"y"]


def test_a_setting_without_use_is_dropped(folder: Path) -> None:
    still, edit, clip = read_tasks(
        write(
            folder,
            ENTRY,
            {**ENTRY, "index": "b", "task": "ti2i", "ref_image_paths": ["a.png"]},
            {**ENTRY, "index": "c", "task": "t2v"},
        )
    )
    given = {"size": (64, 64), "frames": 5, "image_guidance": 2.0, "steps": 3}
    requests = [task.request(**given) for task in (still, edit, clip)]
    assert [r.frames for r in requests] == [None, None, 5]
    assert [r.size for r in requests] == [(64, 64), None, (64, 64)]
    assert [r.image_guidance for r in requests] == [1.0, 2.0, 1.0]
    assert {r.steps for r in requests} == {3}


@pytest.mark.parametrize(("frames", "name"), [(1, "id_1.png"), (5, "id_1.mp4")])
def test_output_names(folder: Path, frames: int, name: str) -> None:
    assert read_tasks(write(folder, ENTRY))[0].output_name(frames) == name


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        ("t2i", "entry 1 is a string"),
        ({}, "missing field 'index', missing field 'task', missing field 'caption'"),
        ({**ENTRY, "caption": None}, "missing field 'caption'"),
        ({**ENTRY, "prompt": "x"}, "unknown field 'prompt'"),
        ({**ENTRY, "caption": 3}, "'caption' is a number"),
        ({**ENTRY, "caption": "x" * 100_000}, "100000 characters"),
        ({**ENTRY, "task": "v2v"}, "'task' is 'v2v'; legal tasks are t2i"),
        ({**ENTRY, "task": ["t2i"]}, "'task' is a list"),
        ({**ENTRY, "index": ""}, "'index' is ''"),
        ({**ENTRY, "index": True}, "'index' is true or false"),
        ({**ENTRY, "index": 1.5}, "'index' is a number"),
        ({**ENTRY, "index": "../up"}, "'index' is '../up'"),
        ({**ENTRY, "index": ".."}, "'index' is '..'"),
        ({**ENTRY, "index": "a/b"}, "'index' is 'a/b'"),
        ({**ENTRY, "index": "a\\b"}, "'index'"),
        ({**ENTRY, "index": "a\nb"}, "'index'"),
        ({**ENTRY, "index": "x" * 201}, "'index'"),
        ({**ENTRY, "index": "\ud800"}, "'index'"),
        ({**ENTRY, "ref_image_paths": ["a.png"]}, "takes no image references, given 1"),
        ({**ENTRY, "task": "i2v"}, "takes 1 to 9 image references, given 0"),
        ({**ENTRY, "task": "ti2i", "ref_image_paths": ["a.png"], "ref_image_have_base": True}, "at least two"),
        ({**ENTRY, "task": "ti2i", "ref_image_paths": ["a.png"], "ref_image_have_base": 1}, "true or false"),
        ({**ENTRY, "task": "ti2i", "ref_image_paths": ["gone.png"]}, "'ref_image_paths': no file 'gone.png'"),
        ({**ENTRY, "task": "ti2i", "ref_image_paths": ["a\0.png"]}, "'ref_image_paths'"),
        ({**ENTRY, "task": "ti2i", "ref_image_paths": [""]}, "'ref_image_paths' is a list"),
        ({**ENTRY, "task": "ti2i", "ref_image_paths": {"a": 1}}, "'ref_image_paths' is an object"),
        ({**ENTRY, "task": "ti2i", "ref_image_paths": "a.png"}, "a string that is no list"),
        ({**ENTRY, "task": "ti2i", "ref_image_paths": "[__import__('os').getcwd()]"}, "a string that is no list"),
        ({**ENTRY, "ref_image_paths": "{[]: 1}"}, "a string that is no list"),
        ({**ENTRY, "task": "ti2i", "ref_image_paths": "('a.png',)"}, "'ref_image_paths'"),
        ({**ENTRY, "task": "tv2v", "ref_video_path": ["v.mp4"]}, "'ref_video_path' is a list"),
        ({**ENTRY, "task": "tv2v", "ref_video_path": "gone.mp4"}, "'ref_video_path': no file 'gone.mp4'"),
        ({**ENTRY, "task": "tv2v", "ref_video_path": "."}, "'ref_video_path': no file"),
    ],
)
def test_bad_entries_name_themselves(folder: Path, entry: Any, part: str) -> None:
    with pytest.raises(TaskFileError) as caught:
        read_tasks(write(folder, entry))
    assert part in str(caught.value)
    assert "entry 1" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"", "line 1, column 1"),
        (b'[\n  {"index": 1,}\n]', "line 2, column"),
        (b"[NaN", "broken JSON"),
        (b"{}", "holds an object"),
        (b"[]", "the list is empty"),
        (b'[{"index": "a", "index": "b"}]', "'index' is given twice"),
        (b"\xff\xfe", "byte 0 is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"1" * 5000 + b"]", "broken JSON"),
    ],
)
def test_broken_files(tmp_path: Path, text: bytes, part: str) -> None:
    path = tmp_path / "tasks.json"
    path.write_bytes(text)
    with pytest.raises(TaskFileError) as caught:
        read_tasks(path)
    assert part in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_too_large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "MAX_BYTES", 20)
    with pytest.raises(TaskFileError, match="larger than 20 bytes"):
        read_tasks(write(folder, ENTRY))


def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.json", tmp_path):
        with pytest.raises(TaskFileError, match="cannot read task file"):
            read_tasks(path)


@pytest.mark.parametrize("second", ["id_1", "ID_1"])
def test_equal_names_are_refused(folder: Path, second: str) -> None:
    with pytest.raises(TaskFileError, match=r"entry 2: index .* is that of entry 1"):
        read_tasks(write(folder, ENTRY, {**ENTRY, "index": second}))
