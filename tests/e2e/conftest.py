"""What tests of training share: a small model to start from, and a directory of their own to train in."""

import sys
from pathlib import Path

import pytest

from tests.unit.small_model import make_small_model


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to start from; tests only read it."""
    return make_small_model(tmp_path_factory.mktemp("small") / "start").path


@pytest.fixture
def place(tmp_path: Path, start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current directory of its own with a link to the model; the hook that `main` sets is taken back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    Path("start").symlink_to(start)
