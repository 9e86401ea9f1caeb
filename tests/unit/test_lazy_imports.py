"""PyAV, platformdirs and diffusers are imported where they are used and nowhere before; a missing one is named."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.policy.source import ROOT
from vino_rt.errors import MediaError
from vino_rt.media_frames import require_av
from vino_rt.media_video import probe_video

BLOCKED = ("av", "platformdirs", "diffusers")
BLOCK = f"import sys; sys.modules.update(dict.fromkeys({BLOCKED!r}))\n"
"""None in the place of a module makes its import raise ImportError."""


def run_blocked(program: str) -> str:
    command = [sys.executable, "-c", BLOCK + program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_room_is_imported_without_them() -> None:
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for folder in ("vino_rt", "tests/unit")
        for path in (ROOT / folder).rglob("*.py")
        if path.stem not in ("__init__", "__main__") and (folder == "vino_rt" or path.stem in ("conftest", "models"))
    )
    assert "vino_rt.train.lessons" in modules
    lines = [f"importlib.import_module({module!r})" for module in modules]
    run_blocked("\n".join(["import importlib", "sys.path[:0] = ['kernels', 'export']", *lines]))


@pytest.mark.parametrize("recipe", ["eager", "triton"])
def test_a_picture_is_made_without_them(recipe: str, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    backend = f"replace(load_recipe('eager'), backend={recipe!r})"
    program = f"""
sys.path[:0] = ["kernels", "export"]
from dataclasses import replace
from pathlib import Path
from vino_rt.backends.recipe import load_recipe
from vino_rt.backends.store import Store
from vino_rt.engines import open_engines
from vino_rt.model_dir import ModelDir, bundled_model
from vino_rt.request import Request
from vino_rt.runtime import Runtime
model, recipe = ModelDir.open(bundled_model()), {backend}
with Runtime(model, recipe, open_engines(model, recipe, Store(Path("none")), 1)) as runtime:
    runtime.generate(Request(prompt="a red square", size=(64, 32), steps=1, seed=1)).save({str(out)!r})
"""
    run_blocked(program)
    assert out.is_file()


def test_a_missing_codec_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"not read")
    monkeypatch.setitem(sys.modules, "av", None)
    for call in (require_av, lambda: probe_video(path)):
        with pytest.raises(MediaError, match="pip install av"):
            call()
