"""How commands speak and end whatever the streams are: odd names, logs, readers that are gone, Ctrl-C at any moment."""

import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image

from vino_rt.build import BuildProgress
from vino_rt.cli import main
from vino_rt.commands import subcommands
from vino_rt.commands.base import install_hook
from vino_rt.commands.report import Reporter

INTERRUPTED = """
import os, signal, sys

# A process in the background may begin with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

class Interrupt:
    def find_spec(self, name, *_):
        if name == "numpy":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
from vino_rt.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


def strict_stdout(monkeypatch: pytest.MonkeyPatch, encoding: str) -> io.BytesIO:
    """Stdout as most terminals and pipes have it: what it cannot encode is an error."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    return raw


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_name_in_another_encoding_is_told_escaped(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    Image.new("L", (9, 9)).save(name)
    raw = strict_stdout(monkeypatch, encoding)
    assert main(["inspect", name]) == 0
    assert raw.getvalue().startswith(rb"caf\udce9.png: holds no settings")
    assert main(["inspect", name, "--json"]) == 0
    assert json.loads(raw.getvalue().splitlines()[-1])["path"] == name
    Reporter().say("naïve")
    assert raw.getvalue().endswith("naïve\n".encode(encoding, "backslashreplace"))


@pytest.mark.parametrize("quiet", [False, True])
def test_a_log_has_a_line_for_each_new_engine(capsys: pytest.CaptureFixture[str], quiet: bool) -> None:
    reporter = Reporter(quiet=quiet)
    with reporter.bars() as show:
        listen = reporter.on_build(show)
        for number, reused in enumerate((True, False, False)):
            for stage, done in (("found" if reused else "export", number), ("done", number + 1)):
                listen(BuildProgress(f"kind{number}", stage, done, 3, reused))
    lines = ["kind1: built, 2 of 3 engines", "kind2: built, 3 of 3 engines", "engines: 3 of 3"]
    assert capsys.readouterr().err.splitlines() == ([] if quiet else lines)


def test_the_stage_of_an_engine_that_takes_long_has_a_bar() -> None:
    shown: list[tuple[str, int, int]] = []
    listen = Reporter().on_build(lambda *part: shown.append(part))
    for stage in ("export", "Timing graph nodes: 3 of 40", "verify: 1 of 2"):
        listen(BuildProgress("head", stage, 1, 9))
    assert shown == [("engines", 1, 9), ("head", 3, 40), ("engines", 1, 9), ("head", 1, 2), ("engines", 1, 9)]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_is_gone_ends_the_command_quietly(options: list[str]) -> None:
    Image.new("L", (9, 9)).save("a.png")
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "vino_rt", "inspect", "a.png", *options]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_disk_behind_stdout_is_told_in_one_line(options: list[str]) -> None:
    Image.new("L", (9, 9)).save("a.png")
    command = [sys.executable, "-m", "vino_rt", "inspect", "a.png", *options]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith("error: stdout cannot be written: No space left on device")
    assert len(done.stderr.splitlines()) == 1


def test_ctrl_c_while_it_is_imported() -> None:
    command = [sys.executable, "-c", INTERRUPTED, "inspect", "a.png", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "cancelled\n")
    assert json.loads(done.stdout) == {"event": "error", "type": "Cancelled", "message": "cancelled", "exit_code": 130}


def test_ctrl_c_outside_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(subcommands, "run", interrupted)
    assert main(["inspect"]) == 130
    assert capsys.readouterr().err == "cancelled\n"
    install_hook(json=False)
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    said = capsys.readouterr().err
    assert said.startswith("cancelled")
    assert "internal error" not in said


def test_slips_in_exif_data_are_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Pillow warns of them with the path of its own source; the picture is read, and other warnings are heard."""
    exif = Image.Exif()
    exif[0x010E] = "a description of some length"
    Image.new("RGB", (64, 64)).save("a.jpg", exif=exif.tobytes()[:-12])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Image.open("a.jpg") as image:
            image.getexif()
        assert caught[-1].filename.endswith("TiffImagePlugin.py")
        heard = len(caught)
        assert main(["inspect", "--plan", "--image", "a.jpg", "--recipe", "eager"]) == 0
        assert [str(each.message) for each in caught[heard:] if "PIL" in each.filename] == []
        warnings.warn("another", stacklevel=1)
        assert str(caught[-1].message) == "another"
    assert "PIL" not in capsys.readouterr().err
