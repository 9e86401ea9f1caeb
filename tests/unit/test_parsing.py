"""Mistakes in a command line: one line for people, an event for machines, exit code 2, nothing silently ignored."""

import json

import pytest

from vino_rt.cli import main

GENERATE = ("generate", "x", "-o", "a.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*GENERATE, "--steps", "abc"), "--steps is 'abc': Input should be a valid integer"),
        ((*GENERATE, "--threads=0"), "--threads is '0': Input should be greater than or equal to 1"),
        ((*GENERATE, "--stpes", "1"), "No such option: --stpes"),
        ((*GENERATE, "--size"), "Option '--size' requires an argument"),
        (("bogus",), "No such command 'bogus'"),
        (("generate", "x"), "Missing option '--output'"),
        ((*GENERATE, "--video", "a.mp4", "--video", "b.mp4"), "--video is given 2 times; once is legal"),
        ((*GENERATE, "-o", "b.png"), "--output is given 2 times; once is legal"),
        ((*GENERATE, "--seed=1", "--seed", "2", "--seed", "3"), "--seed is given 3 times"),
    ],
)
def test_a_mistake_is_one_line_and_one_event(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert len(told.err.splitlines()) == 1
    assert not told.out
    assert main([arguments[0], "--json", *arguments[1:]]) == 2
    event = json.loads(capsys.readouterr().out)
    assert (event["event"], event["type"], event["exit_code"]) == ("error", "UsageError", 2)
    assert message in event["message"]


def test_images_and_flags_may_be_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    images = ("--image", "no.png", "--image", "nor.png")
    assert main([*GENERATE, *images, "--quiet", "--quiet"]) == 3
    assert "no.png" in capsys.readouterr().err


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capsys.readouterr().out
    assert "Usage" in shown
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == shown
